"""The error of every method per corruption, or round by round where a stream recurs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from edgetta.bench.accuracy.summary import groups
from edgetta.errors import MissingDependencyError


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a picture (PNG, SVG or PDF by the name's ending), one panel per stream and batch size.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("the plot needs matplotlib; pip install 'edgetta[offline]'") from error
    panels = groups(rows)
    figure = Figure(figsize=(10, 3.4 * max(1, len(panels))), layout="constrained")
    axes = figure.subplots(max(1, len(panels)), 1, squeeze=False)[:, 0]
    for axis, ((stream, model, batch, images), methods) in zip(axes, panels.items(), strict=False):
        for name, found in methods.items():
            if all("rounds" in row for row in found):
                values = [fmean(errors) for errors in zip(*(row["rounds"] for row in found), strict=True)]
                labels = [str(number + 1) for number in range(len(values))]
            else:
                labels = list(found[0]["errors"])
                values = [fmean(row["errors"].get(kind, float("nan")) for row in found) for kind in labels]
            mean = fmean(row["error"] for row in found)
            axis.plot(labels, values, marker=".", linewidth=1, label=f"{name} {mean:.1f}")
        axis.set_title(f"{stream}, batch {batch}, {images} images per corruption, {model}", fontsize=9)
        axis.set_ylabel("error %")
        axis.tick_params(axis="x", labelrotation=60, labelsize=7)
        axis.legend(fontsize=6, ncols=2, loc="upper right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
