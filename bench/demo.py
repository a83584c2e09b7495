"""The demo: all of edgetta on real digits, from training to an adapting stream, with its claims checked.

    train a small ResNet -> warm up its meta-networks -> export a bundle -> run a continual stream of corrupted digits

Held-out digits come from forms, and so hands, that nothing was trained on. Warm-up sees the training digits as they
are and under the four corruptions that benchmarks keep for validation; nothing is trained on any of the fifteen of the
stream. Adaptation runs with the library's defaults.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from edgetta.adaptation.config import AdaptConfig
from edgetta.bench.baselines import BatchNormStatistics, EcottaStock, Method, Source, Tent
from edgetta.bench.demo_backbone import as_tensor, train_backbone
from edgetta.bench.demo_result import METHODS, DemoConfig, DemoResult
from edgetta.bench.demo_stream import CorruptedStream, Report, corrupted_stream, run_bundle, run_method
from edgetta.corruption import EXTRA_CORRUPTIONS, corrupt
from edgetta.errors import EdgettaError
from edgetta.offline.warm_up import WarmUpReport, warm_up
from edgetta.sources.datasets import Images, digits
from edgetta.storage import atomic_write_json, atomic_write_text

if TYPE_CHECKING:
    from edgetta.models import Model
    from edgetta.runtime import Runtime


def run_demo(
    out: Path,
    engine: str = "onnxruntime",
    config: DemoConfig | None = None,
    say: Callable[[str], object] = print,
    finish: Callable[[DemoResult], object] = lambda result: None,
    show: bool = True,
) -> DemoResult:
    """Do all of it, and write bundle, stream, predictions, `demo.json` and `report.html` into the folder `out`.

    say     receives a line as each stage ends
    finish  receives the result, claims not yet judged, when all files are written
    show    progress bars, where standard error is a terminal
    Raises `EdgettaError` when a claim does not hold (all files are there then), and for what the stages raise.
    """
    config = config or DemoConfig()
    if out.exists() and not out.is_dir():
        raise EdgettaError(f"{out} is a file; name a folder for the demo with --out")
    out.mkdir(parents=True, exist_ok=True)
    stages = _Stages(say, show)
    every = slice(config.limit)
    train, held_out = (digits(split, seed=config.seed).subset(every) for split in ("train", "test"))

    with stages.run("training") as step:
        model = train_backbone(
            as_tensor(train.images),
            torch.from_numpy(train.labels),
            config.training,
            lambda done, total, loss: step(done, total),
        )
        clean = as_tensor(held_out.images), torch.from_numpy(held_out.labels)
        source = Source(model.module)
        clean_error = 100 * float((source(clean[0]).argmax(1) != clean[1]).float().mean())
        parameters = sum(p.numel() for p in model.module.parameters())
        stages.note(
            f"{model.name}, {parameters:,} weights, trained on {len(train):,} digits; "
            f"{clean_error:.1f} % error on {len(held_out)} digits of other hands"
        )

    with stages.run("warm-up and export") as step:
        report = _export(out / "bundle", model, train, clean, config, step)
        stages.note(
            f"meta-networks warmed up ({100 * (1 - report.accuracy_before):.1f} -> "
            f"{100 * (1 - report.accuracy_after):.1f} % error on clean digits) and exported to {out / 'bundle'}"
        )

    with stages.run("corrupting") as step:
        stream = corrupted_stream(
            held_out,
            config.corruptions,
            config.severity,
            config.count,
            parameters=config.parameters,
            seed=config.seed,
            progress=step,
        )
        stream.save(out / "stream.npz")
        stages.note(
            f"{len(stream.labels):,} images under {len(stream.corruptions)} corruptions, severity {config.severity}"
        )

    with stages.run("running the stream") as step:
        predicted = _predict(out, engine, model, stream, config, step)
        stages.note(f"{len(METHODS)} methods over {-(-len(stream.labels) // config.batch)} batches each")

    with stages.run("measuring") as step:
        first = stream.batches(config.batch)[0][0]
        measured = _measure(_runtime(out, engine, config.adaptation), first, model, config, step)
        stages.note("kept bytes and time per step")

    result = DemoResult(
        errors={method: stream.errors(predicted[method]) for method in METHODS},
        clean_error=clean_error,
        warm_up=report,
        parameters=parameters,
        stage_seconds=stages.seconds,
        curves={method: _curve(predicted[method], stream, config.batch) for method in METHODS},
        **measured,
    )
    _write(out, result, stream, engine, config)
    finish(result)
    broken = [claim.text for claim in result.claims() if not claim.holds]
    if config.judge and broken:
        raise EdgettaError(f"the demo does not show what it should: {'; '.join(broken)}. All figures are in {out}")
    return result


def _export(
    path: Path, model: Model, train: Images, held_out: tuple[Tensor, Tensor], config: DemoConfig, step: Report
) -> WarmUpReport:
    """Derive the programs, warm the meta-networks up through them, and write the bundle."""
    from edgetta.export.bundle_writer import Shipment, write_bundle
    from edgetta.export.content import measure_content
    from edgetta.export.derive import derive
    from edgetta.offline.network import Network
    from edgetta.offline.running_statistics import with_running_statistics
    from edgetta.offline.source_statistics import batches_of, with_source_statistics

    images = as_tensor(train.images)
    published = model.parts
    derived = derive(
        model.module,
        model.input_shape,
        published.cuts(config.parts) if published is not None else None,
        config.parts,
        adapt=config.adapt,
        kernel=published.kernel if published is not None else None,
        seed=config.seed,
    )
    fresh = with_source_statistics(Network(derived.programs), batches_of(images, config.warm_up.batch))
    seen = [train.images]
    for name in EXTRA_CORRUPTIONS:
        seen.append(
            corrupt(train.images, name, config.warm_up_severity, seed=config.seed + 1, parameters=config.parameters)
        )
    network, report = warm_up(
        fresh,
        torch.from_numpy(np.concatenate(seen)).permute(0, 3, 1, 2).contiguous(),
        torch.from_numpy(np.tile(train.labels, len(seen))),
        held_out,
        replace(config.warm_up, seed=config.seed),
        progress=lambda done, total, loss: step(done, total),
    )
    network = with_running_statistics(network, batches_of(images, config.warm_up.batch))
    content = measure_content(network.programs, batches_of(images, config.warm_up.batch))
    write_bundle(
        path,
        Shipment(network.programs, derived.cuts, derived.batch_norm, content),
        name=f"{model.name} on digits",
        config=config.adaptation,
        classes=train.classes,
        provenance={"data": train.name, "training": asdict(config.training), "warm_up": asdict(config.warm_up)},
        overwrite=True,
    )
    return report


def _runtime(out: Path, engine: str, config: AdaptConfig) -> Runtime:
    from edgetta.runtime import load

    return load(out / "bundle", engine, config=config)


def _predict(
    out: Path, engine: str, model: Model, stream: CorruptedStream, config: DemoConfig, step: Report
) -> dict[str, list[int]]:
    """Every method's predictions on the stream, from its first image to its last."""
    total = len(METHODS) * len(stream.labels)

    def progress(place: int) -> Report:
        return lambda done, _: step(place * len(stream.labels) + done, total)

    baselines: tuple[Method, ...] = (
        Source(model.module),
        BatchNormStatistics(model.module),
        Tent(model.module, config.tent),
    )
    predicted = {
        name: run_method(method, stream, config.batch, progress(place))
        for place, (name, method) in enumerate(zip(METHODS, baselines, strict=False))
    }
    off = _runtime(out, engine, replace(config.adaptation, when="off"))
    predicted["warm_up_only"] = run_bundle(off, out / "stream.npz", config.batch, progress=progress(3))
    adapting = _runtime(out, engine, config.adaptation)
    file, rows = out / "stream.npz", out / "predictions.jsonl"
    predicted["adapted"] = run_bundle(adapting, file, config.batch, rows, progress(4))
    return predicted


