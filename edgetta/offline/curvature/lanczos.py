"""The Lanczos process with two-pass full re-orthogonalisation: Ritz values, weights, residual bounds, eigenvectors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgetta.errors import UsageError
from edgetta.offline.curvature.basis import COLUMNS, Basis, BasisPlan, Storage, make_basis
from edgetta.offline.curvature.data_operator import LinearOperator
from edgetta.offline.curvature.errors import NotSymmetricError
from edgetta.offline.curvature.parallel import Processes
from edgetta.offline.curvature.run_state import RunState, SavedRun

ASYMMETRY = 1e-2
"""Largest departure of Q^T A Q from a tridiagonal matrix that is taken for rounding, relative to the largest entry."""
EXHAUSTED = 100
"""A residual below this many roundings of the largest entry of T is nothing: the Krylov space is complete."""


@dataclass(frozen=True)
class Progress:
    """What a progress callback is told."""

    message: str
    step: int
    total: int


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class Tridiagonal:
    """The matrix T = Q^T A Q of a Lanczos run, in float64, and what follows from it.

    Ritz values are found by `eigh` of T. The bound |beta_m s_(m,i)| on ||A x - theta x|| also bounds the distance of
    theta_i from the nearest eigenvalue of A.
    """

    alpha: np.ndarray  # [m], diagonal
    beta: np.ndarray  # [m], below the diagonal; the last is the norm of what was left over
    asymmetry: float = 0.0  # largest departure from symmetry seen, relative to the largest |entry| of T

    @cached_property
    def eigen(self) -> tuple[np.ndarray, np.ndarray]:
        """Ritz values [m], ascending, and the eigenvectors of T [m, m], one per column."""
        off = self.beta[:-1]
        values, vectors = np.linalg.eigh(np.diag(self.alpha) + np.diag(off, 1) + np.diag(off, -1))
        return values, vectors

    @property
    def values(self) -> np.ndarray:
        """Ritz values [m], ascending."""
        return self.eigen[0]

    @property
    def weights(self) -> np.ndarray:
        """Quadrature weights [m]: squared first components, summing to one."""
        return self.eigen[1][0] ** 2

    @property
    def residuals(self) -> np.ndarray:
        """Residual bound [m] of each Ritz value."""
        return np.abs(self.beta[-1] * self.eigen[1][-1])


@dataclass(frozen=True)
class LanczosRun:
    """A finished run: T, and the basis unless it was dropped."""

    tridiagonal: Tridiagonal
    basis: Basis | None
    dimension: int

    def eigenvector(self, index: int) -> Tensor:
        """The Ritz vector [P] of Ritz value `index` (ascending; negative counts from the top), of unit length."""
        if self.basis is None:
            raise UsageError("the basis of this Lanczos run was not kept; run it with keep_basis=True")
        vector = self.basis.combine(torch.from_numpy(self.tridiagonal.eigen[1][:, index].copy()))
        return vector / vector.norm()


def run_lanczos(
    operator: LinearOperator,
    iterations: int,
    *,
    seed: int = 0,
    start: Tensor | None = None,
    stop: Callable[[Tridiagonal], bool] | None = None,
    storage: Storage = "auto",
    basis_limit: int | None = None,
    folder: Path | None = None,
    keep_basis: bool = True,
    progress: ProgressCallback | None = None,
    label: str = "Lanczos",
) -> LanczosRun:
    """Run Lanczos on a symmetric operator.

    Products are in the operator's precision, alpha and beta in float64. Each new vector is made orthogonal to all
    earlier ones, twice: without that, copies ("ghosts") of converged eigenvalues appear within 20 iterations in
    float32 and spoil every count, median or minimum of Ritz values. Q^T A Q is compared with a tridiagonal matrix on
    the way, which costs nothing and tells when the operator is not symmetric.

    Args:
        operator: the matrix.
        iterations: at most this many products; fewer where the Krylov space is exhausted or `stop` says so.
        seed: of the Gaussian start vector (made on the CPU, so that devices and processes agree).
        start: a start vector [P] instead.
        stop: asked after each iteration whether T is good enough.
        storage, basis_limit: see `BasisPlan.make`; what is decided is told to `progress` before the first product.
        folder: where the run is saved after each iteration, and from where it is taken up again if it was interrupted.
        keep_basis: False drops the basis (and the files in `folder` that hold it) at the end.
        progress: told after each iteration.

    Raises:
        NotSymmetricError: the operator is not symmetric or answers differently each time.
        UsageError: `iterations` or `start` cannot be used, or `folder` holds another run.
        MemoryLimitError: the basis fits nowhere.
    """
    if iterations < 1:
        raise UsageError(f"{iterations} Lanczos iterations are not possible; give 1 or more")
    iterations = min(iterations, operator.dimension)
    plan = BasisPlan.make(
        operator.dimension,
        iterations,
        operator.dtype,
        operator.device,
        storage=storage,
        limit=basis_limit,
        folder=folder,
    )
    processes: Processes = getattr(operator, "processes", None) or Processes(False)
    plan = processes.first(plan)
    tell = progress or (lambda _: None)
    tell(Progress(f"{label}: {plan.reason}", 0, iterations))
    if folder is not None and processes.together:
        folder = folder / f"rank-{processes.rank}"
    run = SavedRun((), (), 0.0, False)
    state = None
    if folder is not None:
        state = RunState(folder, _key(operator, iterations, seed, start, plan, keep_basis))
        run = state.load() or run
        run = run.after(min(processes.gather(run.steps)))
    basis = make_basis(plan, operator.dimension, iterations, operator.dtype, operator.device, folder)
    if run.steps == 0:
        vector = basis.append(_start(operator, seed, start))
        if state is not None:
            state.keep(basis, vector)
    elif state is not None and (keep_basis or not run.finished):
        vector = state.restore(basis, run.steps + (not run.finished))

    while not run.finished:
        residual = operator.product(vector).clone()
        diagonal = dot64(vector, residual)
        column = basis.coefficients(residual)
        basis.subtract(residual, column)
        basis.subtract(residual, basis.coefficients(residual))
        norm = norm64(residual)
        alpha, beta = (*run.alpha, diagonal), (*run.beta, norm)
        scale = max(*map(abs, alpha), *run.beta, 1e-300)
        asymmetry = max(run.asymmetry, _departure(column.numpy(), run.beta) / scale)
        if asymmetry > ASYMMETRY:
            raise NotSymmetricError(
                f"the operator departs from symmetry by {asymmetry:.1e} after {len(alpha)} products: its answers "
                "change from one product to the next, or a second derivative is wrong; look for random augmentation, "
                "noise in the model, or a custom autograd function that cannot be differentiated twice"
            )
        tridiagonal = Tridiagonal(np.array(alpha), np.array(beta), asymmetry)
        exhausted = norm <= EXHAUSTED * torch.finfo(operator.dtype).eps * scale
        enough = stop is not None and stop(tridiagonal)
        finished = processes.first(exhausted or enough or len(alpha) >= iterations)
        if not finished:
            vector = basis.append(residual / norm)
        run = SavedRun(alpha, beta, asymmetry, finished)
        if state is not None:
            if not finished:
                state.keep(basis, vector)
            state.commit(run)
        message = f"{label}: Ritz values {tridiagonal.values[0]:.4g} to {tridiagonal.values[-1]:.4g}"
        tell(Progress(message, len(alpha), iterations))
    if not keep_basis and state is not None:
        state.drop_basis()
    return LanczosRun(
        Tridiagonal(np.array(run.alpha), np.array(run.beta), run.asymmetry),
        basis if keep_basis else None,
        operator.dimension,
    )


def dot64(left: Tensor, right: Tensor) -> float:
    """The inner product of two vectors, summed in float64 without a copy of the whole."""
    pairs = zip(left.split(COLUMNS), right.split(COLUMNS), strict=True)
    return float(sum(torch.dot(a.double(), b.double()) for a, b in pairs))


def norm64(vector: Tensor) -> float:
    """The Euclidean length of a vector, summed in float64."""
    return dot64(vector, vector) ** 0.5


def start_vector(dimension: int, seed: int) -> Tensor:
    """A Gaussian vector [P] of unit length in float64, the same on every device."""
    vector = torch.randn(dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm()


def _start(operator: LinearOperator, seed: int, start: Tensor | None) -> Tensor:
    vector = start_vector(operator.dimension, seed) if start is None else start.detach()
    if vector.shape != (operator.dimension,) or not bool(torch.isfinite(vector).all()) or norm64(vector) == 0:
        raise UsageError(f"the start vector must be finite, not zero, and of length {operator.dimension}")
    return (vector / norm64(vector)).to(operator.device, operator.dtype)


def _departure(column: np.ndarray, beta: tuple[float, ...]) -> float:
    """How far a column of Q^T A Q is from [0, ..., 0, beta_(j-1), alpha_j]."""
    above = column[:-1].copy()
    if len(above):
        above[-1] -= beta[-1]
    return float(np.abs(above).max(initial=0.0))


def _key(
    operator: LinearOperator, iterations: int, seed: int, start: Tensor | None, plan: BasisPlan, keep_basis: bool
) -> dict[str, Any]:
    described = getattr(operator, "fingerprint", None)
    begin = seed if start is None else hashlib.sha256(start.detach().cpu().numpy().tobytes()).hexdigest()[:16]
    return {
        "operator": described() if described else type(operator).__name__,
        "dimension": operator.dimension,
        "dtype": str(operator.dtype),
        "iterations": iterations,
        "start": begin,
        "storage": plan.storage,
        "keep_basis": keep_basis,
    }
