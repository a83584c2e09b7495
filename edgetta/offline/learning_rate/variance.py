"""The Hessian variance v = P sigma^2: how much the curvature matrix of one sample differs from the mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgetta.errors import UsageError
from edgetta.offline.curvature import DataOperator, DataSetTooSmallError, Progress, ProgressCallback
from edgetta.offline.learning_rate.interval import Interval, positive_interval, resamples


@dataclass(frozen=True)
class HessianVariance:
    """v, estimated from pairs of disjoint batches: E ||(H_1 - H_2) z||^2 = 2 v / b for random unit vectors z."""

    batch_sizes: tuple[int, ...]
    values: tuple[np.ndarray, ...]  # per batch size, [pairs, probes]: b/2 ||(H_1 - H_2) z||^2
    seed: int

    @property
    def pooled(self) -> Interval:
        """The mean over batch sizes, pairs and probes; the interval is over pairs and probes (both resampled)."""
        drawn = np.mean([self._drawn(k) for k in range(len(self.values))], axis=0)
        return positive_interval(float(np.mean([table.mean() for table in self.values])), drawn, self._units)

    def at(self, batch_size: int) -> Interval:
        """The estimate from one batch size; under the theory it is the same from each."""
        k = self.batch_sizes.index(batch_size)
        return positive_interval(float(self.values[k].mean()), self._drawn(k), self._units)

    @property
    def scales(self) -> bool:
        """Whether noise falls as 1/b: the ratio of the estimates at the largest and smallest size may be one."""
        if len(self.values) < 2:
            return True
        ratio = float(self.values[-1].mean() / self.values[0].mean())
        return 1.0 in positive_interval(ratio, self._drawn(-1) / self._drawn(0), self._units)

    @property
    def _units(self) -> int:
        """Independent pairs, or probes where these are fewer."""
        return min(min(table.shape) for table in self.values)

    def _drawn(self, k: int, replicates: int = 1000) -> np.ndarray:
        """Bootstrap means of one table; probes are resampled alike for every batch size, for they are the same."""
        table = self.values[k]
        columns = resamples(table.shape[1], replicates, np.random.default_rng(self.seed))
        rows = resamples(table.shape[0], replicates, np.random.default_rng((self.seed, self.batch_sizes[k])))
        return np.array([table[np.ix_(r, c)].mean() for r, c in zip(rows, columns, strict=True)])


@dataclass(frozen=True)
class DirectionalVariance:
    """What the noise of one sample's matrix does to a given unit vector u."""

    across: Interval  # v_u = b E ||(1 - u u^T)(H_b - H) u||^2: pushes the eigenvalue outwards, see `perturbed_extreme`
    along: Interval  # b Var(u^T H_b u): spreads the eigenvalue from batch to batch


def hessian_variance(
    operator: DataOperator,
    batch_sizes: Sequence[int] = (16, 64),
    *,
    probes: int = 4,
    batches: int = 8,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> HessianVariance:
    """Estimate v from random batches of at least one size.

    Under the model of independent entries, E ||(H_b - H) z||^2 = v (1/b - 1/N) for a unit vector z, so v is
    b times the variance of H_b z over batches. (The published code measures the same with one z and no interval.)

    Args:
        operator: of the whole data set; each process evaluates all batches.
        batch_sizes: two or more show whether noise falls as 1/b (`HessianVariance.scales`).
        probes: random unit vectors.
        batches: per size, used in disjoint pairs; rounded down to an even number.
        seed: of batches and probes.

    Raises:
        UsageError: under batch statistics, where there is no curvature of one sample.
        DataSetTooSmallError: the batches of a size do not fit the data side by side.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(operator.dimension, probes, generator=generator, dtype=torch.float64)
    vectors = (vectors / vectors.norm(dim=0)).to(operator.dtype)
    sizes = tuple(sorted(set(batch_sizes)))
    tables = []
    for k, size in enumerate(sizes):
        rows = []
        for difference in _differences(operator, vectors, size, batches, seed):
            rows.append(0.5 * size * difference.double().square().sum(dim=0).cpu().numpy())
            if progress is not None:
                done = k * (batches // 2) + len(rows)
                progress(Progress(f"Hessian variance at batch size {size}", done, len(sizes) * (batches // 2)))
        tables.append(np.stack(rows))
    return HessianVariance(sizes, tuple(tables), seed)


def directional_variance(
    operator: DataOperator, vector: Tensor, batch_size: int = 32, *, batches: int = 8, seed: int = 0
) -> DirectionalVariance:
    """Measure the noise that a unit vector (an eigenvector of the whole matrix) meets, across and along itself.

    Raises:
        UsageError, DataSetTooSmallError: as `hessian_variance`.
    """
    unit = (vector / vector.norm()).to(operator.device, operator.dtype)
    along, across = [], []
    for difference in _differences(operator, unit[:, None], batch_size, batches, seed):
        part = float(unit @ difference[:, 0])
        along.append(0.5 * batch_size * part**2)
        across.append(0.5 * batch_size * float((difference[:, 0] - part * unit).double().square().sum()))
    both = np.array([across, along])
    rows = resamples(len(along), 1000, np.random.default_rng(seed))
    drawn = both[:, rows].mean(axis=2)
    return DirectionalVariance(
        positive_interval(float(both[0].mean()), drawn[0], len(along)),
        positive_interval(float(both[1].mean()), drawn[1], len(along)),
    )


def _differences(operator: DataOperator, vectors: Tensor, size: int, batches: int, seed: int) -> Iterator[Tensor]:
    """(H_1 - H_2) V for disjoint pairs of batches, one pair after the other."""
    pairs = batches // 2
    if not operator.surface.splittable:
        raise UsageError(
            "the variance of one sample's curvature is not defined where samples are coupled (batch statistics, or a "
            "loss that is no mean over samples); measure the eigenvalues of real batches instead"
        )
    if pairs < 1 or size < 1:
        raise UsageError(f"{batches} batches of {size} give no pair; ask for two batches of one sample at least")
    if 2 * pairs * size > len(operator.samples):
        raise DataSetTooSmallError(
            f"{2 * pairs} batches of {size} need {2 * pairs * size} samples and the data set has "
            f"{len(operator.samples)}; give more data, smaller batch sizes or fewer batches"
        )
    order = torch.randperm(len(operator.samples), generator=torch.Generator().manual_seed(seed + size)).tolist()
    for k in range(0, 2 * pairs, 2):
        first, second = (operator.on_batch(order[j * size : (j + 1) * size]) for j in (k, k + 1))
        yield first.product(vectors) - second.product(vectors)
