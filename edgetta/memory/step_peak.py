"""Peak memory and kept bytes of an adaptation step and of plain inference, each measured in a fresh process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edgetta.memory.fresh_process import in_fresh_process


@dataclass(frozen=True)
class StepCase:
    """What runs how. Names and values as in `edgetta.load`; images are random, and every sample counts."""

    bundle: str
    batch: int
    engine: str = "auto"
    gradient: str = "auto"
    batch_norm: str | None = None  # the bundle's own
    storage: str = "full"  # this and the next two: see `StepMemory`
    slice: int = 0
    local: bool = False
    size: tuple[int, int] | None = None  # height and width of the images; the bundle's own
    threads: int = 0


@dataclass(frozen=True)
class Measured:
    """Of one call above the loaded, warmed-up model, in bytes; see `Peak`, and `DevicePeak` for an engine on a GPU.

    Kept bytes are 0 for inference; what is held, and the level, are not told of a GPU.
    """

    peak_bytes: int
    held_bytes: int
    level_bytes: int
    kept_bytes: int  # between forward and backward, as the contract counts
    alive_bytes: int  # the same, as what is alive counts
    seconds: float  # median; measured on a quiet machine or not at all
    source: str


def measure_step(case: StepCase) -> Measured:
    """A step that predicts and updates, in a fresh process. Raises `MeasurementError`, see `in_fresh_process`."""
    return Measured(**in_fresh_process("edgetta.memory.step_peak:step_here", **asdict(case)))


def measure_inference(case: StepCase) -> Measured:
    """Plain inference of the unadapted backbone as one graph, in a fresh process; gradient and storage say nothing."""
    return Measured(**in_fresh_process("edgetta.memory.step_peak:inference_here", **asdict(case)))


def step_here(**arguments: Any) -> dict[str, Any]:
    """`measure_step` in this process."""
    import torch

    from edgetta.adaptation.step_memory import StepMemory
    from edgetta.bundle import build_network, read_bundle
    from edgetta.memory.meter import measure_kept
    from edgetta.segmented.adapter import AdaptConfig, Adapter

    case = _case(arguments)
    if case.threads:
        torch.set_num_threads(case.threads)
    bundle = read_bundle(Path(case.bundle))
    memory = StepMemory(case.storage, case.slice, case.local)  # type: ignore[arg-type]
    network = build_network(bundle, case.engine, case.gradient, case.batch_norm, case.threads, memory)  # type: ignore[arg-type]
    images = _images(case, bundle.model.input_shape).to(network.device)
    adapter = Adapter(network, AdaptConfig(entropy_margin=1.0, small_batch=1, source_share=0.0))
    measured = measure_calls(lambda: adapter.step(images), gpu=network.device.type == "cuda")
    kept = measure_kept(network, images)
    return asdict(Measured(**(measured | {"kept_bytes": kept.contract, "alive_bytes": kept.alive})))


def inference_here(**arguments: Any) -> dict[str, Any]:
    """`measure_inference` in this process."""
    import torch

    from edgetta.bundle import open_engine, read_bundle

    case = _case(arguments)
    if case.threads:
        torch.set_num_threads(case.threads)
    bundle = read_bundle(Path(case.bundle))
    engine = open_engine(bundle, case.engine, case.threads)
    program, images = engine.source(), _images(case, bundle.model.input_shape).to(engine.device)
    return asdict(Measured(**measure_calls(lambda: program(images), gpu=engine.device.type == "cuda")))


def measure_calls(
    run: Callable[[], object], *, gpu: bool = False, warm_up: int = 1, repetitions: int = 2
) -> dict[str, Any]:
    """The fields of a `Measured` for calls of `run` in this process, of which the first `warm_up` do not count.

    gpu   the memory that counts is that of torch's current CUDA device
    """
    from edgetta.memory.device_peak import measure_device_peak
    from edgetta.memory.peak import Peak, measure_peak

    seconds: list[float] = []

    def timed() -> object:
        start = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - start)
        return result

    if gpu:
        found = measure_device_peak(timed, warm_up=warm_up, repetitions=repetitions)
        peak = Peak(found.peak, 0, 0, "device")
    else:
        peak = measure_peak(timed, warm_up=warm_up, repetitions=repetitions)
    return {
        "peak_bytes": peak.peak,
        "held_bytes": peak.held,
        "level_bytes": peak.level,
        "kept_bytes": 0,
        "alive_bytes": 0,
        "seconds": statistics.median(seconds[warm_up:]),
        "source": peak.source,
    }


def _case(arguments: dict[str, Any]) -> StepCase:
    known = {field.name for field in fields(StepCase)}
    size = arguments.get("size")
    return StepCase(**{k: v for k, v in arguments.items() if k in known} | {"size": tuple(size) if size else None})


def _images(case: StepCase, input_shape: tuple[int, int, int]) -> Any:
    import torch

    height, width = case.size or input_shape[1:]
    shape = (case.batch, input_shape[0], height, width)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))
