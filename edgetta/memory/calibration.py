"""Measure the steps that a bundle's cost model is made of: a few ways, two batch sizes, in one fresh process.

Statistics of the batch and running ones take the same memory to within the noise, so one policy stands for all. Each
point runs twice and the second run counts: the first takes what an engine allocates once for a shape. The peaks
of the forward and of what lies behind it are told apart by resetting the kernel's mark between the two.
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

    from edgetta.adaptation.adapter import Adapter
    from edgetta.bundle import Bundle

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
    for gradient, storage, shares in WAYS:
        adapter = adapters[_built(gradient)]
        for count in (sizes.small, sizes.large):
            images = _images(bundle, count)
            for share in shares if count == sizes.large else shares[:1]:
                size = 0 if share == 1 else round(share * count)
                if share < 1 and not 1 <= size < count:
                    continue
                adapter.network.memory = StepMemory(storage, size, gradient == "local")  # type: ignore[arg-type]
                measured = _measured_step(adapter, images)
                yield StepPoint(engine, gradient, storage, size, count, *measured)


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
    from edgetta.adaptation.adapter import AdaptConfig, Adapter
    from edgetta.bundle import build_network

    network = build_network(bundle, engine, gradient, threads=threads)  # type: ignore[arg-type]
    return Adapter(network, AdaptConfig(learning_rate=0.0, entropy_margin=1.0))


def _images(bundle: Bundle, count: int) -> Tensor:
    import torch

    return torch.rand(count, *bundle.model.input_shape, generator=torch.Generator().manual_seed(0))


def _measured_step(adapter: Adapter, images: Tensor) -> tuple[int, int, int, float]:
    """Peaks of the forward and behind it, bytes kept between, and seconds, of a step after one that does not count."""
    network = adapter.network
    forward = network.forward
    found = {"forward": 0, "kept": 0}

    def watched(*arguments: Any, **options: Any) -> Any:
        result = forward(*arguments, **options)
        found["forward"] = high_water()
        found["kept"] = sum(result[1].kept_bytes().values())
        _reset()
        return result

    adapter.step(images, gather=False)
    give_back()
    level = resident()
    _reset()
    network.forward = watched  # type: ignore[method-assign]
    try:
        begun = time.perf_counter()
        adapter.step(images, gather=False)
        seconds = time.perf_counter() - begun
    finally:
        del network.forward  # the method of its class again
    return max(0, found["forward"] - level), max(0, high_water() - level), found["kept"], seconds


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
