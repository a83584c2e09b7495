"""Pictures of spectra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgetta.errors import MissingDependencyError
from edgetta.offline.curvature.spectrum import Spectrum


def figure(width: float = 6.4, height: float = 4.0) -> tuple[Any, Any]:
    """A matplotlib figure and its axes, without a display and without global state.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("plots need matplotlib: pip install 'edgetta[offline]'") from error
    drawing = Figure(figsize=(width, height), layout="constrained")
    return drawing, drawing.subplots()


def plot_spectrum(spectrum: Spectrum, path: Path, *, width: float | None = None, title: str = "") -> Path:
    """Draw the density on a logarithmic axis with a band of two standard errors, and the extremes; save to `path`.

    Args:
        spectrum: what to draw.
        path: the suffix gives the format (png, svg, pdf).
        width: see `Spectrum.density`.
    """
    drawing, axes = figure()
    density = spectrum.density(width=width)
    floor = density.mean.max() * 1e-8
    axes.semilogy(density.grid, np.maximum(density.mean, floor), label=f"{len(spectrum.runs)} probes")
    if len(spectrum.runs) > 1:
        low = np.maximum(density.mean - 2 * density.error, floor)
        axes.fill_between(density.grid, low, np.maximum(density.mean + 2 * density.error, floor), alpha=0.3)
    for value, residual in (spectrum.smallest, spectrum.largest):
        axes.axvline(value, color="grey", linestyle=":", label=f"{value:.4g} ± {residual:.1g}")
    axes.set(xlabel="eigenvalue", ylabel="density", title=title)
    axes.legend()
    drawing.savefig(path)
    return path