def _measure(runtime: Runtime, images: Tensor, model: Model, config: DemoConfig, step: Report) -> dict[str, Any]:
    """Bytes kept for one batch, and seconds per batch: medians over rounds in which all kinds take turns."""
    from edgetta.bench.baselines.ecotta_stock import stock_metas

    programs = runtime.engine.programs
    kept = runtime.bundle.kept_bytes(len(images))
    stock = EcottaStock(model.module, runtime.bundle.cuts, stock_metas(programs), config.adaptation)
    frames = images.numpy()
    runs: dict[str, Callable[[], object]] = {
        "inference_seconds": lambda: runtime.source(images),
        "predict_seconds": lambda: runtime.engine.predict(frames, programs.shipped, programs.source),
        "step_seconds": lambda: runtime.step(images),
    }
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(config.repetitions + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if number:  # the first round fills caches
                samples[name].append(time.perf_counter() - started)
        step(number + 1, config.repetitions + 1)
    return {
        **{name: statistics.median(values) for name, values in samples.items()},
        "saved_bytes": kept,
        "stock_saved_bytes": stock.saved_bytes(images),
        "stock_saved_bytes_with_regulariser": stock.saved_bytes(images, regulariser=True),
        "tent_saved_bytes": Tent(model.module, config.tent).saved_bytes(images),
    }


def _curve(predicted: list[int], stream: CorruptedStream, batch: int) -> list[float]:
    """Percent wrong, batch by batch."""
    wrong = [float(guess != label) for guess, label in zip(predicted, stream.labels, strict=True)]
    return [100 * statistics.fmean(wrong[i : i + batch]) for i in range(0, len(wrong), batch)]


def _write(out: Path, result: DemoResult, stream: CorruptedStream, engine: str, config: DemoConfig) -> None:
    from edgetta.bench.demo_report import page

    content = result.as_json(config, engine)
    atomic_write_json(out / "demo.json", content)
    atomic_write_text(out / "report.html", page(result, stream, content, config))


class _Stages:
    """Names, bars and times of the stages."""

    def __init__(self, say: Callable[[str], object], show: bool) -> None:
        self.seconds: dict[str, float] = {}
        self._say, self._show, self._note = say, show, ""

    @contextmanager
    def run(self, name: str) -> Iterator[Report]:
        from edgetta.cli.progress import progress_bar

        started = time.perf_counter()
        with progress_bar(name, show=self._show) as update:
            yield lambda done, total: update(done, total)
        self.seconds[name] = time.perf_counter() - started
        self._say(f"[{self.seconds[name]:5.1f} s] {self._note}")

    def note(self, text: str) -> None:
        """What the stage came to, said when it ends."""
        self._note = text
