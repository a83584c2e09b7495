"""Put a bundle's programs on an engine: torch, ONNX Runtime, or one of a GPU. Torch is imported for its own alone."""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from edgetta.bundle.reading import Bundle
from edgetta.engines.contract import Engine
from edgetta.engines.onnxruntime import OnnxRuntimeEngine, import_onnxruntime
from edgetta.errors import MissingDependencyError, UsageError
from edgetta.segments.engine_names import ENGINES

if TYPE_CHECKING:
    from edgetta.bundle.tensorrt_engines import TensorRTConfig

GPU_DEVICES = ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvhost-ctrl-gpu", "/dev/nvgpu", "/dev/dxg")
"""Where a driver shows an NVIDIA GPU: on a desktop, on Jetsons, under Windows' Linux."""


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
    threads        of ONNX Runtime, 0 for its own choice; torch's own are set with `torch.set_num_threads`
    tensorrt       settings of TensorRT; those of the last `edgetta build` when None
    engine_cache   folder of engines; `edgetta/engines` in the user's cache folder when None
    Raises `UsageError` for an engine that edgetta does not have, `MissingDependencyError` for one that cannot be used.
    """
    if threads < 0:
        raise UsageError(f"{threads} threads are none; use 1 or more, or 0 for as many as there are cores")
    name = engine_name(engine, bundle, engine_cache)
    if name == "onnxruntime":
        return OnnxRuntimeEngine(bundle.programs, threads)
    if name == "torch":
        from edgetta.engines.torch import TorchEngine

        return TorchEngine(bundle.programs)
    from edgetta.bundle.gpu_engines import open_gpu_engine

    return open_gpu_engine(bundle, name, tensorrt, engine_cache)


def engine_name(engine: str, bundle: Bundle | None = None, engine_cache: Path | None = None) -> str:
    """Resolve "auto", which is never TensorRT without a bundle. Raises `UsageError` for an unknown engine."""
    if engine in ENGINES:
        return engine
    if engine != "auto":
        raise UsageError(f"unknown engine {engine!r}; choose one of auto, {', '.join(ENGINES)}")
    if gpu_is_here():
        from edgetta.bundle.gpu_engines import fastest_gpu_engine

        found = fastest_gpu_engine(bundle, engine_cache)
        if found:
            return found
    return processor_engines()[0]


def gpu_is_here() -> bool:
    """Whether the machine shows an NVIDIA GPU: asked of its files, since torch takes seconds to import."""
    return any(Path(device).exists() for device in GPU_DEVICES)


def processor_engines() -> tuple[str, ...]:
    """The engines of the processor that are installed here, the faster first."""
    found = []
    with suppress(MissingDependencyError):
        import_onnxruntime()
        found.append("onnxruntime")
    if importlib.util.find_spec("torch") is not None:
        found.append("torch")
    return tuple(found)


def engine_troubles() -> dict[str, str]:
    """Why each engine cannot be used on this machine, with the remedy; "" for those that can."""
    from edgetta.bundle.gpu_engines import gpu_engine_troubles

    troubles = {"torch": "", "onnxruntime": "", **gpu_engine_troubles()}
    try:
        import_onnxruntime()
    except MissingDependencyError as error:
        troubles["onnxruntime"] = str(error)
    return {name: troubles[name] for name in ENGINES}
