"""The ONNX Runtime engine: the derived graphs as inference sessions, bound to torch memory without copies.

All sessions of a process share one arena and do not spin: measured on two cores, that halves resident memory and
takes a quarter off the time between torch operators. The arena keeps its memory from run to run, and gives it back
when a smaller batch comes: giving it back after every run would add 40 % to a prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgetta.errors import MissingDependencyError
from edgetta.segments.contract import GradientMode, Residuals, SegmentGraphs
from edgetta.segments.graph import Graph

_arena_registered = False
_arena_batch = 0  # of the last run of any session


def import_onnxruntime() -> Any:
    """The onnxruntime module (CPU or GPU build); raises `MissingDependencyError` where neither is installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "the onnxruntime engine needs ONNX Runtime: pip install 'edgetta[onnxruntime]' "
            "(or onnxruntime-gpu), or use --engine torch"
        ) from error
    return onnxruntime


class OnnxProgram:
    """One ONNX graph as a session whose inputs and outputs are torch tensors."""

    def __init__(self, model: str | bytes, graph: Graph, threads: int = 0) -> None:
        runtime = import_onnxruntime()
        self.graph = graph
        self._session = runtime.InferenceSession(model, _options(runtime, threads), providers=["CPUExecutionProvider"])
        self._keeping, self._giving_back = runtime.RunOptions(), runtime.RunOptions()
        for options in (self._keeping, self._giving_back):
            options.only_execute_path_to_fetches = True
        self._giving_back.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._inputs = [entry.name for entry in self._session.get_inputs()]

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> list[Tensor]:
        """The outputs named, in new tensors; what only other outputs need is not computed."""
        global _arena_batch
        binding = self._session.io_binding()
        batch = next((t.shape[0] for name, t in inputs.items() if self.graph.values[name].per_sample), 1)
        alive = []
        for name in self._inputs:
            # The session reads raw memory: of another type it would make nonsense.
            kind = torch.bool if self.graph.values[name].dtype == "bool" else torch.float32
            tensor = inputs[name].to("cpu", kind).contiguous()
            alive.append(tensor)
            binding.bind_input(name, "cpu", 0, _numpy_type(tensor), tuple(tensor.shape), tensor.data_ptr())
        results = []
        for name in outputs:
            value = self.graph.values[name]
            result = torch.empty(value.with_batch(batch), dtype=torch.bool if value.dtype == "bool" else torch.float32)
            binding.bind_output(name, "cpu", 0, _numpy_type(result), tuple(result.shape), result.data_ptr())
            results.append(result)
        # Otherwise one large batch would hold its memory for good.
        self._session.run_with_iobinding(binding, self._giving_back if batch < _arena_batch else self._keeping)
        _arena_batch = batch
        return results


class OnnxRuntimeSegment:
    """A frozen segment on ONNX Runtime (see `contract.Segment`).

    `models` gives the ONNX model (a path, or its bytes) of each direction that the gradient mode needs:
    "forward", and "backward" for exact or "recompute" for recompute.
    """

    def __init__(
        self,
        graphs: SegmentGraphs,
        models: Mapping[str, str | bytes],
        gradient: GradientMode = "exact",
        threads: int = 0,
    ) -> None:
        self.graphs = graphs
        self.gradient: GradientMode = gradient
        self.state = {name: tensor.clone() for name, tensor in graphs.initial_state.items()}
        self.biases = {name: tensor.clone() for name, tensor in graphs.initial_biases.items()}
        self._plain = graphs.forward.outputs[: 1 + len(graphs.state)]
        self._residuals = {r.value.name: r for r in graphs.residuals}
        self._made = [r.value.name for r in graphs.residuals if r.value.name not in graphs.forward.inputs]
        self._forward = OnnxProgram(models["forward"], graphs.forward, threads)
        direction = {"exact": "backward", "recompute": "recompute", "local": ""}[gradient]
        backward = {"backward": graphs.backward, "recompute": graphs.recompute, "": None}[direction]
        self._backward = OnnxProgram(models[direction], backward, threads) if backward is not None else None

    def forward(self, x: Tensor, *, keep: bool = True, momentum: float = 0.1) -> tuple[Tensor, Residuals]:
        inputs = {"x": x, **self.state, **self.biases}
        if self.state:
            inputs["ema_momentum"] = torch.full((1,), momentum)
        residuals = Residuals(batch=x.shape[0])
        made = self._made if keep and self.gradient == "exact" else []
        outputs = self._forward.run(inputs, [*self._plain, *made])
        for name, tensor in zip(made, outputs[len(self._plain) :], strict=True):
            residuals.kept[name] = self._residuals[name].pack(tensor)
        if keep and self.gradient == "recompute":
            residuals.kept = {k: v for k, v in inputs.items() if k in self.state or k == "ema_momentum"}
        if keep and (self.gradient == "recompute" or "x" in self._residuals):
            residuals.shared["x"] = x
        for name, tensor in zip(self.graphs.state, outputs[1 : len(self._plain)], strict=True):
            self.state[name] = tensor
        return outputs[0], residuals

    def input_gradient(self, residuals: Residuals, grad_y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self._backward is None:
            raise RuntimeError(f"a segment in gradient mode {self.gradient!r} has no backward")
        inputs = {**residuals.shared, "grad_y": grad_y}
        for name in list(residuals.kept):
            kept = residuals.kept.pop(name)
            residual = self._residuals.get(name) if self.gradient == "exact" else None
            inputs[name] = residual.unpack(kept, residuals.batch) if residual is not None else kept
        if self.gradient == "recompute":
            inputs.update(self.biases)
        outputs = self._backward.run(inputs, self._backward.graph.outputs)
        return outputs[0], dict(zip(self.biases, outputs[1:], strict=True))


def _options(runtime: Any, threads: int) -> Any:
    global _arena_registered
    if not _arena_registered:
        memory = runtime.OrtMemoryInfo(
            "Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT
        )
        runtime.create_and_register_allocator(memory, None)
        _arena_registered = True
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


def _numpy_type(tensor: Tensor) -> Any:
    return np.bool_ if tensor.dtype == torch.bool else np.float32
