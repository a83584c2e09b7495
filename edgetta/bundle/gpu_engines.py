"""A bundle's programs on an NVIDIA GPU: torch, ONNX Runtime's two providers, TensorRT."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from edgetta.bundle.program_jobs import job_of
from edgetta.bundle.reading import Bundle
from edgetta.engines.contract import Engine
from edgetta.engines.gpu import GpuEngine, Runnable
from edgetta.engines.onnxruntime_gpu import PROVIDERS, OnnxGpuProgram, provider_trouble
from edgetta.engines.tensorrt import library
from edgetta.engines.tensorrt.cache import default_root, folder_name
from edgetta.engines.torch import TorchEngine
from edgetta.errors import MissingDependencyError

if TYPE_CHECKING:
    from edgetta.bundle.tensorrt_engines import TensorRTConfig


class TorchGpuEngine(TorchEngine):
    """The torch engine on a GPU, where torch lets convolutions round their inputs."""

    name = "torch-cuda"
    precision = "tf32"


def open_gpu_engine(
    bundle: Bundle, name: str, tensorrt: TensorRTConfig | None = None, engine_cache: Path | None = None
) -> Engine:
    """The GPU engine called `name`; see `engines.open_engine`. Raises `MissingDependencyError`."""
    if name == "tensorrt":
        from edgetta.bundle.tensorrt_engines import BundleEngines

        return BundleEngines(bundle, tensorrt, engine_cache).engine()
    if name == "torch-cuda":
        trouble = library.gpu_trouble()
        if trouble:
            raise MissingDependencyError(f"the engine {name} needs an NVIDIA GPU: {trouble}; until then use torch")
        return TorchGpuEngine(bundle.programs, device=library.find_gpu()[2])
    return _onnxruntime(bundle, name, engine_cache or default_root())


def fastest_gpu_engine(bundle: Bundle | None = None, engine_cache: Path | None = None) -> str:
    """What "auto" takes on a GPU: TensorRT where the bundle's engines were built, ONNX Runtime, torch; "" for none."""
    if bundle is not None:
        from edgetta.bundle.tensorrt_engines import was_built

        if was_built(bundle, engine_cache):
            return "tensorrt"
    if not torch.cuda.is_available():
        return ""
    with suppress(MissingDependencyError):
        if not provider_trouble("onnxruntime-cuda"):
            return "onnxruntime-cuda"
    return "torch-cuda"


def gpu_engine_troubles() -> dict[str, str]:
    """Why each GPU engine cannot be used on this machine, with the remedy; "" for those that can."""
    troubles = {"torch-cuda": library.gpu_trouble(), "tensorrt": library.tensorrt_trouble()}
    for name in PROVIDERS:
        try:
            troubles[name] = provider_trouble(name)
        except MissingDependencyError as error:
            troubles[name] = str(error)
    return troubles


def _onnxruntime(bundle: Bundle, name: str, root: Path) -> Engine:
    """ONNX Runtime's CUDA or TensorRT provider; the latter builds engines, and keeps them in a folder below `root`."""
    trouble = provider_trouble(name)
    if trouble:
        raise MissingDependencyError(f"the engine {name} cannot be used: {trouble}; until then use onnxruntime")
    device = torch.device(library.find_gpu()[2])
    cache = root / folder_name(bundle.name, bundle.identity) / name
    window = max(1, bundle.config.window)

    def make(program: str) -> tuple[Runnable, bool]:
        job = job_of(bundle.programs, program)
        # The provider names its files by the graph, and two programs may have graphs that look alike.
        folder = cache / job.title
        batch = (1, window, window)
        return OnnxGpuProgram(job.model(), job.graph, job.title, name, device, batch, folder), False

    # CUDA's convolutions round their inputs as torch's do.
    return GpuEngine(bundle.programs, name, make, device, "tf32")
