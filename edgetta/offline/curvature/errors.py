"""What can go wrong while curvature is measured, each with its remedy in the message."""

from __future__ import annotations

from edgetta.errors import EdgettaError


class CurvatureError(EdgettaError):
    """Curvature cannot be measured as asked."""


class NotTwiceDifferentiableError(CurvatureError):
    """An operation of the model or of the loss has no second derivative."""


class NotFiniteError(CurvatureError):
    """A loss, a gradient or a product is NaN or infinite."""


class NotSymmetricError(CurvatureError):
    """The operator is not symmetric, or answers differently from one product to the next."""


class DataSetTooSmallError(CurvatureError):
    """There are fewer samples than the measurement needs."""


class MemoryLimitError(CurvatureError):
    """The memory limit leaves no room for the smallest step."""
