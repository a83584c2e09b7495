"""How long a step takes beside plain inference: `edgetta bench latency`.

Plain inference is the whole backbone as ONE graph with its BatchNorms folded, on the same engine and threads.
Prediction is the adapted network with adaptation off. A step predicts and updates. Packing is what a step spends on
making bits of masks and masks of bits, measured in steps of their own. All kinds are measured in turn, round after
round, in one process, so that what slows the machine slows them alike; medians are reported. What is freed stays with
the process, as in `edgetta run` without a budget.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetta.errors import UsageError

if TYPE_CHECKING:
    from edgetta.adaptation.model import Gradient
    from edgetta.adaptation.network import BatchNorm
    from edgetta.bundle import Bundle
    from edgetta.export.batch_norm import Adapt
    from edgetta.models import Model

ENGINES = ("torch", "onnxruntime")
GRADIENTS = ("exact", "recompute", "local")
POLICIES = ("source", "batch", "ema")
ADAPTING = ("meta", "bias", "affine")


@dataclass(frozen=True)
class Case:
    """One row: what runs how."""

    engine: str
    gradient: Gradient
    batch_norm: BatchNorm
    adapt: Adapt = "affine"


@click.command(
    epilog="Example: edgetta bench latency --model wrn40_2 --batch 64 --engine onnxruntime --gradient exact,local "
    "--bn source,batch --json latency.json"
)
@click.option("--model", "models", default="wrn40_2", show_default=True, help="Networks, comma-separated.")
@click.option("--batch", default=64, show_default=True, type=click.IntRange(1), help="Images per step.")
@click.option("--engine", "engines", default="torch,onnxruntime", show_default=True, help="Engines, comma-separated.")
@click.option("--gradient", "gradients", default="exact,local,recompute", show_default=True, help="Gradient modes.")
@click.option("--bn", "policies", default="source,batch", show_default=True, help="BatchNorm policies.")
@click.option("--adapt", default="meta,affine", show_default=True, help="What adapts: meta, bias, affine.")
@click.option("--repetitions", default=9, show_default=True, type=click.IntRange(1), help="Rounds; medians are shown.")
@click.option("--threads", default=0, type=click.IntRange(0), help="Threads per engine; 0: as many as torch takes.")
@click.option("--parts", default=4, show_default=True, type=click.IntRange(1), help="Meta-networks (K).")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the result file here.")
def command(
    models: str,
    batch: int,
    engines: str,
    gradients: str,
    policies: str,
    adapt: str,
    repetitions: int,
    threads: int,
    parts: int,
    path: Path | None,
) -> None:
    """Time of a step beside plain inference, per engine, gradient mode and BatchNorm policy.

    The ratio to inference is what to read: seconds belong to the machine, ratios travel better. Run it on a machine
    that does nothing else.
    """
    from edgetta.bench.result_file import write_results
    from edgetta.memory.allocator import keep_freed_memory

    cases = [
        Case(engine, gradient, policy, what)  # type: ignore[arg-type]
        for what in _chosen(adapt, ADAPTING, "--adapt")
        for policy in _chosen(policies, POLICIES, "--bn")
        for engine in _chosen(engines, ENGINES, "--engine")
        for gradient in _chosen(gradients, GRADIENTS, "--gradient")
    ]
    keep_freed_memory()
    rows: list[dict[str, Any]] = []
    for name in models.split(","):
        rows += measure(name.strip(), batch, cases, repetitions, threads, parts)
    _print(rows)
    if path is not None:
        settings = {"batch": batch, "repetitions": repetitions, "parts": parts, "entropy_margin": 1.0, "passes": 1}
        write_results(path, rows, settings)
        click.echo(f"wrote {path}")


def measure(
    name: str, batch: int, cases: Sequence[Case], repetitions: int = 9, threads: int = 0, parts: int = 4
) -> list[dict[str, Any]]:
    """Rows of the result file for one network: seconds of inference, prediction and step, medians over rounds.

    Every sample counts in the objective (entropy margin 1), so that a step always has its full backward.
    """
    import torch

    from edgetta.bundle import build_network, source_program
    from edgetta.models import load_model
    from edgetta.segmented.adapter import AdaptConfig, Adapter

    if threads:
        torch.set_num_threads(threads)
    model = load_model(name)
    images = torch.rand(batch, *model.input_shape, generator=torch.Generator().manual_seed(0))
    config = AdaptConfig(entropy_margin=1.0, small_batch=1)
    forms = {case: ("source" if case.batch_norm == "source" else "adaptive", case.adapt) for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        bundles = {form: _bundle(model, parts, *form, Path(folder)) for form in dict.fromkeys(forms.values())}
        runs: dict[Any, Callable[[], object]] = {}
        for engine in dict.fromkeys(case.engine for case in cases):
            plain = next(iter(bundles.values()))
            runs[engine] = partial(source_program(plain, engine, threads), images)
        for case in cases:
            make = partial(build_network, bundles[forms[case]], case.engine, threads=threads)
            off = (case.engine, case.batch_norm, case.adapt)
            if off not in runs:  # the gradient mode says nothing where nothing adapts
                runs[off] = partial(make(batch_norm=case.batch_norm).forward, images, keep=False)
            runs[case] = partial(Adapter(make(case.gradient, case.batch_norm), config).step, images)
        seconds = _medians(runs, repetitions)
        packing = _medians({case: _Packing(runs[case]) for case in cases}, repetitions)
    return [
        {
            "model": name,
            "batch": batch,
            "engine": case.engine,
            "gradient": case.gradient,
            "bn": case.batch_norm,
            "adapt": case.adapt,
            "inference_seconds": seconds[case.engine],
            "predict_seconds": seconds[case.engine, case.batch_norm, case.adapt],
            "step_seconds": seconds[case],
            "packing_seconds": packing[case],
            "repetitions": repetitions,
        }
        for case in cases
    ]


class _Packing:
    """A step that tells how long it packed and unpacked residuals."""

    def __init__(self, step: Callable[[], object]) -> None:
        self._step = step

    def __call__(self) -> float:
        from edgetta.segments.contract import Residual

        spent = 0.0

        def timed(function: Callable[..., object]) -> Callable[..., object]:
            def run(*arguments: Any) -> object:
                nonlocal spent
                start = time.perf_counter()
                result = function(*arguments)
                spent += time.perf_counter() - start
                return result

            return run

        pack, unpack = Residual.pack, Residual.unpack
        Residual.pack, Residual.unpack = timed(pack), timed(unpack)  # type: ignore[method-assign, assignment]
        try:
            self._step()
        finally:
            Residual.pack, Residual.unpack = pack, unpack  # type: ignore[method-assign]
        return spent


def _bundle(model: Model, parts: int, form: str, adapt: Adapt, folder: Path) -> Bundle:
    from edgetta.adaptation.model import build
    from edgetta.bundle import read_bundle
    from edgetta.export.bundle_writer import write_bundle
    from edgetta.export.derive import derive
    from edgetta.offline.source_statistics import set_source_statistics
    from edgetta.segmented.adapter import AdaptConfig
    from edgetta.segments.torch_engine import TorchSegment

    published = model.parts
    cuts = published.cuts(parts) if published is not None else None
    derived = derive(
        model.module,
        model.input_shape,
        cuts,
        parts,
        form,  # type: ignore[arg-type]
        adapt,
        kernel=published.kernel if published is not None else None,
    )
    network = build(derived, lambda _, graphs, mode: TorchSegment(graphs, mode), "auto", "auto")
    set_source_statistics(network, None, model.input_shape)
    path = folder / f"{form}-{adapt}"
    write_bundle(path, derived, network, name=model.name, config=AdaptConfig())
    return read_bundle(path)


def _medians(runs: Mapping[Any, Callable[[], object]], repetitions: int) -> dict[Any, float]:
    """Seconds of each run: the median over rounds, after one round that does not count.

    A run that returns a number of seconds has measured itself.
    """
    samples: dict[Any, list[float]] = {key: [] for key in runs}
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


def _print(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Seconds per batch, and how many times plain inference")
    names = ("model", "engine", "gradient", "bn", "adapts", "inference", "off", "", "step", "", "packing")
    for i, name in enumerate(names):
        table.add_column(name, justify="left" if i < 5 else "right", no_wrap=True)
    for row in rows:
        inference, predict, step = row["inference_seconds"], row["predict_seconds"], row["step_seconds"]
        times = [f"{inference:.3f}", f"{predict:.3f}", f"x{predict / inference:.2f}"]
        times += [f"{step:.3f}", f"x{step / inference:.2f}", f"{100 * row['packing_seconds'] / step:.1f} %"]
        table.add_row(row["model"], row["engine"], row["gradient"], row["bn"], row["adapt"], *times)
    console = Console()
    console.width = max(console.width, 110)  # a ratio cut short says nothing
    console.print(table)
