"""Extreme eigenvalues measured on real batches, for a ladder of batch sizes: the number that rates follow from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from edgetta.errors import UsageError
from edgetta.offline.curvature import (
    CurvatureError,
    DataOperator,
    DataSetTooSmallError,
    Extremes,
    Progress,
    ProgressCallback,
    extreme_eigenpairs,
)
from edgetta.offline.learning_rate.interval import Interval, mean_interval


@dataclass(frozen=True)
class BatchExtremes:
    """Largest and smallest eigenvalues of several batches of one size."""

    batch_size: int
    largest: tuple[float, ...]  # one per batch
    smallest: tuple[float, ...]
    products: int  # spent on them
    unconverged: int  # batches whose residuals stayed above the tolerance

    @property
    def lambda_max(self) -> Interval:
        """Mean of the largest eigenvalues over batches."""
        return mean_interval(np.array(self.largest))

    @property
    def lambda_min(self) -> Interval:
        """Mean of the smallest eigenvalues over batches."""
        return mean_interval(np.array(self.smallest))

    @property
    def magnitudes(self) -> tuple[float, ...]:
        """The largest |eigenvalue| of each batch: what bounds steps where the matrix is indefinite."""
        return tuple(max(abs(a), abs(b)) for a, b in zip(self.largest, self.smallest, strict=True))


@dataclass(frozen=True)
class Ladder:
    """Measured extremes for several batch sizes, ascending."""

    rungs: tuple[BatchExtremes, ...]
    samples: int  # of the data set that batches were drawn from

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The sizes, ascending."""
        return tuple(rung.batch_size for rung in self.rungs)

    @property
    def products(self) -> int:
        """Products spent, each on a batch of its rung's size."""
        return sum(rung.products for rung in self.rungs)

    @property
    def sample_products(self) -> int:
        """Products times samples: the cost, to be compared with training steps (a product costs about two)."""
        return sum(rung.products * rung.batch_size for rung in self.rungs)


def measure_ladder(
    operator: DataOperator,
    batch_sizes: Sequence[int],
    *,
    batches: int = 8,
    iterations: int = 30,
    tolerance: float = 0.02,
    smallest: bool = True,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Ladder:
    """Measure the extreme eigenvalues of random batches, whatever the BatchNorm policy or the loss.

    Each Lanczos run starts near the eigenvectors of the batch before, mixed with a random vector, which saves most of
    the products; it stops at the tolerance. Batches of a size are drawn without replacement until the data are used
    up, then from a new shuffle. Processes of a group share the batches among them.

    Args:
        operator: of the whole data set; its class and surface are used, its batch size is not.
        batch_sizes: the ladder.
        batches: per size; one where a batch is the whole data set.
        iterations: of Lanczos, at most.
        tolerance: of the residuals, relative to the largest |Ritz value|.
        smallest: also measure the smallest eigenvalue; False saves products, and gives the smallest Ritz value met.
        seed: of batches and start vectors.

    Raises:
        DataSetTooSmallError: a batch is larger than the data set.
        UsageError: no size, or one below 1.
    """
    sizes = tuple(sorted(set(batch_sizes)))
    count = len(operator.samples)
    if not sizes or sizes[0] < 1 or batches < 1:
        raise UsageError(
            f"batch sizes {list(batch_sizes)} in {batches} batches cannot be measured; give positive ones"
        )
    if sizes[-1] > count:
        raise DataSetTooSmallError(
            f"a batch of {sizes[-1]} is larger than the data set of {count} samples; give more data, or leave that "
            "size out"
        )
    total = sum(1 if size == count else batches for size in sizes)
    done = 0
    rungs = []
    warm: Tensor | None = None
    for size in sizes:
        drawn = draw_batches(count, size, 1 if size == count else batches, seed)
        own: list[tuple[int, Extremes]] = []
        failure: Exception | None = None
        try:
            for k, indices in enumerate(drawn):
                done += 1
                if k % operator.processes.count != operator.processes.rank:
                    continue
                found = extreme_eigenpairs(
                    operator.on_batch(indices),
                    1,
                    int(smallest),
                    iterations=iterations,
                    tolerance=tolerance,
                    at_least=5,
                    seed=seed + k,
                    start=None if warm is None else _mixed(warm, seed + k),
                )
                warm = _ends(found)
                own.append((k, _bare(found)))
                if progress is not None:
                    value = found.largest.values[0]
                    progress(Progress(f"batch size {size}: largest eigenvalue {value:.4g}", done, total))
        except Exception as error:  # told to the other processes below
            failure = error
        shared = operator.processes.gather((own, failure is None))
        if failure is not None:
            raise failure
        if not all(fine for _, fine in shared):
            raise CurvatureError("another process of this measurement failed; its own message says why")
        ordered = [found for _, found in sorted((item for items, _ in shared for item in items), key=lambda i: i[0])]
        rungs.append(
            BatchExtremes(
                size,
                tuple(float(found.tridiagonal.values[-1]) for found in ordered),
                tuple(float(found.tridiagonal.values[0]) for found in ordered),
                sum(found.iterations for found in ordered),
                sum(not found.converged for found in ordered),
            )
        )
    return Ladder(tuple(rungs), count)


def draw_batches(samples: int, size: int, count: int, seed: int) -> list[list[int]]:
    """Batches of random indices: disjoint until the data are used up, then from a new shuffle."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + size)
    drawn: list[list[int]] = []
    while len(drawn) < count:
        order = torch.randperm(samples, generator=generator).tolist()
        drawn += [order[k : k + size] for k in range(0, samples - size + 1, size)]
    return drawn[:count]


def _ends(found: Extremes) -> Tensor:
    """The sum of the outermost eigenvectors, which contains both."""
    vectors = [pairs.vectors[:, 0] for pairs in (found.largest, found.smallest) if pairs.vectors is not None]
    return torch.stack(vectors).sum(dim=0)


def _mixed(warm: Tensor, seed: int) -> Tensor:
    """A start near `warm` that keeps a tenth of its squared length for what `warm` does not know."""
    noise = torch.randn(len(warm), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return warm.double().cpu() / warm.norm().cpu() + noise / noise.norm() / 3


def _bare(found: Extremes) -> Extremes:
    """Without eigenvectors, small enough to hand to other processes."""
    return replace(found, largest=replace(found.largest, vectors=None), smallest=replace(found.smallest, vectors=None))
