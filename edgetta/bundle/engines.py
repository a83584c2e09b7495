"""Put a bundle's graphs on an engine: torch, which is always there, ONNX Runtime, or TensorRT."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from edgetta.adaptation.model import Gradient, build, check_choices
from edgetta.adaptation.network import AdaptiveNetwork, BatchNorm
from edgetta.adaptation.step_memory import FULL, StepMemory
from edgetta.bundle.reading import Bundle
from edgetta.bundle.segment_jobs import Job, jobs_of, source_job
from edgetta.errors import BundleError, MissingDependencyError, UsageError
from edgetta.segments.contract import GradientMode, Segment, SegmentGraphs
from edgetta.segments.engine_names import ENGINES
from edgetta.segments.gpu_segment import GpuSegment
from edgetta.segments.onnxruntime_engine import OnnxProgram, OnnxRuntimeSegment, import_onnxruntime
from edgetta.segments.onnxruntime_gpu import PROVIDERS, OnnxGpuProgram, provider_trouble
from edgetta.segments.tensorrt.cache import default_root, folder_name
from edgetta.segments.tensorrt.library import find_gpu, gpu_trouble, tensorrt_trouble
from edgetta.segments.torch_engine import Program, TorchSegment

if TYPE_CHECKING:
    from edgetta.bundle.tensorrt_engines import TensorRTConfig


class Engine(Protocol):
    """Makes segments of a bundle on one engine.

    name     as in `ENGINES`
    device   where tensors live
    """

    name: str
    device: torch.device

    def segment(self, name: str, graphs: SegmentGraphs, mode: GradientMode) -> Segment: ...

    def source(self) -> Callable[[Tensor], Tensor]: ...


class TorchEngine:
    """The torch engine, on the processor or on a GPU."""

    def __init__(self, bundle: Bundle, device: torch.device) -> None:
        self.name = "torch" if device.type == "cpu" else "torch-cuda"
        self.device = device
        self._bundle = bundle

    def segment(self, name: str, graphs: SegmentGraphs, mode: GradientMode) -> Segment:
        return TorchSegment(graphs, mode, self.device)

    def source(self) -> Callable[[Tensor], Tensor]:
        program = Program(self._bundle.model.source, self.device)

        def run(images: Tensor) -> Tensor:
            with torch.no_grad():
                return program.run({"x": images.to(self.device)})[0]

        return run


class OnnxRuntimeEngine:
    """ONNX Runtime on the processor. `threads` 0 takes torch's number."""

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        import_onnxruntime()
        self.name = "onnxruntime"
        self.device = torch.device("cpu")
        self._bundle = bundle
        self._threads = threads

    def segment(self, name: str, graphs: SegmentGraphs, mode: GradientMode) -> Segment:
        bundle = self._bundle
        models = {direction: bundle.onnx(name, direction) for direction in bundle.entry(name).onnx}
        return OnnxRuntimeSegment(graphs, models, mode, self._threads, name)

    def source(self) -> Callable[[Tensor], Tensor]:
        graph = self._bundle.model.source
        session = OnnxProgram(self._bundle.onnx("source"), graph, self._threads, "the source network")
        return lambda images: session.run({"x": images})[0]


class OnnxRuntimeGpuEngine:
    """ONNX Runtime's CUDA or TensorRT provider; the latter builds engines, and keeps them in a folder of `cache`."""

    def __init__(self, bundle: Bundle, name: str, cache: Path) -> None:
        trouble = provider_trouble(name)
        if trouble:
            raise MissingDependencyError(f"the engine {name} cannot be used: {trouble}; until then use onnxruntime")
        self.name = name
        self.device = torch.device(find_gpu()[2])
        self._bundle = bundle
        self._cache = cache

    def segment(self, name: str, graphs: SegmentGraphs, mode: GradientMode) -> Segment:
        programs = {job.role: self._program(job) for job in jobs_of(name, graphs, mode)}
        return GpuSegment(self.name, graphs, programs, mode, self.device)

    def source(self) -> Callable[[Tensor], Tensor]:
        job = source_job(self._bundle.model)
        program = self._program(job)
        return lambda images: program.run({"x": images}, job.outputs)[0]

    def _program(self, job: Job) -> OnnxGpuProgram:
        window = max(1, self._bundle.config.window)
        model, cache = job.model(self._bundle), self._cache / job.title
        return OnnxGpuProgram(model, job.graph, job.title, self.name, self.device, (1, window, window), cache)


