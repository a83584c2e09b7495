"""Peak memory and kept bytes of an adaptation step and of plain inference, each measured in a fresh process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edgetta.memory.fresh_process import in_fresh_process

STEPS = 50
"""Steps that a whole process makes."""


@dataclass(frozen=True)
class StepCase:
    """What runs how. Names and values as in `edgetta.load`; images are random, and every one counts."""

    bundle: str
    batch: int
    engine: str = "auto"
    keep: bool = True  # this and the next three: see `StepPlan`
    learn: int = 0
    slice: int = 0
    predict: int = 0
    threads: int = 0


@dataclass(frozen=True)
class Measured:
    """Of one call above the loaded, warmed-up model, in bytes; see `Peak`, and `DevicePeak` for an engine on a GPU.

    Kept bytes are 0 for inference; what is held, and the level, are not told of a GPU.
    """

    peak_bytes: int
    held_bytes: int
    level_bytes: int
    kept_bytes: int  # between forward and backward, as the engine says
    alive_bytes: int  # the same, as the process grows
    seconds: float  # median; measured on a quiet machine or not at all
    source: str


def measure_step(case: StepCase) -> Measured:
    """A step that predicts and updates, in a fresh process. Raises `MeasurementError`, see `in_fresh_process`."""
    return Measured(**in_fresh_process(f"{__name__}:step_here", **asdict(case)))


def measure_inference(case: StepCase) -> Measured:
    """Prediction with the network as shipped, in a fresh process; of the case only batch and `predict` count."""
    return Measured(**in_fresh_process(f"{__name__}:inference_here", **asdict(case)))


def process_bytes(case: StepCase, *, give_back: bool = False) -> int:
    """The most that a whole process ever has resident: interpreter, imports, model, and `STEPS` steps.

    give_back  have the C library give freed memory back at once, as under a budget; False: as `edgetta run` does
    """
    target = f"{__name__}:process_here"
    found: int = in_fresh_process(target, give_back=False, **asdict(case), returned=give_back)
    return found


def step_here(**arguments: Any) -> dict[str, Any]:
    """`measure_step` in this process."""
    from edgetta.adaptation.adapter import Adapter
    from edgetta.adaptation.config import AdaptConfig
    from edgetta.adaptation.step_plan import StepPlan
    from edgetta.bundle import open_engine, read_bundle
    from edgetta.memory.keep import new_images, rehearsing
    from edgetta.memory.meter import alive_bytes

    case = _case(arguments)
    plan = StepPlan(case.keep, case.learn, case.slice, case.predict)
    bundle = read_bundle(Path(case.bundle))
    engine = open_engine(bundle, case.engine, case.threads)
    config = rehearsing(AdaptConfig(small_batch=1))
    adapter = Adapter(engine, config, bundle.content, bundle.rate_law)
    images = new_images(case.batch, engine.programs.input_shape)
    measured = measure_calls(lambda: adapter.step(images, plan), gpu=_on_gpu(engine.name))
    measured["kept_bytes"] = adapter.step(images, plan).kept_bytes
    if plan.keep:
        programs = engine.programs
        learnt = images[: min(plan.learn or config.learn_images, len(images))]
        measured["alive_bytes"] = alive_bytes(
            lambda: engine.forward(learnt, programs.shipped, programs.source).residuals
        )
    return measured


def inference_here(**arguments: Any) -> dict[str, Any]:
    """`measure_inference` in this process."""
    from edgetta.bundle import open_engine, read_bundle
    from edgetta.memory.keep import new_images

    case = _case(arguments)
    engine = open_engine(read_bundle(Path(case.bundle)), case.engine, case.threads)
    programs = engine.programs
    images = new_images(case.batch, programs.input_shape)
    return measure_calls(lambda: engine.predict(images, programs.shipped, programs.source), gpu=_on_gpu(engine.name))


def process_here(returned: bool = False, **arguments: Any) -> int:
    """`process_bytes` of this process, which does nothing before and nothing else."""
    from edgetta.adaptation.step_plan import StepPlan
    from edgetta.memory.allocator import keep_freed_memory, return_freed_memory
    from edgetta.memory.keep import new_images
    from edgetta.memory.peak import high_water
    from edgetta.runtime import load

    case = _case(arguments)
    return_freed_memory() if returned else keep_freed_memory()
    plan = StepPlan(case.keep, case.learn, case.slice, case.predict)
    runtime = load(case.bundle, case.engine, threads=case.threads, memory=plan)
    for step in range(STEPS):
        runtime.step(new_images(case.batch, runtime.bundle.input_shape, step))
    return high_water()  # which nothing has reset: without a budget steps are not measured


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


def _on_gpu(engine: str) -> bool:
    return engine not in ("torch", "onnxruntime")


def _case(arguments: dict[str, Any]) -> StepCase:
    known = {field.name for field in fields(StepCase)}
    return StepCase(**{name: value for name, value in arguments.items() if name in known})
