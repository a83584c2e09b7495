"""Run an engine on torch's memory: nothing is copied, every call that can fail is checked.

Each engine has a context without memory of its own. What it needs while it runs is taken from torch's allocator for
the time of one call, so that all engines, and everything torch does between them, share the same memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgetta.engines.cuda_stream import engine_stream
from edgetta.engines.gpu import Keep
from edgetta.engines.tensorrt.library import import_tensorrt, messages
from edgetta.errors import EdgettaError, MissingDependencyError, UsageError
from edgetta.segments.graph import Graph

ALIGNMENT = 256  # of the memory that a context works in


class EngineRejectedError(EdgettaError):
    """TensorRT does not take a serialised engine, or it is not the engine of its graph."""


class TensorRTProgram:
    """One engine whose inputs and outputs are torch tensors on a CUDA device.

    data    the serialised engine
    graph   what it computes; it may lack outputs of the graph that are never asked for
    title   for messages, such as "backward"
    Raises `EngineRejectedError` where TensorRT refuses the engine, `MissingDependencyError` where it cannot start.
    """

    def __init__(self, data: bytes, graph: Graph, device: torch.device, title: str) -> None:
        trt = import_tensorrt()
        self.graph = graph
        self.title = title
        self._trt = trt
        self._device = device
        self._logger = messages(trt)
        self._logger.clear()
        self._engine = _runtime(trt).deserialize_cuda_engine(data)
        if self._engine is None:
            raise EngineRejectedError(f"TensorRT {trt.__version__} refuses the engine: {self._logger.last()}")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self.inputs = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if modes[name] == trt.TensorIOMode.OUTPUT]
        if not set(self.inputs) <= set(graph.inputs) or not set(self.outputs) <= set(graph.outputs):
            raise EngineRejectedError("the engine has other inputs and outputs than its program")
        self._dtypes = {name: _dtype(trt, self._engine.get_tensor_dtype(name)) for name in names}
        self.batches = self._batches()
        self._context = _context(trt, self._engine)
        if self._context is None:
            raise MissingDependencyError(
                f"TensorRT has no memory for the engine of {title} ({self._logger.last()}); close other programs, or "
                "use --engine onnxruntime"
            )
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._bytes = 0

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str], keep: Keep | None = None) -> list[Tensor]:
        """The outputs named, in new tensors; `keep(name, tensor)` may replace each by something smaller.

        Raises `UsageError` for a batch that the engine was not built for.
        """
        batch = next((t.shape[0] for name, t in inputs.items() if self.graph.values[name].per_sample), 1)
        self._check(batch)
        # All of these must live until the engine is enqueued; then torch's allocator keeps the order of the stream.
        given = {name: inputs[name].to(self._device, self._dtypes[name]).contiguous() for name in self.inputs}
        made = {
            name: torch.empty(self.graph.values[name].with_batch(batch), dtype=self._dtypes[name], device=self._device)
            for name in self.outputs
        }
        self._set_shapes(given)
        for name, tensor in {**given, **made}.items():
            if not self._context.set_tensor_address(name, tensor.data_ptr()):
                raise self._failed(f"no address for {name!r}")
        scratch = torch.empty(self._bytes + ALIGNMENT, dtype=torch.uint8, device=self._device)
        address = -(-scratch.data_ptr() // ALIGNMENT) * ALIGNMENT
        with engine_stream(self._device) as stream:
            if hasattr(self._context, "set_device_memory"):  # since 10.1
                self._context.set_device_memory(address, self._bytes)
            else:
                self._context.device_memory = address
            if not self._context.execute_async_v3(stream):
                raise self._failed("it could not be started")
        del scratch
        return [made[name] if keep is None else keep(name, made.pop(name)) for name in outputs]

    def _set_shapes(self, given: Mapping[str, Tensor]) -> None:
        """Tell the context shapes that have changed, and learn how much memory it needs then."""
        shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
        if shapes == self._shapes:
            return
        self._shapes = {}
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise self._failed(f"{name!r} cannot have shape {shape}")
        if hasattr(self._context, "update_device_memory_size_for_shapes"):  # since 10.0; its answer is binding
            self._bytes = int(self._context.update_device_memory_size_for_shapes())
        elif hasattr(self._engine, "device_memory_size_v2"):
            self._bytes = int(self._engine.device_memory_size_v2)
        else:
            self._bytes = int(self._engine.device_memory_size)
        self._shapes = shapes

    def _batches(self) -> tuple[int, int]:
        """Smallest and largest batch that the engine was built for."""
        for name in self.inputs:
            if self.graph.values[name].per_sample:
                smallest, _, largest = self._engine.get_tensor_profile_shape(name, 0)
                axis = self.graph.values[name].shape.index(-1)
                return int(tuple(smallest)[axis]), int(tuple(largest)[axis])
        return 1, 1 << 30

    def _check(self, batch: int) -> None:
        smallest, largest = self.batches
        if not smallest <= batch <= largest:
            remedy = f"{min(batch, smallest)},{max(smallest, min(batch, largest))},{max(batch, largest)}"
            raise UsageError(
                f"the TensorRT engines were built for batches of {smallest} to {largest} images, and this one has "
                f"{batch}: use another --batch, or `edgetta build BUNDLE --batch {remedy}`"
            )

    def _failed(self, what: str) -> EdgettaError:
        said = self._logger.last()
        return EdgettaError(f"TensorRT failed in {self.title}: {what} ({said}); try --engine onnxruntime")


class GraphedProgram:
    """A program recorded as one CUDA graph per batch size, which spares the launches of its kernels one by one.

    Inputs are copied to where the recording reads them, and outputs from where it leaves them.
    """

    def __init__(self, program: TensorRTProgram, pool: Any = None) -> None:
        self.program = program
        self.graph = program.graph
        self._pool = pool
        self._recordings: dict[int, _Recording] = {}

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str], keep: Keep | None = None) -> list[Tensor]:
        """As `TensorRTProgram.run`."""
        batch = next((t.shape[0] for name, t in inputs.items() if self.graph.values[name].per_sample), 1)
        recording = self._recordings.get(batch)
        if recording is None:
            recording = self._recordings[batch] = self._record(inputs)
        else:
            for name, tensor in recording.inputs.items():
                tensor.copy_(inputs[name])
        recording.graph.replay()
        results = []
        for name in outputs:
            left = recording.outputs[name]
            kept = left if keep is None else keep(name, left)
            results.append(left.clone() if kept is left else kept)  # the next replay writes over it
        return results

    def _record(self, inputs: Mapping[str, Tensor]) -> _Recording:
        program = self.program
        given = {name: inputs[name].clone(memory_format=torch.contiguous_format) for name in program.inputs}
        program.run(given, [])  # once outside: after a change of shapes TensorRT has work that cannot be recorded
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            made = program.run(given, program.outputs)
        return _Recording(graph, given, dict(zip(program.outputs, made, strict=True)))


@dataclass(frozen=True)
class _Recording:
    graph: Any
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


_runtimes: dict[str, Any] = {}


def _runtime(trt: Any) -> Any:
    """TensorRT's runtime, one per process, started only where there is a GPU: without one some versions crash."""
    name = str(trt.__name__)
    if name not in _runtimes:
        logger = messages(trt)
        try:
            runtime = trt.Runtime(logger)
        except TypeError:
            runtime = None
        if runtime is None:
            said = logger.last()
            old = "the NVIDIA driver is too old for it: update the driver (on a Jetson JetPack)"
            remedy = old if "error: 35" in said or "insufficient" in said else "check the GPU with nvidia-smi"
            raise MissingDependencyError(f"TensorRT {trt.__version__} cannot start ({said}); {remedy}")
        _runtimes[name] = runtime
    return _runtimes[name]


def _context(trt: Any, engine: Any) -> Any:
    """An execution context that works in memory given to it."""
    if hasattr(trt, "ExecutionContextAllocationStrategy"):  # since 10.0
        return engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    return engine.create_execution_context_without_device_memory()


def _dtype(trt: Any, kind: Any) -> torch.dtype:
    dtypes = {trt.DataType.FLOAT: torch.float32, trt.DataType.BOOL: torch.bool, trt.DataType.HALF: torch.float16}
    if kind not in dtypes:
        raise EngineRejectedError(f"the engine takes or gives {kind}, which no program has")
    return dtypes[kind]
