"""What a device does with a bundle: `edgetta bench device`. Rows for a table in which devices stand side by side.

A forward is a prediction of the adapted network with adaptation off; a step predicts and updates, and every sample
counts in it, so that it always has its full backward. What is measured is the bundle that is shipped, on the engine
that will run it: nothing is exported here, and no exporter is needed.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from edgetta.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from edgetta.bundle import Bundle
    from edgetta.engines.contract import Array
    from edgetta.runtime import Runtime

WARM_UP = 3
"""Calls that do not count: engines choose kernels, clocks rise."""

EXAMPLES = """\b
Examples:
  edgetta bench device bundle/ --batch 1,16,64
  edgetta bench device bundle/ --engine torch,onnxruntime --data photos/ --json device_orin.json
  edgetta bench device --table device_orin.json --table device_pi5.json      (Markdown of several devices)
"""


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated calls, and what they cost.

    Attributes:
        median, p95: over the calls that count.
        joules: of one call, of the whole module; None where the device does not measure its power.
        watts: mean power meanwhile.
    """

    median: float
    p95: float
    joules: float | None
    watts: float | None


@click.command(epilog=EXAMPLES)
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--batch", "batches", default="1,16,64", show_default=True, help="Images per call, comma-separated.")
@click.option("--engine", "engines", default="auto", show_default=True, help="Engines, comma-separated.")
@click.option("--recompute", is_flag=True, help="Keep nothing for the backward, as `edgetta run --recompute`.")
@click.option("--threads", default=0, type=click.IntRange(0), help="Processor threads; 0: as many as torch takes.")
@click.option("--repetitions", default=20, show_default=True, type=click.IntRange(2), help="Calls of each kind.")
@click.option("--data", metavar="SOURCE", help="Labelled images (folder of classes, .npz): also measure the error.")
@click.option("--limit", type=click.IntRange(1), help="At most so many labelled images.")
@click.option("--name", help="Name of the device in the table; by default what it says of itself.")
@click.option("--json", "path", metavar="FILE", type=click.Path(path_type=Path), help="Write the result file here.")
@click.option(
    "--table",
    "tables",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Print result files as one Markdown table, and measure nothing.",
)
def command(bundle: Path | None, tables: tuple[Path, ...], **values: Any) -> None:
    """Latency, memory, energy and error of BUNDLE on this device: one row per engine and batch.

    Lock the clocks before (`sudo jetson_clocks`), and leave the device alone. Energy is the whole module's, idle power
    included, and only where it measures its own power (a Jetson's rails).
    """
    if tables:
        if bundle is not None:
            raise UsageError("--table prints what was measured: leave out the bundle")
        click.echo(markdown([row for table in tables for row in read_rows(table)]))
        return
    if bundle is None:
        raise UsageError("name the bundle to measure, or the files of a --table")
    _measure(bundle, **values)


def _measure(bundle: Path, batches: str, engines: str, name: str | None, path: Path | None, **values: Any) -> None:
    from edgetta.bench.result_file import write_results
    from edgetta.bundle import read_bundle
    from edgetta.cli.progress import progress_bar
    from edgetta.cli.tables import print_table

    opened = read_bundle(bundle)
    device = device_facts(name)
    cases = [(engine.strip(), batch) for engine in engines.split(",") for batch in _numbers(batches)]
    rows = []
    with progress_bar("measuring", len(cases)) as update:
        for number, (engine, batch) in enumerate(cases):
            update(number, note=f"{engine}, batch {batch}")
            rows.append({**device, **measure(opened, engine, batch, **values)})
    print_table(list(COLUMNS), [cells(row) for row in rows], left=list(COLUMNS)[:5])
    if path is not None:
        settings = {key: value for key, value in values.items() if value is not None}
        write_results(path, rows, {**settings, "entropy_margin": 1.0, "warm_up": WARM_UP})
        click.echo(f"wrote {path}")


