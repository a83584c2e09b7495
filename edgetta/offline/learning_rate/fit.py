"""Fits of the measured top eigenvalues over batch size, and which form the data support."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgetta.errors import UsageError
from edgetta.offline.learning_rate.interval import Interval, positive_interval
from edgetta.rate_law import inflation

FLOOR = 0.02
"""Relative error that every measured mean carries at least: Lanczos stops at about this."""
DECISIVE = 4.0
"""Difference in chi-square from which one form is preferred: a likelihood ratio of e^2."""
IMPLAUSIBLE = 0.01
"""A form whose chi-square is exceeded by chance less often than this does not describe the data."""


@dataclass(frozen=True)
class FormFit:
    """lambda(b) = limit * inflation(b / crossover), fitted to mean eigenvalues on a logarithmic scale."""

    form: str
    limit: float  # eigenvalue of very large batches
    crossover: float  # batch size at which the eigenvalue is twice the limit
    batch_sizes: tuple[int, ...]
    residuals: tuple[float, ...]  # measured over fitted, minus one, per batch size
    chi_square: float
    replicates: np.ndarray  # [R, 2], limit and crossover of bootstrap resamples
    units: int  # batches per size, the fewest of those with more than one

    def eigenvalue(self, batch_size: float) -> float:
        """The fitted eigenvalue."""
        return self.limit * float(inflation(self.form, batch_size / self.crossover))

    def interval(self, batch_size: float) -> Interval:
        """The fitted eigenvalue with its bootstrap interval."""
        drawn = self.replicates[:, 0] * inflation(self.form, batch_size / self.replicates[:, 1])
        return positive_interval(self.eigenvalue(batch_size), drawn, self.units)

    @property
    def limit_interval(self) -> Interval:
        return positive_interval(self.limit, self.replicates[:, 0], self.units)

    @property
    def crossover_interval(self) -> Interval:
        return positive_interval(self.crossover, self.replicates[:, 1], self.units)

    @property
    def slope(self) -> float:
        """lambda(b) = limit + slope/b in the outlier branch: v/lambda for "wigner", the bulk's trace for the other."""
        return self.limit * self.crossover

    @property
    def plausible(self) -> bool:
        """Whether chance explains the residuals (true where there are no more points than parameters)."""
        freedom = len(self.batch_sizes) - 2
        return freedom <= 0 or exceedance(self.chi_square, freedom) >= IMPLAUSIBLE


@dataclass(frozen=True)
class Support:
    """Which form the data support."""

    fits: Mapping[str, FormFit]
    choice: str  # "marchenko_pastur", "wigner", or "measured" where neither describes the data
    reason: str

    @property
    def fit(self) -> FormFit | None:
        """The fit of the chosen form; None for "measured"."""
        return self.fits.get(self.choice)


def fit_form(values: Mapping[int, Sequence[float]], form: str, *, replicates: int = 500, seed: int = 0) -> FormFit:
    """Fit one form to eigenvalues of several batches per batch size.

    The mean over batches is fitted on a logarithmic scale, weighted by its standard error (no smaller than `FLOOR`).
    The crossover is searched on a fine grid over a million-fold range around the batch sizes, for the limit follows
    from it; so no starting values are needed, and a crossover outside the data simply comes out as such.

    Args:
        values: batch size -> one positive eigenvalue per batch.
        form: "marchenko_pastur" or "wigner".
        replicates: bootstrap resamples of the batches within each size.

    Raises:
        UsageError: fewer than two batch sizes, or an eigenvalue that is not positive.
    """
    sizes = np.array(sorted(values), dtype=np.float64)
    if len(sizes) < 2:
        raise UsageError("a law over batch size needs measurements at two batch sizes at least; three tell more")
    tables = [np.array(values[int(size)], dtype=np.float64) for size in sizes]
    if any(not len(table) or (table <= 0).any() or not np.isfinite(table).all() for table in tables):
        raise UsageError(
            "an eigenvalue is not positive, so no largest stable rate follows from it; use the largest |eigenvalue|, "
            "more samples, or another point in training"
        )
    generator = np.random.default_rng(seed)
    spread = np.array(
        [table.std(ddof=1) / len(table) ** 0.5 / table.mean() if len(table) > 1 else 0.0 for table in tables]
    )
    errors = np.hypot(spread, FLOOR)
    points = [np.array([table.mean() for table in tables])]
    for _ in range(replicates):
        drawn = np.array([table[generator.integers(0, len(table), len(table))].mean() for table in tables])
        points.append(drawn * np.exp(FLOOR * generator.standard_normal(len(tables))))
    logarithms = np.log(np.stack(points))  # [1 + R, sizes]
    grid = np.geomspace(sizes[0] / 1e3, sizes[-1] * 1e3, 2000)
    shapes = np.log(inflation(form, sizes / grid[:, None]))  # [grid, sizes]
    weights = errors**-2
    offsets = ((logarithms[:, None, :] - shapes) * weights).sum(axis=2) / weights.sum()  # [1 + R, grid]
    misfit = ((logarithms[:, None, :] - shapes - offsets[:, :, None]) ** 2 * weights).sum(axis=2)
    best = misfit.argmin(axis=1)
    limits = np.exp(offsets[np.arange(len(best)), best])
    crossovers = grid[best]
    fitted = limits[0] * inflation(form, sizes / crossovers[0])
    return FormFit(
        form,
        float(limits[0]),
        float(crossovers[0]),
        tuple(int(size) for size in sizes),
        tuple((points[0] / fitted - 1).tolist()),
        float(misfit[0, best[0]]),
        np.stack([limits[1:], crossovers[1:]], axis=1),
        min([len(table) for table in tables if len(table) > 1], default=2),
    )


def fit_forms(values: Mapping[int, Sequence[float]], *, replicates: int = 500, seed: int = 0) -> Support:
    """Fit both forms and say which the data support.

    The two are the same function of the batch size above the crossover, so only batches below it tell them apart.
    Where they cannot be told apart, "marchenko_pastur" is chosen, for it predicts the larger eigenvalue, and so the
    smaller rate, at batches smaller than the measured ones.
    """
    fits = {form: fit_form(values, form, replicates=replicates, seed=seed) for form in ("marchenko_pastur", "wigner")}
    first, second = fits["marchenko_pastur"], fits["wigner"]
    better, worse = (first, second) if first.chi_square <= second.chi_square else (second, first)
    figures = f"chi-square {first.chi_square:.1f} (marchenko_pastur) and {second.chi_square:.1f} (wigner)"
    if not better.plausible:
        return Support(fits, "measured", f"neither form describes the data: {figures}; the measured values are kept")
    if worse.chi_square - better.chi_square >= DECISIVE:
        return Support(fits, better.form, f"{better.form} is supported: {figures}")
    return Support(fits, first.form, f"the data cannot tell the forms apart: {figures}; the more careful one is kept")


def exceedance(chi_square: float, freedom: int) -> float:
    """The probability that a chi-square variable exceeds a value (Wilson and Hilferty's approximation)."""
    if chi_square <= 0:
        return 1.0
    variance = 2 / (9 * freedom)
    z = ((chi_square / freedom) ** (1 / 3) - (1 - variance)) / math.sqrt(variance)
    return 0.5 * math.erfc(z / math.sqrt(2))
