"""How the smallest stable damping follows rate and batch size: damping = c (rate / batch size)^p, fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgetta.errors import UsageError
from edgetta.offline.learning_rate.interval import Interval, positive_interval, resamples, student_interval


@dataclass(frozen=True)
class DampingPoint:
    """One measured minimal damping."""

    rate: float
    batch_size: int
    damping: float


@dataclass(frozen=True)
class DampingLaw:
    """The fitted law; an earlier abstract of the paper (arXiv 2006.09092v1) states exponent one, and no constant."""

    constant: Interval
    exponent: Interval
    points: tuple[DampingPoint, ...]

    def damping(self, rate: float, batch_size: float) -> float:
        """The smallest stable damping."""
        return self.constant.value * (rate / batch_size) ** self.exponent.value

    @property
    def residuals(self) -> tuple[float, ...]:
        """Measured over fitted, minus one."""
        return tuple(point.damping / self.damping(point.rate, point.batch_size) - 1 for point in self.points)

    @property
    def proportional(self) -> bool:
        """Whether the data allow damping in proportion to rate over batch size."""
        return 1.0 in self.exponent


def fit_damping(points: Sequence[DampingPoint], *, replicates: int = 1000, seed: int = 0) -> DampingLaw:
    """Fit constant and exponent by least squares on logarithms, with intervals over resampled points.

    Raises:
        UsageError: fewer than three points, no variation in rate over batch size, or a value that is not positive.
    """
    table = np.array([[point.rate / point.batch_size, point.damping] for point in points], dtype=np.float64)
    if len(table) < 3 or (table <= 0).any() or np.ptp(table[:, 0]) == 0:
        raise UsageError("a damping law needs three positive points at least, at different rates over batch sizes")
    x, y = np.log(table).T
    line = _line(x[None], y[None])[0]
    drawn = resamples(len(x), replicates, np.random.default_rng(seed))
    drawn = drawn[np.ptp(x[drawn], axis=1) > 0]
    lines = _line(x[drawn], y[drawn])
    return DampingLaw(
        positive_interval(float(np.exp(line[0])), np.exp(lines[:, 0]), len(points)),
        student_interval(float(line[1]), lines[:, 1], len(points)),
        tuple(points),
    )


def _line(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Intercept and slope [R, 2] of least-squares lines through [R, n] points."""
    dx = x - x.mean(axis=1, keepdims=True)
    slope = (dx * y).sum(axis=1) / (dx**2).sum(axis=1)
    return np.stack([y.mean(axis=1) - slope * x.mean(axis=1), slope], axis=1)
