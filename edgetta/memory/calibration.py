"""Measure the runs of programs that a bundle's cost model is made of: two numbers of images each, in a fresh process.

A number of images that is new runs once before its level is read, for what an engine allocates once for a shape. The
highest of the runs behind it counts: each leaves some of its small blocks in the heap, where the next one builds upon
them.
"""

from __future__ import annotations

import datetime
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetta import __version__
from edgetta.adaptation.normaliser import fixed
from edgetta.errors import EdgettaError
from edgetta.memory.cost_model import CostModel, ProgramPoint
from edgetta.memory.fresh_process import in_fresh_process
from edgetta.memory.keep import new_images
from edgetta.memory.peak import give_back, high_water, reset_high_water, resident

if TYPE_CHECKING:
    from edgetta.engines.contract import Array, Engine

ENOUGH_BYTES = 24 << 20
"""A forward that takes so much is far above what the process itself moves: more images need not be measured."""

ENOUGH_SECONDS = 0.4
"""A forward that takes so long is not measured on more images, either."""

MOST_IMAGES = 64
RUNS = 2
"""Runs in a row that count."""

Run = Callable[[], object]


def measure_cost_model(bundle: str, engines: Sequence[str], threads: int = 0) -> CostModel:
    """Measure the bundle at that path on some engines of the processor, in a fresh process for each.

    Raises:
        MeasurementError: what went wrong there, on a system without /proc for instance.
    """
    models = [
        CostModel.from_json(in_fresh_process(f"{__name__}:points_here", bundle=bundle, engine=engine, threads=threads))
        for engine in engines
    ]
    points = tuple(point for model in models for point in model.points)
    versions = {name: version for model in models for name, version in model.measured_on["versions"].items()}
    first = models[0]
    return CostModel(first.image_bytes, first.parameter_bytes, points, {**first.measured_on, "versions": versions})


def points_here(bundle: str, engine: str, threads: int = 0) -> dict[str, Any]:
    """`measure_cost_model` of one engine in this process, as JSON-able data."""
    from edgetta.bundle import open_engine, read_bundle

    return measured_engine(open_engine(read_bundle(bundle), engine, threads), threads).to_json()


def measured_engine(engine: Engine, threads: int = 0) -> CostModel:
    """The cost model of programs on an engine, measured in this process."""
    programs = engine.programs
    image_bytes = 4 * math.prod(programs.input_shape)
    points = tuple(_points(engine))
    return CostModel(image_bytes, 4 * programs.parameters.size, points, _here(engine.name, threads))


def _points(engine: Engine) -> Iterator[ProgramPoint]:
    most = _enough(engine)
    sizes = sorted({max(1, most // 4), most})
    for program in ("predict", "measure", "recompute"):
        for count in sizes:
            peak, seconds = _measured(_runs(engine, count)[program])
            yield ProgramPoint(engine.name, program, count, peak, 0, seconds)
    for count in sizes:
        yield from _learning(engine, count)


def _enough(engine: Engine) -> int:
    """Images from which on the peaks tell how they grow."""
    count = 2
    while True:
        peak, seconds = _measured(_runs(engine, count)["forward"], runs=1)
        if peak >= ENOUGH_BYTES or seconds >= ENOUGH_SECONDS or count >= MOST_IMAGES:
            return count
        count *= 2


def _runs(engine: Engine, count: int) -> dict[str, Run]:
    """The programs that are run on their own, on so many images as shipped."""
    programs = engine.programs
    images, parameters, statistics = new_images(count, programs.input_shape), programs.shipped, programs.source
    gradient = _gradient(count, programs.classes)
    return {
        "predict": lambda: engine.predict(images, parameters, statistics),
        "measure": lambda: engine.measure(images, parameters, fixed(statistics)),
        "forward": lambda: engine.forward(images, parameters, statistics),
        "recompute": lambda: engine.recompute(images, gradient, 0.5, parameters, statistics),
    }


def _learning(engine: Engine, count: int) -> Iterator[ProgramPoint]:
    """Forward and backward of so many images; the second one's peak includes what is kept for it."""
    programs = engine.programs
    images, parameters, statistics = new_images(count, programs.input_shape), programs.shipped, programs.source
    gradient = _gradient(count, programs.classes)
    peaks, seconds, kept = [0, 0], [math.inf, math.inf], 0
    for run in range(1 + RUNS):
        level = _begin()
        begun = time.perf_counter()
        passed = engine.forward(images, parameters, statistics)
        between = time.perf_counter()
        kept, forward = passed.residuals.nbytes, high_water() - level
        _reset()
        resumed = time.perf_counter()
        engine.backward(passed.residuals, gradient, 0.5, parameters)
        ended = time.perf_counter()
        backward = high_water() - level
        del passed
        if run:
            peaks = [max(peaks[0], forward), max(peaks[1], backward)]
            seconds = [min(seconds[0], between - begun), min(seconds[1], ended - resumed)]
    yield ProgramPoint(engine.name, "forward", count, peaks[0], kept, seconds[0])
    yield ProgramPoint(engine.name, "backward", count, peaks[1], kept, seconds[1])


def _measured(run: Run, runs: int = RUNS) -> tuple[int, float]:
    """The highest peak and the least seconds of a few calls, after one that does not count."""
    run()
    peak, seconds = 0, math.inf
    for _ in range(runs):
        level = _begin()
        begun = time.perf_counter()
        result = run()
        seconds = min(seconds, time.perf_counter() - begun)
        peak = max(peak, high_water() - level)
        del result
    return peak, seconds


def _begin() -> int:
    """The level before a run, free memory given back."""
    give_back()
    level = resident()
    _reset()
    return level


def _gradient(count: int, classes: int) -> Array:
    found: Array = np.random.default_rng(1).standard_normal((count, classes)).astype(np.float32) / np.float32(count)
    return found


def _reset() -> None:
    if not reset_high_water():
        raise EdgettaError("this system does not let the mark of resident memory be reset; measure on another machine")


def _here(engine: str, threads: int) -> dict[str, Any]:
    """Where these points belong."""
    versions = {"edgetta": __version__}
    with suppress(metadata.PackageNotFoundError):
        versions[engine] = metadata.version(engine)
    return {
        "architecture": platform.machine(),
        "threads": threads or len(os.sched_getaffinity(0)),
        "versions": versions,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }
