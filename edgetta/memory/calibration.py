"""Measure the steps that a bundle's cost model is made of: a few ways, two batch sizes, in one fresh process.

Statistics of the batch and running ones take the same memory to within the noise, so one policy stands for all. A
shape that is new runs once before its level is read, for what an engine allocates once for a shape. The highest of
the steps behind it counts: each leaves some of its small blocks in the heap, where the next one builds upon them.
The peaks of forward, backward and update are told apart by resetting the kernel's mark between them.
"""

from __future__ import annotations

import datetime
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

from edgetta import __version__
from edgetta.errors import EdgettaError
from edgetta.memory.cost_model import CostModel, PredictionPoint, StepPoint
from edgetta.memory.fresh_process import in_fresh_process
from edgetta.memory.peak import give_back, high_water, reset_high_water, resident

if TYPE_CHECKING:
    from torch import Tensor

    from edgetta.bundle import Bundle
    from edgetta.segmented.adapter import Adapter

MEASURED_BYTES = 64 << 20
"""The largest batch that is measured keeps about so much at full storage: far above what the process itself moves."""

WAYS: tuple[tuple[str, str, tuple[float, ...]], ...] = (
    ("auto", "full", (1.0, 1 / 3)),
    ("auto", "recompute", (1 / 3, 1 / 12)),
    ("auto", "half", (1 / 3,)),
    ("auto", "int8", (1 / 3,)),
    ("auto", "recompute-int8", (1 / 3, 1 / 12)),
    ("recompute", "recompute", (1 / 3, 1 / 12)),
    ("recompute", "recompute-int8", (1 / 3, 1 / 12)),
    ("local", "full", (1.0,)),
    ("local", "recompute-int8", (1 / 3, 1 / 12)),
)
"""Gradient, storage, and the shares of the batch in one slice of the backward: what there is to choose from."""

STEPS = 3
"""Steps of one way in a row, as the pieces of a batch are: what the heap holds on to grows over about so many."""

FEW = 24
"""Batches of fewer images have no slices near these shares: each way is measured whole and in slices of two sizes."""


