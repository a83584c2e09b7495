"""How long a step takes beside plain inference and beside others' methods: `edgetta bench latency`.

Plain inference is the whole backbone as ONE graph with its BatchNorms folded, on the same engine and threads. The
steps are those of the default runtime, from the call to the result, statistics of the stream and all:

off       adaptation off, once the stream is settled: predictions, and moments of some images of some batches
step      a batch that is predicted and learnt from
settled   a batch while nothing is due (`when` on-drift, long after a change)
first     the batches after a change, whose own moments count, in several passes: their mean

TENT, EATA, ROID and BatchNorm statistics run in stock torch, with their published settings. All kinds are measured in
turn, round after round, in one process, so that what slows the machine slows them alike; medians are reported. What is
freed stays with the process, as in `edgetta run` without a budget.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetta.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgetta.adaptation.adapter import Adapter
    from edgetta.engines.contract import Engine
    from edgetta.export.adaptable import AdaptableModel
    from edgetta.models import Model

    Array = NDArray[np.float32]

ENGINES = ("torch", "onnxruntime")
FIRST = 4  # batches after a change that count as first
BASELINES = ("batch_norm", "tent", "eata", "roid")


@click.command(epilog="Example: edgetta bench latency --model wrn40_2,resnet20 --batch 64 --json latency.json")
@click.option("--model", "models", default="wrn40_2", show_default=True, help="Networks, comma-separated.")
@click.option("--batch", default=64, show_default=True, type=click.IntRange(1), help="Images per step.")
@click.option("--engine", "engines", default="onnxruntime", show_default=True, help="Engines, comma-separated.")
@click.option("--repetitions", default=9, show_default=True, type=click.IntRange(1), help="Rounds; medians are shown.")
@click.option("--threads", default=0, type=click.IntRange(0), help="Threads per engine; 0: as many as torch takes.")
@click.option("--parts", default=4, show_default=True, type=click.IntRange(1), help="Meta-networks (K).")
@click.option(
    "--json", "path", type=click.Path(path_type=Path), help="Write the result file here; rows of other cases stay."
)
def command(
    models: str, batch: int, engines: str, repetitions: int, threads: int, parts: int, path: Path | None
) -> None:
    """Time of the default runtime's steps beside plain inference, TENT, EATA, ROID and BatchNorm statistics.

    The ratios are what to read: seconds belong to the machine, ratios travel better. Run it on a machine that does
    nothing else.
    """
    from edgetta.bench.result_file import rows_to_continue, write_results
    from edgetta.memory.allocator import keep_freed_memory

    chosen = _chosen(engines, ENGINES, "--engine")
    settings = {"repetitions": repetitions, "parts": parts, "entropy_margin": 1.0, "first_batches": FIRST}
    earlier = [] if path is None else rows_to_continue(path, settings)
    keep_freed_memory()
    rows: list[dict[str, Any]] = []
    for name in models.split(","):
        rows += measure(name.strip(), batch, chosen, repetitions, threads, parts)
    show(rows)
    if path is not None:
        here = {(row["model"], row["batch"], row["engine"]) for row in rows}
        kept = [row for row in earlier if (row["model"], row["batch"], row["engine"]) not in here]
        write_results(path, [*kept, *rows], settings)
        click.echo(f"wrote {path}")


def measure(
    name: str, batch: int, engines: Sequence[str], repetitions: int = 9, threads: int = 0, parts: int = 4
) -> list[dict[str, Any]]:
    """Rows of the result file for one network: medians of seconds per batch.

    Every image counts in the objective (entropy margin 1), so that a step always has its full backward.
    """
    import torch

    from edgetta.models import load_model

    if threads:
        torch.set_num_threads(threads)
    model = load_model(name)
    shipped = _shipped(model, parts)
    frames = [_pictures(batch, model.input_shape, seed) for seed in range(3)]
    runs: dict[str, Callable[[], object]] = _baselines(model, torch.from_numpy(frames[0]))
    for engine in engines:
        runs |= {f"{engine} {kind}": run for kind, run in _runs(shipped, engine, frames).items()}
    seconds = _medians(runs, repetitions)
    return [
        {
            "model": name,
            "batch": batch,
            "engine": engine,
            "learn_images": min(batch, shipped[1].learn_images),
            "inference_seconds": seconds[f"{engine} inference"],
            "off_seconds": seconds[f"{engine} off"],
            "step_seconds": seconds[f"{engine} step"],
            "settled_seconds": seconds[f"{engine} settled"],
            "first_batches_seconds": seconds[f"{engine} first"],
            **{f"{other}_seconds": seconds[other] for other in BASELINES},
            "repetitions": repetitions,
        }
        for engine in engines
    ]


def _shipped(model: Model, parts: int) -> tuple[AdaptableModel, Any]:
    """The network with the default settings, but that every image counts and nothing is taken for a change."""
    from edgetta.adaptation.config import AdaptConfig
    from edgetta.export.derive import derive
    from edgetta.offline.network import Network
    from edgetta.offline.source_statistics import with_source_statistics

    published = model.parts
    derived = derive(
        model.module,
        model.input_shape,
        published.cuts(parts) if published is not None else None,
        parts,
        kernel=published.kernel if published is not None else None,
    )
    network = with_source_statistics(Network(derived.programs), None)
    config = AdaptConfig(entropy_margin=1.0, small_batch=1, change=float("inf"), hold_back=False)
    return replace(derived, programs=network.programs), config


def _runs(shipped: tuple[AdaptableModel, Any], name: str, frames: Sequence[Array]) -> dict[str, Callable[[], object]]:
    """What is timed on one engine, by kind."""
    import torch

    from edgetta.adaptation.adapter import Adapter
    from edgetta.engines.blocked import Lowered
    from edgetta.engines.onnxruntime import OnnxRuntimeEngine, Session
    from edgetta.engines.torch import TorchEngine
    from edgetta.export.content import measure_content
    from edgetta.segments.onnx_spelling import spelled
    from edgetta.segments.torch_engine import Program

    derived, config = shipped
    programs, threads = derived.programs, torch.get_num_threads()
    content = measure_content(programs, (torch.from_numpy(each) for each in frames))
    engine: Engine = TorchEngine(programs) if name == "torch" else OnnxRuntimeEngine(programs, threads)
    adapting = Adapter(engine, config, content)
    off = Adapter(engine, replace(config, when="off"), content)
    resting = Adapter(engine, replace(config, when="on-drift"), content)
    young = Adapter(engine, config, content)
    for adapter in (adapting, off, resting):
        _settle(adapter, frames)
    if name == "torch":
        program = Program(derived.source)
        images = torch.from_numpy(frames[0])

        def inference() -> object:
            with torch.no_grad():
                return program.run({"x": images})
    else:
        plain = Lowered(spelled(derived.source), {}, blocks=False)  # ONNX Runtime's own blocks are those of inference
        session = Session(plain, derived.source, {}, threads, "the source network")

        def inference() -> object:
            return session.run({"x": frames[0]})

    turn = [0]

    def step(adapter: Adapter) -> Callable[[], object]:
        def run() -> object:
            turn[0] += 1
            return adapter.step(frames[turn[0] % len(frames)])

        return run

    def several(adapter: Adapter) -> Callable[[], float]:
        """Mean seconds of as many batches as there are between two that are measured."""

        def run() -> float:
            begun = time.perf_counter()
            for each in frames:
                adapter.step(each)
            return (time.perf_counter() - begun) / len(frames)

        return run

    def first() -> float:
        young.state = young.begin()
        begun = time.perf_counter()
        for number in range(FIRST):
            young.step(frames[number % len(frames)])
        return (time.perf_counter() - begun) / FIRST

    return {
        "inference": inference,
        "off": several(off),
        "step": step(adapting),
        "settled": several(resting),
        "first": first,
    }


def _settle(adapter: Adapter, frames: Sequence[Array]) -> None:
    """Have the adapter see a stream until its average reaches back as far as it may."""
    for number in range(1000):
        if adapter.settled:
            return
        adapter.step(frames[number % len(frames)])


def _baselines(model: Model, images: Any) -> dict[str, Callable[[], object]]:
    from edgetta.bench.baselines import BatchNormStatistics, Eata, EataConfig, Roid, RoidConfig, Tent

    source = [images]
    methods: dict[str, Callable[[Any], object]] = {
        "batch_norm": BatchNormStatistics(model.module),
        "tent": Tent(model.module),
        "eata": Eata(model.module, source, EataConfig()),
        "roid": Roid(model.module, RoidConfig(), 0),
    }
    return {name: lambda method=method: method(images) for name, method in methods.items()}  # type: ignore[misc]


def _pictures(count: int, shape: tuple[int, int, int], seed: int) -> Array:
    """Images (N, C, H, W) that differ as photographs do."""
    from edgetta.offline.source_statistics import synthetic_images

    return next(synthetic_images(shape, count=count, batch=count, seed=seed)).numpy()


def _medians(runs: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Seconds of each run: the median over rounds, after one round that does not count.

    A run that returns a number of seconds has measured itself.
    """
    samples: dict[str, list[float]] = {key: [] for key in runs}
    for round_number in _progress(repetitions + 1):
        for key, run in runs.items():
            start = time.perf_counter()
            result = run()
            if round_number:
                samples[key].append(result if isinstance(result, float) else time.perf_counter() - start)
    return {key: statistics.median(values) for key, values in samples.items()}


def _progress(count: int) -> Iterator[int]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(range(count), "measuring", console=console, disable=not console.is_terminal)


def _chosen(text: str, known: Sequence[str], option: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise UsageError(f"{option} {name!r} is unknown; choose from {', '.join(known)}")
    return names


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the rows: milliseconds, times plain inference, times TENT."""
    from edgetta.cli.tables import print_table

    kinds = ("off", "step", "settled", "first_batches", *BASELINES)
    columns = ("model", "batch", "engine", "inference ms", *(f"{kind} ms" for kind in kinds), "step / TENT")
    cells = []
    for row in rows:
        plain = row["inference_seconds"]
        times = [f"{1e3 * row[f'{k}_seconds']:.0f} (x{row[f'{k}_seconds'] / plain:.2f})" for k in kinds]
        ratio = f"x{row['step_seconds'] / row['tent_seconds']:.2f}"
        cells.append((row["model"], str(row["batch"]), row["engine"], f"{1e3 * plain:.0f}", *times, ratio))
    print_table(columns, cells, left=("model", "engine"))
