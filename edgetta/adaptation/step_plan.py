"""What a step may use of memory: whether something is kept for the backward, and how many images go at a time."""

from __future__ import annotations

from dataclasses import dataclass

from edgetta.errors import UsageError


@dataclass(frozen=True)
class StepPlan:
    """How a step uses memory. With the same statistics and weights, predictions are the same under every plan.

    keep    the forward keeps bits for the backward; False: the backward runs the forward again, and nothing is kept
    learn   images that an update learns from, at most; 0: as configured
    slice   images that forward and backward of an update take at a time; 0: all. Bits of all of them are kept
    predict images that are predicted, or whose moments are measured, at a time; 0: all
    """

    keep: bool = True
    learn: int = 0
    slice: int = 0
    predict: int = 0

    def __post_init__(self) -> None:
        for name in ("learn", "slice", "predict"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise UsageError(f"{name} must be a number of images, 0 for all, not {value!r}")


KEEP = StepPlan()
"""Everything is kept, and all images go at once."""
