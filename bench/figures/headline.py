"""What README shows: five methods side by side, as a table and as a picture, and what adapting costs."""

from __future__ import annotations

from statistics import median
from typing import Any

from edgetta.bench.figures.results import HERE, Results, mean, megabytes, number, table

PICTURE = "headline.svg"
MEMORY = {"process_bytes": "memory of the process", "peak_bytes": "memory of a step"}
NAMES = {
    "source": "source (no adaptation)",
    "batch_norm_statistics": "BatchNorm statistics",
    "tent": "TENT",
    "roid": "ROID",
    "edgetta": "**edgetta**",
}
"""The five rows of the first table, by the name of the method in result files."""


def shuffled(results: Results, method: str) -> float | None:
    """Error in % on the stream of 15 corruptions, classes shuffled."""
    return mean(results.rows("accuracy", stream="continual", images=2000, batch=64, method=method), "error")


def in_order(results: Results, method: str) -> float | None:
    """Error in % over 15 corruptions, frames sorted by class."""
    wanted = {"order": "sorted", "batch": 64, "severity": 5, "network": "resnet20_jpegft", "method": method}
    return mean(results.rows("camera", **wanted), "error")


def timed(results: Results) -> dict[str, Any] | None:
    """The row of the latency bench that has the default runtime beside its baselines, if there is one."""
    rows = results.rows("latency", model="wrn40_2", batch=64, engine="onnxruntime")
    return next((row for row in rows if "tent_seconds" in row), None)


def times_inference(results: Results, method: str) -> float | None:
    """Time of a step beside inference; where no bench timed all methods, that of a whole run, median over seeds."""
    row = timed(results)
    if row is not None:
        name = {"source": "inference", "batch_norm_statistics": "batch_norm", "edgetta": "step"}.get(method, method)
        seconds = row.get(f"{name}_seconds")
        return None if seconds is None else seconds / row["inference_seconds"]
    wanted = {"stream": "continual", "images": 2000, "batch": 64}
    own, plain = (results.rows("accuracy", **wanted, method=name) for name in (method, "source"))
    if not own or not plain:
        return None
    return median(row["seconds"] for row in own) / median(row["seconds"] for row in plain)


def memory_field(results: Results) -> str:
    """The whole process where the bench has it, else what a step takes above the loaded model."""
    return "process_bytes" if any("process_bytes" in row for row in results.rows("memory")) else "peak_bytes"


def process_memory(results: Results, method: str) -> float | None:
    """Bytes of `memory_field`, WRN-40-2 at batch 64; edgetta at its smallest."""
    name = {"source": "inference", "batch_norm_statistics": "bn"}.get(method, method)
    rows = results.rows("memory", model="wrn40_2", batch=64, method=name)
    if method in ("source", "edgetta"):
        rows = [row for row in rows if row["engine"] == "onnxruntime"]
    return min((row[memory_field(results)] for row in rows), default=None)


def headline(results: Results) -> str:
    columns = ["", "error, shuffled", "error, sorted by class", "time of inference", MEMORY[memory_field(results)]]
    rows = [
        [
            NAMES[method],
            number(shuffled(results, method), ".1f", " %"),
            number(in_order(results, method), ".1f", " %"),
            number(times_inference(results, method), ".1f", "x"),
            megabytes(process_memory(results, method)),
        ]
        for method in NAMES
    ]
    if in_order(results, "edgetta") is None:
        columns.pop(2)
        for row in rows:
            row.pop(2)
    camera = f", [camera]({HERE}/camera.json)" if len(columns) == 5 else ""
    whole = memory_field(results) == "process_bytes"
    memory = "that of the whole process, imports and model included" if whole else "what a step takes above the model"
    time, timing = "Time is that of whole runs", ""
    if timed(results) is not None:
        time, timing = "Time is that of a step of WRN-40-2, batch 64", f", [latency]({HERE}/latency.json)"
    told = f"""
ResNet-20, CIFAR-10 under 15 corruptions at severity 5, batches of 64, three seeds. {time}; memory is
{memory}, WRN-40-2 at batch 64, edgetta at its smallest.
{results.origin("accuracy")}
([accuracy]({HERE}/accuracy.json), [memory]({HERE}/memory.json){timing}{camera}).

![Error of five methods]({HERE}/{PICTURE})"""
    return table(columns, rows) + "\n" + told


def headline_picture(results: Results) -> str:
    """The errors of the first table as bars, in SVG."""
    orders = [("classes shuffled", "#5b8def", shuffled), ("sorted by class", "#0f9d78", in_order)]
    kinds = [kind for kind in orders if kind[2](results, "edgetta") is not None]
    bar, top, left, scale = 14, 34, 190, 6.0  # pixels; the last per point of error
    step = bar * len(kinds) + 14
    width, height = int(left + 60 * scale + 60), top + len(NAMES) * step
    shapes = [f'<rect width="{width}" height="{height}" fill="white"/>']
    for place, (label, colour, _) in enumerate(kinds):
        x = left + 150 * place
        shapes.append(f'<rect x="{x}" y="8" width="12" height="12" fill="{colour}"/>')
        shapes.append(f'<text x="{x + 18}" y="18">{label}</text>')
    for row, (method, name) in enumerate(NAMES.items()):
        y, weight = top + row * step, "bold" if method == "edgetta" else "normal"
        middle = y + bar * len(kinds) // 2 + 3
        shapes.append(f'<text x="{left - 8}" y="{middle}" text-anchor="end" font-weight="{weight}">')
        shapes.append(f"{name.strip('*')}</text>")
        for place, (_, colour, error) in enumerate(kinds):
            value, at = error(results, method), y + place * bar
            if value is not None:
                length = f"{value * scale:.1f}"
                shapes.append(f'<rect x="{left}" y="{at}" width="{length}" height="{bar - 2}" fill="{colour}"/>')
                shapes.append(f'<text x="{left + value * scale + 5:.1f}" y="{at + 10}">{value:.1f} %</text>')
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    font = 'font-family="sans-serif" font-size="12" fill="#333"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font}>\n' + "\n".join(shapes) + "\n</svg>\n"


def costs(results: Results) -> str:
    """The sentences on costs in README."""
    own, tent, plain = (process_memory(results, name) for name in ("edgetta", "tent", "source"))
    assert own is not None and tent is not None and plain is not None
    times, kind = times_inference(results, "edgetta"), MEMORY[memory_field(results)].capitalize()
    off, on = (shuffled(results, name) for name in ("warm_up_only", "edgetta"))
    assert times is not None and off is not None and on is not None
    return f"""\
- Time: an adapting stream takes {times:.1f} times inference. `--when on-drift` learns only until statistics have
  settled, `--when 'budgeted 20%'` for a share of the time.
- {kind}: from {own / plain:.1f} times plain inference's, {own / tent:.2f} times TENT's on stock torch.
- Most of the gain is alignment of statistics: learning itself takes the error from {off:.1f} to {on:.1f} %."""
