"""Extreme eigenpairs, largest and smallest algebraic, with residual bounds, from one Lanczos run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgetta.errors import UsageError
from edgetta.offline.curvature.basis import Storage
from edgetta.offline.curvature.data_operator import LinearOperator
from edgetta.offline.curvature.lanczos import ProgressCallback, Tridiagonal, run_lanczos


@dataclass(frozen=True)
class Eigenpairs:
    """Some eigenvalues at one end of the spectrum, outermost first."""

    values: np.ndarray  # [k]
    residuals: np.ndarray  # [k], bounds on ||A x - value x||: an eigenvalue of A lies within this of the value
    vectors: Tensor | None  # [P, k], or None if they were not asked for


@dataclass(frozen=True)
class Extremes:
    """Both ends of a spectrum."""

    largest: Eigenpairs  # descending
    smallest: Eigenpairs  # ascending
    iterations: int  # products spent
    converged: bool  # every residual is within the tolerance
    tridiagonal: Tridiagonal

    @property
    def magnitude(self) -> float:
        """The largest |eigenvalue| found."""
        ends = np.concatenate([self.largest.values, self.smallest.values])
        return float(np.abs(ends).max())


def extreme_eigenpairs(
    operator: LinearOperator,
    largest: int = 1,
    smallest: int = 1,
    *,
    iterations: int = 50,
    tolerance: float = 1e-3,
    at_least: int = 0,
    vectors: bool = True,
    seed: int = 0,
    start: Tensor | None = None,
    storage: Storage = "auto",
    basis_limit: int | None = None,
    folder: Path | None = None,
    progress: ProgressCallback | None = None,
) -> Extremes:
    """Find the largest and the smallest eigenvalues (by value, not by magnitude: a Hessian is indefinite).

    The run stops as soon as every wanted residual is at most `tolerance` times the largest |Ritz value|. Of a multiple
    eigenvalue one copy is found, as in every Lanczos run with a single start vector.

    Args:
        operator: a symmetric matrix.
        largest, smallest: how many at each end; not both zero.
        iterations: at most this many products.
        tolerance: relative; eigenvalues are better than their residuals (the error is about the residual squared over
            the gap to the next eigenvalue).
        at_least: products before a small residual is believed, for start vectors that may miss an eigenvector.
        vectors: also compute eigenvectors.
        seed, start, storage, basis_limit, folder, progress: see `run_lanczos`.

    Raises:
        UsageError: nothing is asked for.
    """
    if largest < 0 or smallest < 0 or largest + smallest == 0:
        raise UsageError(f"{largest} largest and {smallest} smallest eigenvalues: ask for one at least")

    def wanted(tridiagonal: Tridiagonal) -> list[int]:
        count = len(tridiagonal.alpha)
        return [*range(count - 1, count - 1 - min(largest, count), -1), *range(min(smallest, count))]

    def good(tridiagonal: Tridiagonal) -> bool:
        if len(tridiagonal.alpha) < max(largest + smallest, at_least):
            return False
        scale = np.abs(tridiagonal.values).max()
        return bool((tridiagonal.residuals[wanted(tridiagonal)] <= tolerance * scale).all())

    run = run_lanczos(
        operator,
        iterations,
        seed=seed,
        start=start,
        stop=good,
        storage=storage,
        basis_limit=basis_limit,
        folder=folder,
        keep_basis=True,
        progress=progress,
        label="extreme eigenvalues",
    )
    tridiagonal = run.tridiagonal

    def pairs(indices: list[int]) -> Eigenpairs:
        found = torch.stack([run.eigenvector(i) for i in indices], dim=1) if vectors and indices else None
        return Eigenpairs(tridiagonal.values[indices], tridiagonal.residuals[indices], found)

    indices = wanted(tridiagonal)
    top = min(largest, len(tridiagonal.alpha))
    return Extremes(
        pairs(indices[:top]),
        pairs(indices[top:]),
        len(tridiagonal.alpha),
        good(tridiagonal) or tridiagonal.beta[-1] <= tolerance * np.abs(tridiagonal.values).max(),
        tridiagonal,
    )
