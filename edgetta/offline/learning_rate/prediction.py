"""Predicted extreme eigenvalues of batches, from the curvature of the whole data set and the noise of its samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgetta.errors import UsageError
from edgetta.offline.curvature import (
    DataOperator,
    Eigenpairs,
    HessianOperator,
    Moments,
    ProgressCallback,
    extreme_eigenpairs,
    hutchinson,
)
from edgetta.offline.learning_rate.interval import Interval
from edgetta.offline.learning_rate.random_matrix import (
    Bulk,
    marchenko_pastur_largest,
    perturbed_extreme,
    wigner_crossover,
    wigner_extremes,
)
from edgetta.offline.learning_rate.variance import (
    DirectionalVariance,
    HessianVariance,
    directional_variance,
    hessian_variance,
)

THEORIES = ("wigner", "marchenko_pastur", "perturbed")


@dataclass(frozen=True)
class Prediction:
    """Extreme eigenvalues of a batch as one theory has them, with the interval that its inputs carry."""

    batch_size: int
    theory: str
    maximum: Interval
    minimum: Interval | None  # None where the theory says nothing of it


@dataclass(frozen=True)
class WholeCurvature:
    """What is measured once on the whole data set, and predicts every batch size."""

    kind: str  # of the operator
    largest: float
    smallest: float
    smallest_residual: float  # an eigenvalue lies within this of `smallest`
    samples: int
    variance: HessianVariance
    top: DirectionalVariance  # noise met by the eigenvector of the largest eigenvalue
    bottom: DirectionalVariance | None  # of the smallest, where that is negative
    moments: Moments | None  # trace and squared norm, of Gauss-Newton and Fisher matrices

    @property
    def crossover(self) -> Interval:
        """The Wigner crossover batch size v / lambda^2."""
        return _through(lambda v: wigner_crossover(self.largest, v), self.variance.pooled)

    def predict(self, batch_size: int, theory: str, *, fresh: bool = False) -> Prediction:
        """Predict the mean extremes of batches.

        Args:
            batch_size: b.
            theory: "wigner" (additive isotropic noise, for Hessians), "marchenko_pastur" (multiplicative noise, for
                Gauss-Newton and Fisher matrices), or "perturbed" (the noise measured along the extreme eigenvectors).
            fresh: batches of data that were not part of the measurement, instead of draws from it.

        Raises:
            UsageError: the theory is unknown, or does not apply to this matrix.
        """
        samples = None if fresh else self.samples
        if theory == "wigner":
            both = [
                wigner_extremes(self.largest, self.smallest, v, batch_size, samples)
                for v in (self.variance.pooled.value, self.variance.pooled.low, self.variance.pooled.high)
            ]
            maximum, minimum = (Interval(pair[0], min(pair), max(pair)) for pair in zip(*both, strict=True))
            return Prediction(batch_size, theory, maximum, minimum)
        if theory == "perturbed":
            low = None if self.bottom is None else self.bottom.across
            return Prediction(
                batch_size,
                theory,
                _through(lambda v: perturbed_extreme(self.largest, v, batch_size, samples), self.top.across),
                low and _through(lambda v: perturbed_extreme(self.smallest, v, batch_size, samples), low),
            )
        if theory == "marchenko_pastur":
            if self.moments is None:
                raise UsageError(f"the Marchenko-Pastur form is for Gauss-Newton and Fisher matrices, not {self.kind}")
            trace, square = self.moments.trace, self.moments.squared_norm
            values = []
            for shift in (0.0, -2 * trace.error, 2 * trace.error):
                bulk = Bulk.remaining(trace.value + shift, square.value, [self.largest])
                values.append(marchenko_pastur_largest(self.largest, bulk, batch_size, samples))
            return Prediction(batch_size, theory, Interval(values[0], min(values), max(values)), None)
        raise UsageError(f"theory {theory!r} is not one of {', '.join(THEORIES)}")


def measure_whole(
    operator: DataOperator,
    *,
    iterations: int = 50,
    tolerance: float = 1e-2,
    batch_sizes: tuple[int, ...] = (16, 64),
    batches: int = 8,
    probes: int = 4,
    seed: int = 0,
    folder: Path | None = None,
    progress: ProgressCallback | None = None,
) -> WholeCurvature:
    """Measure what `WholeCurvature` holds: extremes, Hessian variance, noise along the extreme eigenvectors, trace.

    Args:
        operator: of the whole data set, in "source" BatchNorm policy and with a loss that is a mean over samples.
        iterations, tolerance, folder: of the Lanczos run, see `extreme_eigenpairs`.
        batch_sizes, batches, probes: of the variance, see `hessian_variance`.

    Raises:
        UsageError: the samples are coupled.
        DataSetTooSmallError: the batches of the variance do not fit the data.
    """
    variance = hessian_variance(operator, batch_sizes, probes=probes, batches=batches, seed=seed, progress=progress)
    ends = extreme_eigenpairs(
        operator, 1, 1, iterations=iterations, tolerance=tolerance, seed=seed, folder=folder, progress=progress
    )
    size = max(batch_sizes)

    def noise(pairs: Eigenpairs) -> DirectionalVariance:
        assert pairs.vectors is not None
        return directional_variance(operator, pairs.vectors[:, 0], size, batches=batches, seed=seed)

    smallest = float(ends.smallest.values[0])
    return WholeCurvature(
        operator.kind,
        float(ends.largest.values[0]),
        smallest,
        float(ends.smallest.residuals[0]),
        len(operator.samples),
        variance,
        noise(ends.largest),
        noise(ends.smallest) if smallest < 0 else None,
        None if isinstance(operator, HessianOperator) else hutchinson(operator, max(probes, 8), seed=seed),
    )


def _through(function: Callable[[float], float], interval: Interval) -> Interval:
    """An interval through a monotonic function."""
    values = [function(interval.value), function(interval.low), function(interval.high)]
    return Interval(values[0], min(values), max(values))
