"""Pictures of RiFT: criticality of each module, and accuracies between trained and fine-tuned weights."""

from __future__ import annotations

from typing import Any

from edgetta.offline.curvature.plot import figure
from edgetta.offline.rift.criticality import Criticality
from edgetta.offline.rift.interpolation import Interpolation


def draw_criticality(found: Criticality, *, title: str = "") -> Any:
    """One bar per module, from the least to the most critical; grey where the ascent was not run on all images.

    Returns:
        A matplotlib figure.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    scores = [score for score in found.scores if not score.diverged]
    drawing, axes = figure(6.4, 0.24 * len(scores) + 1.2)
    colours = [
        "#0f9d78" if score.name == found.least.name else "#5b8def" if score.final else "#9aa5b1" for score in scores
    ]
    axes.barh([score.name for score in scores], [max(score.rise, 1e-6) for score in scores], color=colours)
    axes.set(xscale="log", xlabel="rise of the robust loss", title=title)
    axes.invert_yaxis()
    return drawing


def draw_interpolation(found: Interpolation, *, title: str = "") -> Any:
    """Clean and robust accuracy on the validation images over alpha, and the chosen point.

    Returns:
        A matplotlib figure.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    drawing, axes = figure()
    alphas = [point.alpha for point in found.points]
    axes.plot(alphas, [100 * point.clean for point in found.points], marker=".", label="clean", color="#5b8def")
    axes.plot(alphas, [100 * point.robust for point in found.points], marker=".", label="robust", color="#e0a030")
    axes.axvline(found.alpha, color="grey", linestyle=":", label=f"chosen: {found.alpha:g}")
    axes.set(xlabel="alpha: 0 trained, 1 fine-tuned", ylabel="accuracy, %", title=title)
    axes.legend()
    return drawing