@dataclass(frozen=True)
class _Sizes:
    """Batch sizes that are measured."""

    small: int
    large: int

    @staticmethod
    def of(bundle: Bundle) -> _Sizes:
        kept = max(1, bundle.memory["auto"].per_image)
        large = 6  # sizes that thirds and twelfths divide
        while large < 48 and 2 * large * kept <= MEASURED_BYTES:
            large *= 2
        return _Sizes(large // 2, large)

    def points(self, shares: Sequence[float]) -> Iterator[tuple[int, int]]:
        """Batches, and images per slice of them, 0 for the whole; the first share is measured at both batch sizes."""
        if self.large < FEW and shares != (1.0,):
            shares = (1.0, 1 / 3, 1 / 12)
        for count, some in ((self.small, shares[:1]), (self.large, shares)):
            sizes = dict.fromkeys(0 if share == 1 else max(1, round(share * count)) for share in some)
            yield from ((count, size) for size in sizes if size < count)


def measure_cost_model(bundle: str, engines: Sequence[str], threads: int = 0) -> CostModel:
    """Measure the bundle at that path on some engines of the processor, in a fresh process.

    Raises:
        MeasurementError: what went wrong there, on a system without /proc for instance.
    """
    data = in_fresh_process(f"{__name__}:points_here", bundle=bundle, engines=list(engines), threads=threads)
    return CostModel.from_json(data)


def points_here(bundle: str, engines: Sequence[str], threads: int = 0) -> dict[str, Any]:
    """`measure_cost_model` in this process, as JSON-able data."""
    import torch

    from edgetta.bundle import read_bundle

    if threads:
        torch.set_num_threads(threads)
    opened = read_bundle(bundle)
    sizes = _Sizes.of(opened)
    steps: list[StepPoint] = []
    predictions: list[PredictionPoint] = []
    for engine in engines:
        steps += _step_points(opened, engine, threads, sizes)
        predictions += _prediction_points(opened, engine, threads, sizes)
    image_bytes = 4 * math.prod(opened.model.input_shape)
    return CostModel(image_bytes, tuple(steps), tuple(predictions), _here(threads)).to_json()


def _step_points(bundle: Bundle, engine: str, threads: int, sizes: _Sizes) -> Iterator[StepPoint]:
    from edgetta.adaptation.step_memory import StepMemory

    gradients = dict.fromkeys(_built(gradient) for gradient, _, _ in WAYS)
    adapters = {gradient: _adapter(bundle, engine, gradient, threads) for gradient in gradients}
    seen = set()
    for gradient, storage, shares in WAYS:
        adapter = adapters[_built(gradient)]
        for count, size in sizes.points(shares):
            images = _images(bundle, count)
            adapter.network.memory = StepMemory(storage, size, gradient == "local")  # type: ignore[arg-type]
            if (gradient, count, size) not in seen:
                seen.add((gradient, count, size))
                adapter.step(images, gather=False)
            yield StepPoint(engine, gradient, storage, size, count, *_measured_step(adapter, images))


def _built(gradient: str) -> str:
    """The mode that segments are made in; `local` is a matter of the step alone."""
    return "auto" if gradient == "local" else gradient


def _prediction_points(bundle: Bundle, engine: str, threads: int, sizes: _Sizes) -> Iterator[PredictionPoint]:
    from edgetta.bundle import build_network, source_program

    network = build_network(bundle, engine, threads=threads)
    network.forward(_images(bundle, 1))  # what an engine has loaded for adaptation serves predictions, too
    source = source_program(bundle, engine, threads)
    runs: dict[str, Callable[[Tensor], object]] = {
        "adapted": lambda images: network.forward(images, keep=False),
        "source": source,
    }
    for name, run in runs.items():
        for count in (sizes.small, sizes.large):
            peak, seconds = _measured_call(partial(run, _images(bundle, count)))
            yield PredictionPoint(engine, name, count, peak, seconds)


def _adapter(bundle: Bundle, engine: str, gradient: str, threads: int) -> Adapter:
    """An adapter that goes all the way at every step, and ends where it began."""
    from edgetta.bundle import build_network
    from edgetta.segmented.adapter import AdaptConfig, Adapter

    network = build_network(bundle, engine, gradient, threads=threads)  # type: ignore[arg-type]
    # The source's share is found once, and not part of a usual step.
    return Adapter(network, AdaptConfig(learning_rate=0.0, entropy_margin=1.0, source_share=0.0))


def _images(bundle: Bundle, count: int) -> Tensor:
    import torch

    return torch.rand(count, *bundle.model.input_shape, generator=torch.Generator().manual_seed(0))


def _measured_step(adapter: Adapter, images: Tensor) -> tuple[int, int, int, int, float]:
    """The highest of a few steps: peaks of forward, backward and update, bytes kept between the first two, seconds."""
    network = adapter.network
    forward, backward = network.forward, network.backward
    peaks = {"forward": 0, "backward": 0, "update": 0}
    kept = 0

    def note(phase: str) -> None:
        peaks[phase] = max(peaks[phase], high_water())
        _reset()

    def watched_forward(*arguments: Any, **options: Any) -> Any:
        nonlocal kept
        result = forward(*arguments, **options)
        kept = sum(result[1].kept_bytes().values())
        note("forward")
        return result

    def watched_backward(*arguments: Any, **options: Any) -> None:
        backward(*arguments, **options)
        note("backward")

    give_back()
    level = resident()
    seconds = math.inf
    _reset()
    network.forward, network.backward = watched_forward, watched_backward  # type: ignore[method-assign]
    try:
        for _ in range(STEPS):
            begun = time.perf_counter()
            adapter.step(images, gather=False)
            seconds = min(seconds, time.perf_counter() - begun)
            note("update")
    finally:
        del network.forward, network.backward  # the methods of its class again
    above = (max(0, peak - level) for peak in peaks.values())
    return *above, kept, seconds  # type: ignore[return-value]


def _measured_call(call: Callable[[], object]) -> tuple[int, float]:
    """Peak and seconds of a call after one that does not count."""
    call()
    give_back()
    level = resident()
    _reset()
    begun = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - begun
    peak = max(0, high_water() - level)
    del result
    return peak, seconds


def _reset() -> None:
    if not reset_high_water():
        raise EdgettaError("this system does not let the mark of resident memory be reset; measure on another machine")


def _here(threads: int) -> dict[str, Any]:
    """Where these points belong."""
    import torch

    versions = {"edgetta": __version__, "torch": str(torch.__version__)}
    with suppress(metadata.PackageNotFoundError):
        versions["onnxruntime"] = metadata.version("onnxruntime")
    return {
        "architecture": platform.machine(),
        "threads": threads or torch.get_num_threads(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }
