"""ONNX Runtime on a GPU: its CUDA and its TensorRT provider, on torch's memory and in order with torch's stream.

The TensorRT provider builds its own engines when a session is made, and keeps them in a folder. `edgetta build` makes
better ones: in float16, tested, and sharing memory; this is for where ONNX Runtime is there and TensorRT's Python
package is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgetta.engines.cuda_stream import engine_stream
from edgetta.engines.gpu import Keep
from edgetta.engines.tensorrt.library import gpu_trouble
from edgetta.errors import BundleError, MissingDependencyError, one_line
from edgetta.segments.graph import Graph
from edgetta.segments.onnx_model import OnnxModel
from edgetta.segments.onnxruntime_engine import import_onnxruntime

PROVIDERS = {"onnxruntime-cuda": "CUDAExecutionProvider", "onnxruntime-tensorrt": "TensorrtExecutionProvider"}
_CPU = "CPUExecutionProvider"  # for the sizes in a Reshape and the like


class OnnxGpuProgram:
    """One ONNX model as a session on a GPU, whose inputs and outputs are torch tensors there.

    model   the ONNX file; it may lack outputs of `graph`
    title   for messages, such as "backward"
    engine  "onnxruntime-cuda" or "onnxruntime-tensorrt"
    batch   smallest, best and largest batch, for which the TensorRT provider builds
    cache   folder where the TensorRT provider keeps its engine
    Raises `MissingDependencyError` where ONNX Runtime cannot use the provider, `BundleError` where it does not take
    the model.
    """

    def __init__(
        self,
        model: OnnxModel,
        graph: Graph,
        title: str,
        engine: str,
        device: torch.device,
        batch: tuple[int, int, int] = (1, 64, 64),
        cache: Path | None = None,
    ) -> None:
        runtime = import_onnxruntime()
        self.graph = graph
        self._device = device
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        with engine_stream(device) as stream:
            providers = _providers(engine, model, device, stream, batch, cache)
            try:
                self._session = runtime.InferenceSession(model.to_bytes(), options, providers=providers)
            except Exception as error:  # its kinds are many
                raise BundleError(
                    f"ONNX Runtime refuses {title}: {one_line(error)}; try --engine torch-cuda, or export the bundle "
                    "again"
                ) from error
        if PROVIDERS[engine] not in self._session.get_providers():  # it falls back silently
            raise MissingDependencyError(
                f"ONNX Runtime {runtime.__version__} could not start its {PROVIDERS[engine]}, mostly because CUDA, "
                "cuDNN or TensorRT are of another version than it was built for; use --engine torch-cuda"
            )
        self._options = runtime.RunOptions()
        # Otherwise every run would wait until the GPU is done; torch's stream waits for this one instead.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._inputs = [entry.name for entry in self._session.get_inputs()]
        self._outputs = [entry.name for entry in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str], keep: Keep | None = None) -> list[Tensor]:
        """The outputs named, in new tensors; `keep(name, tensor)` may replace each by something smaller."""
        binding = self._session.io_binding()
        batch = next((t.shape[0] for name, t in inputs.items() if self.graph.values[name].per_sample), 1)
        given = {name: inputs[name].to(self._device, self._dtype(name)).contiguous() for name in self._inputs}
        made = {
            name: torch.empty(self.graph.values[name].with_batch(batch), dtype=self._dtype(name), device=self._device)
            for name in self._outputs
        }
        for bind, tensors in ((binding.bind_input, given), (binding.bind_output, made)):
            for name, tensor in tensors.items():
                number, kind = self._device.index or 0, _numpy_type(tensor)
                bind(name, "cuda", number, kind, tuple(tensor.shape), tensor.data_ptr())
        with engine_stream(self._device):
            self._session.run_with_iobinding(binding, self._options)
        return [made[name] if keep is None else keep(name, made.pop(name)) for name in outputs]

    def _dtype(self, name: str) -> torch.dtype:
        return torch.bool if self.graph.values[name].dtype == "bool" else torch.float32


def provider_trouble(engine: str) -> str:
    """Why ONNX Runtime cannot run `engine` here, with the remedy; "" where it can."""
    runtime = import_onnxruntime()
    if PROVIDERS[engine] not in runtime.get_available_providers():
        return (
            f"ONNX Runtime {runtime.__version__} is built without {PROVIDERS[engine]}; uninstall it and install "
            "onnxruntime-gpu, on a Jetson the wheel for its JetPack"
        )
    trouble = gpu_trouble()
    return f"there is no GPU to use: {trouble}" if trouble else ""


def _providers(
    engine: str,
    model: OnnxModel,
    device: torch.device,
    stream: int,
    batch: tuple[int, int, int],
    cache: Path | None,
) -> list[Any]:
    """Providers in order of preference, each with its options, as ONNX Runtime 1.16 knows them."""
    shared = {"device_id": str(device.index or 0), "user_compute_stream": str(stream)}
    cuda = {
        **shared,
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",  # the default tries every algorithm for every new batch size
    }
    providers: list[Any] = [(PROVIDERS["onnxruntime-cuda"], cuda), _CPU]
    if engine == "onnxruntime-tensorrt":
        tensorrt = {
            **shared,
            "trt_context_memory_sharing_enable": "True",
            "trt_auxiliary_streams": "0",
            **{f"trt_profile_{which}_shapes": _shapes(model, n) for which, n in zip(_WHICH, batch, strict=True)},
        }
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
            kept = ("trt_engine_cache", "trt_timing_cache")
            tensorrt |= {f"{name}_enable": "True" for name in kept} | {f"{name}_path": str(cache) for name in kept}
        providers.insert(0, (PROVIDERS[engine], tensorrt))
    return providers


_WHICH = ("min", "opt", "max")


def _shapes(model: OnnxModel, batch: int) -> str:
    """`x:64x3x32x32,grad_y:64x10`"""
    shapes = {v.name: [batch if size is None else size for size in v.shape] for v in model.inputs if v.per_sample}
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


def _numpy_type(tensor: Tensor) -> Any:
    return np.bool_ if tensor.dtype == torch.bool else np.float32
