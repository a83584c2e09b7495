"""The table and the plot of the memory bench, from its result file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetta.bench.memory.cases import OWN
from edgetta.bench.memory.summary import ENGINE, Row, goals, ratio_text, tent_of, way

TITLES = {
    "inference": "plain inference",
    "bn": "BatchNorm statistics",
    "tent": "TENT",
    "eata": "EATA",
    "cotta": "CoTTA",
    "ecotta-stock": "EcoTTA on stock autograd",
    OWN: "**edgetta**",
}


def section(data: Mapping[str, Any], results: str, plot: str) -> str:
    """Markdown: how it was measured, one table per model, the plot, and whether the goals hold."""
    rows: list[Row] = data["rows"]
    machine, versions = data["machine"], data["versions"]
    runtime = f", ONNX Runtime {versions['onnxruntime']}" if "onnxruntime" in versions else ""
    threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    lines = [
        "Peak of the process above the loaded, warmed-up model, and the most that a whole process has resident over",
        "50 steps, a fresh process for every row",
        f"({machine['processor']}, {threads}, torch {versions['torch']}{runtime}, {data['date']}; `edgetta bench",
        f"memory`, [{results}]({results})).",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        lines += ["", *_table([row for row in rows if row["model"] == model])]
    lines += ["", f"![Peak memory of a step, method by method]({plot})", ""]
    lines += [f"- {goal.told()}" for goal in goals(rows)]
    return "\n".join(lines)


def _table(rows: Sequence[Row]) -> Iterator[str]:
    """The baselines, and what there is to choose from on ONNX Runtime."""
    yield f"`{rows[0]['model']}`, batch {rows[0]['batch']}:"
    yield ""
    yield "| method | engine | kept | peak | of inference | of TENT | whole process | analytic |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in _shown(rows):
        tent = tent_of(rows, row)
        cells = (
            _title(row),
            "ONNX Runtime" if row["engine"] == ENGINE else "torch",
            _megabytes(row["kept_bytes"]),
            _megabytes(row["peak_bytes"]),
            ratio_text(row["peak_bytes"], row["inference_peak_bytes"]),
            ratio_text(row["peak_bytes"], None if tent is None else tent["peak_bytes"]),
            "" if row.get("process_bytes") is None else _megabytes(row["process_bytes"]),
            "" if row["analytic_bytes"] is None else _megabytes(row["analytic_bytes"]),
        )
        yield f"| {' | '.join(cells)} |"


def _shown(rows: Sequence[Row]) -> list[Row]:
    """Every row but those of edgetta on other engines than the one for which the goals are set."""
    return [row for row in rows if row["method"] != OWN or row["engine"] == ENGINE]


def _title(row: Row) -> str:
    if row["method"] != OWN:
        return TITLES[row["method"]]
    return f"{TITLES[OWN]} {way(row)}"


def write_plot(path: Path, rows: Sequence[Row]) -> Path:
    """Bars of the peaks, one panel per model, as SVG; the same rows give the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    from edgetta.report import PALETTE

    models = list(dict.fromkeys(row["model"] for row in rows))
    shown = {model: _shown([row for row in rows if row["model"] == model]) for model in models}
    heights = [len(found) for found in shown.values()]
    figure = Figure(figsize=(8, 0.6 + 0.3 * sum(heights) + 0.6 * len(models)), layout="constrained")
    axes = figure.subplots(len(models), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (model, found) in zip(axes, shown.items(), strict=True):
        peaks = [row["peak_bytes"] / 1e6 for row in found]
        colours = [PALETTE[4] if row["method"] == OWN else PALETTE[0] for row in found]
        bars = axis.barh(range(len(found)), peaks, color=colours)
        axis.barh(range(len(found)), [r["kept_bytes"] / 1e6 for r in found], height=0.25, color="black", alpha=0.55)
        axis.bar_label(bars, [f"{peak:.0f}" for peak in peaks], padding=3, fontsize=8)
        axis.set_yticks(range(len(found)), [_plain(row) for row in found], fontsize=8)
        axis.invert_yaxis()
        axis.set_title(f"{model}, batch {found[0]['batch']}", fontsize=10, loc="left")
        axis.set_xlabel("peak above the loaded model, MB (dark: kept between forward and backward)", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "edgetta memory"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
    return path


def _plain(row: Row) -> str:
    engine = "ONNX Runtime" if row["engine"] == ENGINE else "torch"
    return f"{_title(row).replace('*', '').replace('`', '')} ({engine})"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"
