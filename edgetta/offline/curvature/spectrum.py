"""The spectral density by stochastic Lanczos quadrature, with error bars over probes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgetta.errors import UsageError
from edgetta.offline.curvature.basis import Storage
from edgetta.offline.curvature.data_operator import LinearOperator
from edgetta.offline.curvature.lanczos import Progress, ProgressCallback, Tridiagonal, run_lanczos


@dataclass(frozen=True)
class Density:
    """A smoothed density on a grid; it integrates to one."""

    grid: np.ndarray  # [n], eigenvalue axis
    mean: np.ndarray  # [n], over probes
    error: np.ndarray  # [n], standard error over probes; NaN for one probe
    width: float  # standard deviation of the Gaussian that stands for each Ritz value


@dataclass(frozen=True)
class Spectrum:
    """Ritz values and weights of several Lanczos runs from random starts: a quadrature rule per probe.

    For a smooth f, sum_i w_i f(theta_i) of a probe estimates tr f(A) / P; `moment` averages over probes. Ritz values
    in the inside of the spectrum are nodes of the rule, not eigenvalues, and their number only says how many
    iterations were made: use weights, never counts.
    """

    runs: tuple[Tridiagonal, ...]  # one per probe
    dimension: int
    seed: int = 0
    description: dict[str, Any] = field(default_factory=dict)  # where it came from: operator, data, policy, versions

    @property
    def largest(self) -> tuple[float, float]:
        """The largest Ritz value over probes, and its residual bound."""
        best = max(self.runs, key=lambda run: run.values[-1])
        return float(best.values[-1]), float(best.residuals[-1])

    @property
    def smallest(self) -> tuple[float, float]:
        """The smallest Ritz value over probes, and its residual bound."""
        best = min(self.runs, key=lambda run: run.values[0])
        return float(best.values[0]), float(best.residuals[0])

    def moment(self, function: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
        """Mean of f over the spectrum, tr f(A) / P, and its standard error over probes (NaN for one)."""
        values = [float(np.sum(run.weights * function(run.values))) for run in self.runs]
        return float(np.mean(values)), _error(np.array(values)[:, None])[0]

    def trace(self) -> tuple[float, float]:
        """tr A and its standard error."""
        mean, error = self.moment(lambda values: values)
        return self.dimension * mean, self.dimension * error

    def quantile(self, level: float, *, magnitude: bool = False, above: float = 0.0) -> float:
        """The eigenvalue below which a share `level` of the spectrum's weight lies.

        Args:
            level: in [0, 1].
            magnitude: of |eigenvalues|.
            above: only eigenvalues of at least this magnitude count, to leave out the bulk at zero.

        Raises:
            UsageError: no Ritz value is that large, or the level is not in [0, 1].
        """
        if not 0 <= level <= 1:
            raise UsageError(f"the level {level} of a quantile must lie in [0, 1]")
        values = np.concatenate([run.values for run in self.runs])
        weights = np.concatenate([run.weights for run in self.runs])
        kept = np.abs(values) >= above
        if not kept.any():
            raise UsageError(f"no Ritz value has magnitude {above:g} or more")
        values, weights = values[kept], weights[kept]
        values = np.abs(values) if magnitude else values
        order = np.argsort(values)
        cumulated = np.cumsum(weights[order]) / weights.sum()
        return float(values[order][min(np.searchsorted(cumulated, level), len(order) - 1)])

    def density(self, points: int = 1000, *, width: float | None = None, margin: float = 0.05) -> Density:
        """The density smoothed with a Gaussian, on a grid over the spectrum.

        Args:
            points: of the grid.
            width: standard deviation of the Gaussian; None: 1 % of the spectrum's length.
            margin: how far the grid goes beyond the extremes, as a share of the length (at least four widths).
        """
        low, high = self.smallest[0], self.largest[0]
        length = max(high - low, 1e-12 * max(abs(low), abs(high), 1e-300))
        width = 0.01 * length if width is None else width
        beyond = max(margin * length, 4 * width)
        grid = np.linspace(low - beyond, high + beyond, points)
        curves = []
        for run in self.runs:
            bumps = np.exp(-0.5 * ((grid[:, None] - run.values) / width) ** 2) / (width * (2 * np.pi) ** 0.5)
            curves.append(bumps @ run.weights)
        stacked = np.stack(curves)
        return Density(grid, stacked.mean(0), _error(stacked), width)


def measure_spectrum(
    operator: LinearOperator,
    *,
    iterations: int = 80,
    probes: int = 5,
    seed: int = 0,
    storage: Storage = "auto",
    basis_limit: int | None = None,
    folder: Path | None = None,
    progress: ProgressCallback | None = None,
    description: dict[str, Any] | None = None,
) -> Spectrum:
    """Stochastic Lanczos quadrature: `probes` Lanczos runs of `iterations` products from Gaussian start vectors.

    Args:
        operator: a symmetric matrix.
        folder: finished probes, and the one under way, are saved here and taken up again.
        storage, basis_limit: see `BasisPlan.make`.
        description: kept with the result.
    """
    if probes < 1:
        raise UsageError(f"{probes} probes are not possible; give 1 or more")
    runs = []
    for probe in range(probes):

        def tell(event: Progress, probe: int = probe) -> None:
            if progress is not None:
                progress(Progress(event.message, probe * iterations + event.step, probes * iterations))

        run = run_lanczos(
            operator,
            iterations,
            seed=seed + probe,
            storage=storage,
            basis_limit=basis_limit,
            folder=None if folder is None else folder / f"probe-{probe:03d}",
            keep_basis=False,
            progress=tell,
            label=f"probe {probe + 1} of {probes}",
        )
        runs.append(run.tridiagonal)
    return Spectrum(tuple(runs), operator.dimension, seed, description or {})


def _error(values: np.ndarray) -> np.ndarray:
    """Standard error over the first axis."""
    count = len(values)
    return values.std(axis=0, ddof=1) / count**0.5 if count > 1 else np.full(values.shape[1:], np.nan)