def device_facts(name: str | None = None) -> dict[str, Any]:
    """The columns that say which device it is, and in which state."""
    from edgetta.devices import doctor
    from edgetta.devices.machine import parse_cpuinfo
    from edgetta.devices.packages import usable_cores

    release, mode, profile = doctor.tegra_release(), doctor.power_mode(), doctor.device_profile()
    cpuinfo = Path("/proc/cpuinfo")
    processor = parse_cpuinfo(cpuinfo.read_text()).model if cpuinfo.exists() else ""
    said = doctor.jetson_model() or f"{processor or platform.machine()}, {usable_cores()} cores"
    return {
        "device": name or said,
        "profile": profile.name if profile else None,
        "jetpack": release.jetpack if release else None,
        "l4t": release.version if release else None,
        "power_mode": mode.name if mode else None,
    }


def measure(
    bundle: Bundle,
    engine: str,
    batch: int,
    recompute: bool = False,
    threads: int = 0,
    repetitions: int = 20,
    data: str | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """One row: seconds, bytes, joules and error of a bundle on an engine at a batch size.

    Raises `UsageError` and `BundleError` as `edgetta.load` does, `MeasurementError` where memory cannot be measured.
    """
    import numpy as np

    from edgetta.adaptation.step_plan import StepPlan
    from edgetta.devices import thermal
    from edgetta.memory.step_peak import StepCase, measure_step
    from edgetta.runtime import Runtime

    # The peak first, in a process of its own: what is measured here must not stand in its way.
    peak = measure_step(StepCase(str(bundle.path), batch, engine, keep=not recompute, threads=threads))
    available = _available()
    every_sample = replace(bundle.config, entropy_margin=1.0, small_batch=1, when="always")
    begun = time.perf_counter()
    memory = StepPlan(keep=not recompute)
    runtime = Runtime(bundle, engine, every_sample, threads=threads, memory=memory)
    loaded = time.perf_counter() - begun
    images = np.random.default_rng(0).random((batch, *bundle.input_shape), np.float32)
    programs = runtime.engine.programs
    begun = time.perf_counter()
    runtime.step(images)
    first = time.perf_counter() - begun
    forward = timed(lambda: runtime.engine.predict(images, programs.shipped, programs.source), repetitions)
    step = timed(lambda: runtime.step(images), repetitions)
    taken = None if available is None else max(available - (_available() or 0), 0)
    on_gpu = gpu_peak(lambda: runtime.step(images))
    hottest = thermal.hottest(thermal.read_zones())
    return {
        "model": bundle.name,
        "engine": runtime.engine.name,
        "precision": precision(runtime),
        "gradient": "recompute" if recompute else "keep",
        "bn": bundle.config.batch_norm,
        "batch": batch,
        "load_seconds": loaded,
        "first_step_seconds": first,
        "forward_seconds": forward.median,
        "forward_p95_seconds": forward.p95,
        "step_seconds": step.median,
        "step_p95_seconds": step.p95,
        "frames_per_second": batch / step.median,
        "peak_bytes": on_gpu or peak.peak_bytes,
        "peak_source": "torch's CUDA allocator" if on_gpu else peak.source,
        "taken_bytes": taken,
        "kept_bytes": peak.kept_bytes,
        "forward_joules_per_frame": None if forward.joules is None else forward.joules / batch,
        "joules_per_frame": None if step.joules is None else step.joules / batch,
        "watts": step.watts,
        "celsius": hottest.celsius if hottest else None,
        "repetitions": repetitions,
        **(_NO_ERROR if data is None else stream_errors(bundle, engine, batch, data, limit, threads)),
    }


def timed(call: Callable[[], object], repetitions: int) -> Timing:
    """Seconds and joules of a call, after some that do not count. It must end with its result on the processor."""
    from edgetta.devices.power import PowerMeter

    for _ in range(WARM_UP):
        call()
    seconds = []
    with PowerMeter() as meter:
        for _ in range(repetitions):
            begun = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begun)
    joules = None if meter.joules is None else meter.joules / repetitions
    return Timing(statistics.median(seconds), percentile(seconds, 95), joules, meter.watts)


