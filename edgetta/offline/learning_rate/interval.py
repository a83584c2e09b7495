"""Estimates with intervals, by the bootstrap and Student's distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and the 95 % interval around it."""

    value: float
    low: float
    high: float

    def __contains__(self, other: float) -> bool:
        return self.low <= other <= self.high


def student_interval(value: float, replicates: np.ndarray, count: int) -> Interval:
    """A t interval with the bootstrap's standard error.

    Percentiles of resamples are far too narrow for the handful of batches and probes that a measurement affords.

    Args:
        value: the estimate.
        replicates: of the estimate, one per resample.
        count: how many independent units were resampled; for a single one the interval is unbounded.
    """
    if count < 2:
        return Interval(value, -math.inf, math.inf)
    reach = _student(count) * float(np.std(replicates)) * math.sqrt(count / (count - 1))
    return Interval(value, value - reach, value + reach)


def positive_interval(value: float, replicates: np.ndarray, count: int) -> Interval:
    """`student_interval` on a logarithmic scale, for positive estimates; their long tails point upwards.

    Replicates that are not positive are left out.
    """
    logarithms = np.log(replicates[replicates > 0])
    if count < 2 or not len(logarithms) or value <= 0:
        return Interval(value, 0.0, math.inf)
    factor = math.exp(_student(count) * float(np.std(logarithms)) * math.sqrt(count / (count - 1)))
    return Interval(value, value / factor, value * factor)


def resamples(count: int, replicates: int, generator: np.random.Generator) -> np.ndarray:
    """Indices [replicates, count] drawn with replacement."""
    return generator.integers(0, count, size=(replicates, count))


def mean_interval(values: np.ndarray, *, replicates: int = 1000, seed: int = 0) -> Interval:
    """The mean of independent values [n]."""
    drawn = resamples(len(values), replicates, np.random.default_rng(seed))
    return student_interval(float(values.mean()), values[drawn].mean(axis=1), len(values))


def ratio_interval(above: np.ndarray, below: np.ndarray, *, replicates: int = 1000, seed: int = 0) -> Interval:
    """The ratio of two means over the same units [n]."""
    drawn = resamples(len(above), replicates, np.random.default_rng(seed))
    return student_interval(
        float(above.mean() / below.mean()), above[drawn].mean(axis=1) / below[drawn].mean(axis=1), len(above)
    )


def _student(count: int) -> float:
    """The two-sided quantile of Student's distribution with count - 1 degrees of freedom (an expansion)."""
    z, f = NormalDist().inv_cdf(0.5 + LEVEL / 2), count - 1
    return (
        z
        + (z**3 + z) / (4 * f)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * f**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * f**3)
    )
