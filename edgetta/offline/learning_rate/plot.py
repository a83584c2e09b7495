"""Pictures of batch curvature and of the rates that follow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgetta.offline.curvature.plot import figure
from edgetta.offline.learning_rate.analysis import LearningRateAnalysis
from edgetta.rate_law import RateLaw


def plot_eigenvalues(analysis: LearningRateAnalysis, path: Path) -> Path:
    """Draw every measured batch eigenvalue over batch size, and both fitted forms with their bands."""
    drawing, axes = figure()
    sizes = np.array(analysis.ladder.batch_sizes, dtype=float)
    fine = np.geomspace(sizes[0] / 2, sizes[-1] * 2, 80)
    for name, fit in analysis.support.fits.items():
        bands = [fit.interval(size) for size in fine]
        chosen = " (supported)" if name == analysis.support.choice else ""
        line = axes.plot(fine, [band.value for band in bands], label=f"{name}{chosen}")[0]
        axes.fill_between(
            fine, [band.low for band in bands], [band.high for band in bands], alpha=0.2, color=line.get_color()
        )
    for rung in analysis.ladder.rungs:
        values = rung.largest if analysis.curvature == "largest" else rung.magnitudes
        axes.plot([rung.batch_size] * len(values), values, ".", color="grey", alpha=0.6)
        axes.plot(rung.batch_size, np.mean(values), "ko", markersize=4)
    axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel=f"{analysis.curvature} eigenvalue of a batch")
    axes.legend()
    drawing.savefig(path)
    return path


def plot_rates(
    laws: Mapping[str, RateLaw], path: Path, *, measured: Mapping[str, Mapping[int, float]] | None = None
) -> Path:
    """Draw the largest stable rate over batch size for each law, with its band, and measured thresholds as points.

    Args:
        laws: label -> law.
        path: the suffix gives the format.
        measured: label -> batch size -> measured threshold.
    """
    drawing, axes = figure()
    for label, law in laws.items():
        fine = np.geomspace(law.batch_sizes[0] / 2, law.batch_sizes[-1] * 2, 80)
        line = axes.plot(fine, [law.rate(size) for size in fine], label=label)[0]
        bands = [law.interval(size) for size in fine]
        low, high = zip(*bands, strict=True)
        axes.fill_between(fine, low, high, alpha=0.2, color=line.get_color())
        points = (measured or {}).get(label, {})
        axes.plot(list(points), list(points.values()), "o", color=line.get_color())
    axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="learning rate")
    axes.legend()
    drawing.savefig(path)
    return path