def open_engine(
    bundle: Bundle,
    engine: str = "auto",
    threads: int = 0,
    tensorrt: TensorRTConfig | None = None,
    engine_cache: Path | None = None,
) -> Engine:
    """The engine called `engine` (see `ENGINES`), for a bundle.

    "auto" takes the first that can be used here: TensorRT where `edgetta build` was run for this bundle, ONNX Runtime
    on a GPU, torch on a GPU, ONNX Runtime, torch.
    threads        of ONNX Runtime, 0 for as many as torch has; torch's own are set with `torch.set_num_threads`
    tensorrt       settings of TensorRT; those of the last `edgetta build` when None
    engine_cache   folder of engines; `edgetta/engines` in the user's cache folder when None
    Raises `UsageError` for an engine that edgetta does not have, `MissingDependencyError` for one that cannot be used.
    """
    if threads < 0:
        raise UsageError(f"{threads} threads are none; use 1 or more, or 0 for as many as torch has")
    name = engine_name(engine, bundle, engine_cache)
    if name == "tensorrt":
        from edgetta.bundle.tensorrt_engines import BundleEngines

        return BundleEngines(bundle, tensorrt, engine_cache)
    if name == "torch":
        return TorchEngine(bundle, torch.device("cpu"))
    if name == "torch-cuda":
        trouble = gpu_trouble()
        if trouble:
            raise MissingDependencyError(f"the engine {name} needs an NVIDIA GPU: {trouble}; until then use torch")
        return TorchEngine(bundle, torch.device(find_gpu()[2]))
    if name in PROVIDERS:
        cache = (engine_cache or default_root()) / folder_name(bundle.name, bundle.identity) / name
        return OnnxRuntimeGpuEngine(bundle, name, cache)
    return OnnxRuntimeEngine(bundle, threads)


def build_network(
    bundle: Bundle,
    engine: str | Engine = "auto",
    gradient: Gradient = "auto",
    batch_norm: BatchNorm | None = None,
    threads: int = 0,
    memory: StepMemory = FULL,
) -> AdaptiveNetwork:
    """The bundle's network on an engine, in the state in which it was shipped.

    engine      a name, or what `open_engine` returned
    gradient    "auto", "exact", "recompute" or "local"
    batch_norm  "auto", "batch", "ema" or "source"; the bundle's own when None
    threads     as for `open_engine`
    memory      what a step keeps between forward and backward
    Raises `UsageError` for options that cannot be, `MissingDependencyError` where the engine is not installed,
    `BundleError` where the engine refuses the bundle's files.
    """
    policy = bundle.batch_norm if batch_norm is None else batch_norm
    check_choices(gradient, policy)
    opened = open_engine(bundle, engine, threads) if isinstance(engine, str) else engine
    network = build(bundle.model, opened.segment, gradient, policy, memory=memory)
    network.metas.to(opened.device)
    network.ema_images = bundle.ema_images
    try:
        network.load_state_dict(bundle.meta_tensors())
    except ValueError as error:
        raise BundleError(
            f"{bundle.files.manifest.meta_tensors} in bundle {bundle.path}: {error}; export the bundle again"
        ) from error
    return network


def source_program(bundle: Bundle, engine: str | Engine = "auto", threads: int = 0) -> Callable[[Tensor], Tensor]:
    """The unadapted backbone on an engine: images (N, C, H, W) in [0, 1] -> logits (N, classes)."""
    return (open_engine(bundle, engine, threads) if isinstance(engine, str) else engine).source()


def engine_name(engine: str, bundle: Bundle | None = None, engine_cache: Path | None = None) -> str:
    """Resolve "auto", which is never TensorRT without a bundle. Raises `UsageError` for an unknown engine."""
    if engine in ENGINES:
        return engine
    if engine != "auto":
        raise UsageError(f"unknown engine {engine!r}; choose one of auto, {', '.join(ENGINES)}")
    if bundle is not None:
        from edgetta.bundle.tensorrt_engines import was_built

        if was_built(bundle, engine_cache):
            return "tensorrt"
    if torch.cuda.is_available():
        with suppress(MissingDependencyError):
            return "torch-cuda" if provider_trouble("onnxruntime-cuda") else "onnxruntime-cuda"
        return "torch-cuda"
    with suppress(MissingDependencyError):
        import_onnxruntime()
        return "onnxruntime"
    return "torch"


def processor_engines() -> tuple[str, ...]:
    """The engines of the processor that are installed here, the faster first."""
    with suppress(MissingDependencyError):
        import_onnxruntime()
        return ("onnxruntime", "torch")
    return ("torch",)


def engine_troubles() -> dict[str, str]:
    """Why each engine cannot be used on this machine, with the remedy; "" for those that can."""
    troubles = {"torch": "", "torch-cuda": gpu_trouble(), "tensorrt": tensorrt_trouble()}
    try:
        import_onnxruntime()
        troubles |= {"onnxruntime": "", **{name: provider_trouble(name) for name in PROVIDERS}}
    except MissingDependencyError as error:
        troubles |= dict.fromkeys(("onnxruntime", *PROVIDERS), str(error))
    return {name: troubles[name] for name in ENGINES}


def engine_of(network: AdaptiveNetwork) -> str:
    """The engine that a network of `build_network` runs on."""
    if isinstance(network.classifier, GpuSegment):
        return network.classifier.engine
    if isinstance(network.classifier, OnnxRuntimeSegment):
        return "onnxruntime"
    return "torch" if network.device.type == "cpu" else "torch-cuda"
