"""Hutchinson's estimate of the trace, and of the squared Frobenius norm, with standard errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from edgetta.errors import UsageError
from edgetta.offline.curvature.data_operator import LinearOperator
from edgetta.offline.curvature.lanczos import Progress, ProgressCallback, dot64


@dataclass(frozen=True)
class Estimate:
    """A mean over independent probes."""

    samples: tuple[float, ...]  # one value per probe

    @property
    def value(self) -> float:
        """The mean."""
        return float(np.mean(self.samples))

    @property
    def error(self) -> float:
        """Standard error of the mean; NaN for a single probe."""
        count = len(self.samples)
        return float(np.std(self.samples, ddof=1) / count**0.5) if count > 1 else float("nan")


@dataclass(frozen=True)
class Moments:
    """What random probes say of a symmetric matrix A."""

    trace: Estimate  # tr A
    squared_norm: Estimate  # ||A||_F^2 = tr A^2, from the same products
    dimension: int


def hutchinson(
    operator: LinearOperator,
    probes: int = 10,
    *,
    block: int = 4,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Moments:
    """Estimate tr A as the mean of z^T A z and tr A^2 as the mean of ||A z||^2 over Rademacher vectors z.

    Args:
        operator: A.
        probes: how many vectors; the standard error falls with the square root.
        block: vectors per pass over the data; a pass on several is cheaper than several passes.
        seed: of the vectors, made on the CPU so that devices and processes agree.
    """
    if probes < 1 or block < 1:
        raise UsageError(f"{probes} probes in blocks of {block} are not possible; give 1 or more of both")
    generator = torch.Generator().manual_seed(seed)
    traces: list[float] = []
    norms: list[float] = []
    while len(traces) < probes:
        count = min(block, probes - len(traces))
        signs = torch.randint(0, 2, (count, operator.dimension), generator=generator, dtype=torch.int8)
        vectors = (2 * signs - 1).to(operator.device, operator.dtype).T
        products = operator.product(vectors)
        for vector, product in zip(vectors.unbind(1), products.unbind(1), strict=True):
            traces.append(dot64(vector, product))
            norms.append(dot64(product, product))
        if progress is not None:
            progress(Progress(f"trace {np.mean(traces):.4g}", len(traces), probes))
    return Moments(Estimate(tuple(traces)), Estimate(tuple(norms)), operator.dimension)
