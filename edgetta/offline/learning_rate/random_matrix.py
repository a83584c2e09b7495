"""Extreme eigenvalues of a batch's Hessian and Gauss-Newton matrix, predicted by spiked random-matrix theory.

The setting is that of Granziol, Zohren and Roberts (JMLR 23(173), 2022): a batch matrix is the matrix of the whole
data plus noise whose size falls with the batch. Its abstract states that the extreme eigenvalues of the batch exceed
those of the whole, by "spiked, field-dependent random matrix theory"; its theorems could not be read here. The
formulas below are the standard results for spiked matrices with additive (Wigner) and multiplicative (Wishart) noise;
they were derived and are tested against simulated matrices in this repository, and are not quoted from the paper.

A consequence that is ours to state: with additive noise the stable rate 2/lambda' grows at most with the square root
of the batch size, never linearly. Linear scaling at small batches appears in the multiplicative form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edgetta.errors import UsageError


def sampling_share(batch_size: float, samples: int | None = None) -> float:
    """1/b - 1/N: the variance of a mean of b samples drawn without replacement from N, per variance of one.

    None for N stands for fresh data without end, 1/b.

    Raises:
        UsageError: b is not in (0, N].
    """
    if batch_size <= 0 or (samples is not None and batch_size > samples):
        raise UsageError(f"a batch of {batch_size} cannot be drawn from {samples} samples; choose a size within them")
    return 1 / batch_size - (0.0 if samples is None else 1 / samples)


def wigner_extremes(
    largest: float, smallest: float, variance: float, batch_size: float, samples: int | None = None
) -> tuple[float, float]:
    """Extreme eigenvalues of a batch Hessian H + E, E with independent entries of variance v (1/b - 1/N) / P.

    With s^2 = v (1/b - 1/N): an eigenvalue lambda beyond s in magnitude becomes lambda + s^2/lambda (outlier branch);
    otherwise the edge of the noise, 2 s, is met (bulk branch). The two join at |lambda| = s.

    Args:
        largest, smallest: of the Hessian of the whole data set.
        variance: the Hessian variance v = P sigma^2, see `hessian_variance`.
        batch_size: b.
        samples: N; None: fresh data.

    Returns:
        The largest and the smallest eigenvalue of the batch.
    """
    level = math.sqrt(max(variance, 0.0) * sampling_share(batch_size, samples))

    def pushed(value: float) -> float:
        return value + level**2 / value if value > level else 2 * level

    return pushed(largest), -pushed(-smallest)


def wigner_crossover(largest: float, variance: float) -> float:
    """The batch size b* = v / lambda^2 below which the top of a batch Hessian is noise; there it is 2 lambda."""
    return variance / largest**2


@dataclass(frozen=True)
class Bulk:
    """What is left of a positive semi-definite matrix without its outliers, as a multiple of a projection.

    Level and dimension are chosen to keep the trace and the squared norm: an effective bulk (ours).
    """

    level: float  # eigenvalue
    dimension: float  # how many of it

    @staticmethod
    def remaining(trace: float, squared_norm: float, outliers: Sequence[float]) -> Bulk:
        """The bulk of a matrix with this trace and squared Frobenius norm, after its outliers are taken out.

        Raises:
            UsageError: nothing is left, or the estimates contradict each other.
        """
        left, left_squared = trace - sum(outliers), squared_norm - sum(value**2 for value in outliers)
        if left <= 0 or left_squared <= 0:
            raise UsageError(
                f"outliers {[round(value, 4) for value in outliers]} leave nothing of trace {trace:.4g} and squared "
                f"norm {squared_norm:.4g}; estimate these with more probes, or name fewer outliers"
            )
        return Bulk(left_squared / left, left**2 / left_squared)


def marchenko_pastur_largest(largest: float, bulk: Bulk, batch_size: float, samples: int | None = None) -> float:
    """The largest eigenvalue of a batch Gauss-Newton matrix, taken as a sample covariance of b independent rows.

    With g = dimension (1/b - 1/N) and bulk level s: an outlier l > s (1 + sqrt g) becomes l (1 + g s / (l - s)),
    otherwise the edge s (1 + sqrt g)^2 is met. Rows of several outputs per sample are dependent: the true matrix has
    somewhat less noise than this (ours to note).

    Args:
        largest: of the Gauss-Newton matrix of the whole data set.
        bulk: the rest of that matrix.
        batch_size, samples: b and N; None: fresh data.
    """
    g = bulk.dimension * sampling_share(batch_size, samples)
    if largest > bulk.level * (1 + math.sqrt(g)):
        return largest * (1 + g * bulk.level / (largest - bulk.level))
    return bulk.level * (1 + math.sqrt(g)) ** 2


def marchenko_pastur_outlier(
    largest: float, bulk_trace: float, batch_size: float, samples: int | None = None
) -> float:
    """The same for an outlier far above the bulk: lambda + tr(bulk) (1/b - 1/N); only a trace is needed."""
    return largest + bulk_trace * sampling_share(batch_size, samples)


def perturbed_extreme(value: float, across: float, batch_size: float, samples: int | None = None) -> float:
    """The shift of one eigenvalue by the noise that its own eigenvector u meets: value + v_u (1/b - 1/N) / value.

    Second-order perturbation, the Wigner outlier with the variance v_u measured along u (`directional_variance`) in
    place of the average over all directions. Noise in networks is not isotropic, so the two can differ much (ours).
    """
    return value + across * sampling_share(batch_size, samples) / value
