"""Batch sharpness: the curvature of a batch along its own gradient, one product per batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgetta.offline.curvature import DataOperator, NotFiniteError, Progress, ProgressCallback
from edgetta.offline.curvature.lanczos import dot64
from edgetta.offline.learning_rate.interval import Interval, mean_interval, ratio_interval
from edgetta.offline.learning_rate.ladder import draw_batches


@dataclass(frozen=True)
class BatchSharpness:
    """E[g_b^T H_b g_b] / E[||g_b||^2] for one batch size, g_b and H_b of the same batch."""

    batch_size: int
    curvatures: tuple[float, ...]  # g^T H g of each batch
    squared_gradients: tuple[float, ...]  # ||g||^2 of each batch

    @property
    def value(self) -> Interval:
        """The ratio of the means; 2 over it is the rate at which a gradient step stops to lower its own batch's loss.

        Andreyev and Beneventano ("Edge of Stochastic Stability", arXiv 2412.20553) name "the expected directional
        curvature of mini-batch Hessians along their corresponding stochastic gradients"; that the two means are
        divided, rather than the ratios averaged, is our reading.
        """
        return ratio_interval(np.array(self.curvatures), np.array(self.squared_gradients))

    @property
    def mean_ratio(self) -> Interval:
        """The mean over batches of g^T H g / ||g||^2: the other reading, and the mean curvature along the gradient."""
        return mean_interval(np.array(self.curvatures) / np.array(self.squared_gradients))


def batch_sharpness(
    operator: DataOperator,
    batch_sizes: Sequence[int],
    *,
    batches: int = 16,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> list[BatchSharpness]:
    """Estimate batch sharpness for each batch size: a cheap second opinion on the largest stable rate.

    It sees only the curvature along the gradient, so it lies below the largest eigenvalue of the batches.

    Raises:
        DataSetTooSmallError: a batch is larger than the data set.
        NotFiniteError: a gradient vanishes.
    """
    results = []
    sizes = sorted(set(batch_sizes))
    for rung, size in enumerate(sizes):
        curvatures, gradients = [], []
        for indices in draw_batches(len(operator.samples), size, batches, seed):
            batch = operator.on_batch(indices)
            gradient = batch.gradient()
            gradients.append(dot64(gradient, gradient))
            if gradients[-1] == 0:
                raise NotFiniteError(f"the gradient of a batch of {size} is zero; there is no curvature along it")
            curvatures.append(dot64(gradient, batch.product(gradient)))
        results.append(BatchSharpness(size, tuple(curvatures), tuple(gradients)))
        if progress is not None:
            progress(Progress(f"batch sharpness at {size}: {results[-1].value.value:.4g}", rung + 1, len(sizes)))
    return results