def gpu_peak(call: Callable[[], object]) -> int:
    """The highest rise of torch's CUDA allocator, from which engines take theirs, during a call; 0 without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return 0
    level = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return max(torch.cuda.max_memory_allocated() - level, 0)


def _available() -> int | None:
    """Memory that the whole device has left: what an engine takes of a Jetson's GPU shows here, too."""
    from edgetta.devices.machine import parse_meminfo

    meminfo = Path("/proc/meminfo")
    memory = parse_meminfo(meminfo.read_text()) if meminfo.exists() else None
    return memory.available if memory else None


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least so many percent of the values do not exceed."""
    return sorted(values)[max(math.ceil(len(values) * percent / 100), 1) - 1]


def precision(runtime: Runtime) -> str:
    """The number format of the backbone: what the engine was built for, else what the bundle's weights have."""
    return str(getattr(runtime.engine, "precision", None) or runtime.bundle.precision)


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "device": lambda row: str(row["device"]),
    "power mode": lambda row: row.get("power_mode") or "-",
    "JetPack": lambda row: row.get("jetpack") or "-",
    "model": lambda row: str(row["model"]),
    "engine": lambda row: str(row["engine"]),
    "precision": lambda row: str(row["precision"]),
    "batch": lambda row: str(row["batch"]),
    "forward ms (p95)": lambda row: f"{1e3 * row['forward_seconds']:.1f} ({1e3 * row['forward_p95_seconds']:.1f})",
    "step ms (p95)": lambda row: f"{1e3 * row['step_seconds']:.1f} ({1e3 * row['step_p95_seconds']:.1f})",
    "frames/s": lambda row: f"{row['frames_per_second']:.1f}",
    "peak MB": lambda row: f"{row['peak_bytes'] / 1e6:.1f}",
    "mJ/frame": lambda row: "-" if row["joules_per_frame"] is None else f"{1e3 * row['joules_per_frame']:.1f}",
    "error % (source)": lambda row: (
        "-" if row.get("error") is None else f"{100 * row['error']:.1f} ({100 * row['source_error']:.1f})"
    ),
}


def cells(row: dict[str, Any]) -> list[str]:
    """A row as the table shows it."""
    return [text(row) for text in COLUMNS.values()]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a Markdown table; numbers are set to the right."""
    lines = [list(COLUMNS), ["---" if number < 6 else "---:" for number in range(len(COLUMNS))]]
    lines += [[cell.replace("|", "\\|") for cell in cells(row)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a result file. Raises `UsageError` for a file that is none of this bench's."""
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
        for row in rows:
            cells(row)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no result file of `edgetta bench device` ({error})") from error
    return rows


_NO_ERROR: dict[str, Any] = {"error": None, "source_error": None, "images": 0}


def stream_errors(
    bundle: Bundle, engine: str, batch: int, data: str, limit: int | None = None, threads: int = 0
) -> dict[str, Any]:
    """Error of the adapting network over labelled images in their order, and of the unadapted source."""
    from edgetta.runtime import Runtime
    from edgetta.sources.labelled import check_classes, read_labelled

    found = read_labelled(data, bundle.input_shape, bundle.classes, limit, resize=bundle.resize)
    labelled = check_classes(found, bundle.class_count)
    # As it runs on the device: the bundle's own settings, and from its start.
    fresh = Runtime(bundle, engine, threads=threads, check=False)
    wrong = source_wrong = 0
    for start in range(0, len(labelled), batch):
        images, labels = labelled.images[start : start + batch], labelled.labels[start : start + batch]
        images = images.float() / 255 if not images.is_floating_point() else images
        wrong += _wrong(fresh.step(images).logits, labels)
        source_wrong += _wrong(fresh.source(images), labels)
    return {"error": wrong / len(labelled), "source_error": source_wrong / len(labelled), "images": len(labelled)}


def _wrong(logits: Array, labels: Tensor) -> int:
    return int((np.asarray(logits).argmax(1) != np.asarray(labels)).sum())


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UsageError(f"--batch {text!r}: give numbers of images, comma-separated, such as 1,16,64")
    return numbers
