"""The TensorRT engines of a bundle on this machine: taken from the cache or built, tested, and put together.

    engines = BundleEngines(bundle, TensorRTConfig(precision="fp16"))
    for job in engines.jobs("auto"):
        engines.prepare(job)
    engine = engines.engine()

What is computed wrongly in float16 runs in float32, engine by engine, and that is said.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from edgetta.adaptation.model import Gradient
from edgetta.bundle.program_jobs import Job, job_of, jobs_of
from edgetta.bundle.reading import Bundle
from edgetta.engines.contract import Array
from edgetta.engines.gpu import GpuEngine, Runnable
from edgetta.engines.tensorrt.build import BuildOptions, EngineBuildError, Watch, build_engine
from edgetta.engines.tensorrt.cache import EngineCache, EngineKey, default_root, folder_name
from edgetta.engines.tensorrt.check import engine_errors, program_reference, verdict
from edgetta.engines.tensorrt.library import find_target
from edgetta.engines.tensorrt.memory_watch import watch_memory
from edgetta.engines.tensorrt.program import EngineRejectedError, GraphedProgram, TensorRTProgram
from edgetta.errors import MissingDependencyError, UsageError
from edgetta.segments.onnx_model import OnnxModel

_log = logging.getLogger("edgetta")


@dataclass(frozen=True)
class TensorRTConfig(BuildOptions):
    """How a bundle runs on TensorRT: `BuildOptions`, and what does not change an engine.

    batch None takes what the bundle's settings ask for: from 1 to its window, fastest at the window.
    """

    batch: tuple[int, int, int] | None = None  # type: ignore[assignment]
    cuda_graphs: bool = False  # replay each engine as a CUDA graph per batch size: quicker to start, more memory

    def __post_init__(self) -> None:
        self.build_options((1, 1, 1))

    def build_options(self, batch: tuple[int, int, int]) -> BuildOptions:
        """The part that an engine depends on; `batch` where none was chosen. Raises `UsageError`."""
        values = {field.name: getattr(self, field.name) for field in fields(BuildOptions)}
        return BuildOptions(**{**values, "batch": self.batch or batch})


@dataclass(frozen=True)
class Prepared:
    """An engine that is ready, and how it came about."""

    job: Job
    program: TensorRTProgram | None  # None once it was let go
    options: BuildOptions  # precision may be fp32 where fp16 was wanted
    cached: bool
    bytes: int
    seconds: float  # of its build, whenever that was
    peak: int  # bytes that the build took at most, 0 where nobody knows
    errors: Mapping[str, float]
    note: str = ""  # why it was built, or why not in the precision that was wanted

    def without_program(self) -> Prepared:
        """The same facts, without the engine and its memory."""
        return replace(self, program=None)


class _KnownToFailError(EngineBuildError):
    """An engine that was built earlier, and computed wrongly."""


class BundleEngines:
    """Engines of one bundle.

    config   settings; those of the last `edgetta build` when None
    cache    folder of the engines of all bundles; `edgetta/engines` in the user's cache folder when None
    tell     receives one line for everything that is built again, and why
    Raises `MissingDependencyError` where TensorRT or a GPU is missing, `StorageError` where the cache cannot be
    written.
    """

    def __init__(
        self,
        bundle: Bundle,
        config: TensorRTConfig | None = None,
        cache: Path | None = None,
        tell: Callable[[str], None] = _log.warning,
    ) -> None:
        self.bundle = bundle
        self.target = find_target()
        self.device = torch.device(self.target.device)
        self.cache = EngineCache(cache or default_root(), folder_name(bundle.name, bundle.identity))
        self.config = config if config is not None else _remembered(self.cache)
        window = max(1, bundle.config.window)
        self.options = self.config.build_options((1, window, window))
        self._tell = tell
        self._pool: Any = None

    def jobs(self, gradient: Gradient = "auto") -> list[Job]:
        """The programs that a network in this gradient mode needs."""
        return list(jobs_of(self.bundle.programs, gradient))

    def engine(self) -> GpuEngine:
        """The engine that runs the bundle's programs, each prepared when it is first used."""
        rounding = "tf32" if self.options.tf32 and self.options.precision == "fp32" else self.options.precision
        return GpuEngine(self.bundle.programs, "tensorrt", self._made, self.device, rounding)

    def _made(self, name: str) -> tuple[Runnable, bool]:
        prepared = self.prepare(job_of(self.bundle.programs, name))
        return self._runnable(prepared), prepared.options.precision == "fp16"

    def prepare(self, job: Job, watch: Watch | None = None) -> Prepared:
        """Take an engine from the cache, or build and test it; `watch` is told how far a build is, in [0, 1].

        Raises `EngineBuildError` where TensorRT makes no engine that computes right.
        """
        model = job.model()
        digest = hashlib.sha256(model.to_bytes()).hexdigest()
        refused = ""
        for precision in dict.fromkeys((self.options.precision, "fp32")):
            options = replace(self.options, precision=precision)
            key = EngineKey(job.title, digest, self.target, options)
            try:
                ready = self._cached(job, key) or self._built(job, key, model, watch)
            except EngineBuildError as error:
                if precision == "fp32":
                    raise
                refused = str(error)
                if not isinstance(error, _KnownToFailError):
                    self._tell(f"{job.title} is not usable in float16 ({refused}); float32 is used for it")
                continue
            return replace(ready, note=refused or ready.note)
        raise AssertionError("there is always float32")

    def remember(self, gradient: Gradient) -> None:
        """Keep the settings, so that the runtime asks for these engines when it is given none."""
        settings = {field.name: getattr(self.config, field.name) for field in fields(TensorRTConfig)}
        settings |= {"batch": list(self.options.batch)}
        self.cache.remember({"bundle": self.bundle.identity, "gradient": gradient, "settings": settings})

    def _cached(self, job: Job, key: EngineKey) -> Prepared | None:
        found = self.cache.find(key)
        if found.refused:
            raise _KnownToFailError(found.refused)
        if found.data is None:
            return None
        try:
            program = TensorRTProgram(found.data, job.graph, self.device, job.title)
        except EngineRejectedError as error:
            self._tell(f"{job.title}: {error}; building it again")
            self.cache.forget(key)
            return None
        facts = found.facts if isinstance(found.facts, Mapping) else {}
        seconds, peak, errors = facts.get("seconds", 0.0), facts.get("peak", 0), facts.get("errors", {})
        return Prepared(job, program, key.options, True, len(found.data), seconds, peak, errors)

    def _built(self, job: Job, key: EngineKey, model: OnnxModel, watch: Watch | None) -> Prepared:
        with self.cache.building(lambda: self._tell("another process builds engines; waiting for it")):
            reason = self.cache.find(key).reason
            ready = self._cached(job, key)  # perhaps that process built it
            if ready is not None:
                return ready
            if reason != "not built yet":
                self._tell(f"{job.title}: {reason}; building it again")
            with watch_memory() as memory:
                built = build_engine(model, job.title, key.options, self.cache.timing(self.target), watch)
            program = TensorRTProgram(built.data, job.graph, self.device, job.title)
            errors = self._errors(job, program, key.options)
            facts = {"seconds": built.seconds, "workspace": built.workspace, "peak": memory.peak}
            wrong = verdict(job.title, errors, key.options)
            if wrong:
                why = f"{job.title} computes wrongly: {wrong}"
                if key.options.precision == "fp32":
                    raise EngineBuildError(f"{why}; use --engine onnxruntime, and report this")
                self.cache.refuse(key, why, facts)
                raise EngineBuildError(why)
            self.cache.store(key, built.data, {**facts, "errors": errors})
        return Prepared(job, program, key.options, False, len(built.data), built.seconds, memory.peak, errors, reason)

    def _errors(self, job: Job, program: TensorRTProgram, options: BuildOptions) -> dict[str, float]:
        """The test of an engine, on the golden images."""
        reference = program_reference(self.bundle.programs, job.title, self._golden).only(job.outputs)
        return engine_errors(program, reference, self.device, options.precision == "fp16")

    @cached_property
    def _golden(self) -> Array:
        """Golden images, as many as engines take."""
        images = self.bundle.reference()["images"]
        smallest, _, largest = self.options.batch
        count = min(max(len(images), smallest), largest)
        golden: Array = images[[i % len(images) for i in range(count)]]
        return golden

    def _runnable(self, prepared: Prepared) -> Runnable:
        program = prepared.program
        assert program is not None
        if not self.config.cuda_graphs or self.device.type != "cuda":
            return program
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return GraphedProgram(program, self._pool)


def was_built(bundle: Bundle, cache: Path | None = None) -> bool:
    """Whether `edgetta build` was run for this bundle, and TensorRT can run here: a matter of milliseconds."""
    if not ((cache or default_root()) / folder_name(bundle.name, bundle.identity) / "build.json").is_file():
        return False
    try:
        find_target()
    except MissingDependencyError:
        return False
    return True


def _remembered(cache: EngineCache) -> TensorRTConfig:
    """The settings of the last `edgetta build` of the bundle; the default ones where there was none."""
    last = cache.last_build()
    try:
        settings = dict(last["settings"])
        settings["batch"] = tuple(int(n) for n in settings["batch"])
        return TensorRTConfig(**settings)
    except (KeyError, TypeError, ValueError, UsageError):
        return TensorRTConfig()
