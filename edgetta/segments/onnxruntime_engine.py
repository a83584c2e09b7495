"""The ONNX Runtime engine: the derived graphs as inference sessions, bound to torch memory without copies.

All sessions of a process share one arena and do not spin: measured on two cores, that halves resident memory and
takes a quarter off the time between torch operators. The arena keeps its memory from run to run, and gives it back
when a smaller batch comes: giving it back after every run would add 40 % to a prediction. Where memory is short a
program does without the arena, and without the patterns by which it reserves memory ahead: its peak is a third lower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgetta.errors import BundleError, MissingDependencyError, one_line
from edgetta.segments.contract import GradientMode, Residuals, SegmentGraphs
from edgetta.segments.graph import Graph
from edgetta.segments.tensorrt.onnx_model import parse_onnx, read_onnx

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
    """One ONNX graph as a session whose inputs and outputs are torch tensors.

    `model` is a path or the model's bytes. With `arena` False every run takes its memory from the C library, and gives
    it back there. Raises `BundleError` where ONNX Runtime does not take the model.
    """

    def __init__(self, model: str | bytes, graph: Graph, threads: int = 0, arena: bool = True) -> None:
        runtime = import_onnxruntime()
        self.graph = graph
        try:
            options = _options(runtime, threads, arena)
            self._session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its kinds are many
            name = model if isinstance(model, str) else f"a graph that returns {graph.outputs[0]!r}"
            raise BundleError(
                f"ONNX Runtime refuses {name}: {one_line(error)}; try --engine torch, or export the bundle again"
            ) from error
        self._keeping, self._giving_back = runtime.RunOptions(), runtime.RunOptions()
        if arena:
            self._giving_back.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._inputs = [entry.name for entry in self._session.get_inputs()]

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> list[Tensor]:
        """The outputs named, in new tensors."""
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
    "forward", and "backward" for exact or "recompute" for recompute. Each is loaded when it is first run. Where no
    residual is wanted, the forward is loaded without them, which is quicker: a session computes whatever it can.
    """

    def __init__(
        self,
        graphs: SegmentGraphs,
        models: Mapping[str, str | bytes],
        gradient: GradientMode = "exact",
        threads: int = 0,
        arena: bool = True,
    ) -> None:
        self.graphs = graphs
        self.gradient: GradientMode = gradient
        self.state = {name: tensor.clone() for name, tensor in graphs.initial_state.items()}
        self.biases = {name: tensor.clone() for name, tensor in graphs.initial_biases.items()}
        self._plain = graphs.forward.outputs[: 1 + len(graphs.state)]
        self._residuals = {r.value.name: r for r in graphs.residuals}
        self._made = [r.value.name for r in graphs.residuals if r.value.name not in graphs.forward.inputs]
        self._models, self._threads, self._arena = dict(models), threads, arena
        self._loaded: dict[str, OnnxProgram] = {}

    def forward(self, x: Tensor, *, keep: bool = True, momentum: float = 0.1) -> tuple[Tensor, Residuals]:
        inputs = {"x": x, **self.state, **self.biases}
        if self.state:
            inputs["ema_momentum"] = torch.full((1,), momentum)
        residuals = Residuals(batch=x.shape[0])
        made = self._made if keep and self.gradient == "exact" else []
        outputs = self._forward(bool(made)).run(inputs, [*self._plain, *made])
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
        direction = {"exact": "backward", "recompute": "recompute", "local": ""}[self.gradient]
        graph = {"backward": self.graphs.backward, "recompute": self.graphs.recompute, "": None}[direction]
        if graph is None:
            raise RuntimeError(f"a segment in gradient mode {self.gradient!r} has no backward")
        if direction not in self._loaded:
            self._loaded[direction] = self._program(self._models[direction], graph)
        inputs = {**residuals.shared, "grad_y": grad_y}
        for name in list(residuals.kept):
            kept = residuals.kept.pop(name)
            residual = self._residuals.get(name) if self.gradient == "exact" else None
            inputs[name] = residual.unpack(kept, residuals.batch) if residual is not None else kept
        if self.gradient == "recompute":
            inputs.update(self.biases)
        outputs = self._loaded[direction].run(inputs, graph.outputs)
        return outputs[0], dict(zip(self.biases, outputs[1:], strict=True))

    def _forward(self, residuals: bool) -> OnnxProgram:
        """The forward, with residuals or without. Once the one with them is there, it serves both: memory for one."""
        if residuals and "forward" not in self._loaded:
            self._loaded.pop("predict", None)
            self._loaded["forward"] = self._program(self._models["forward"], self.graphs.forward)
        if "forward" not in self._loaded and "predict" not in self._loaded:
            model = self._models["forward"]
            if self._made:
                whole = read_onnx(Path(model)) if isinstance(model, str) else parse_onnx(model)
                model = whole.only(self._plain).to_bytes()
            self._loaded["predict"] = self._program(model, self.graphs.forward)
        return self._loaded.get("forward") or self._loaded["predict"]

    def _program(self, model: str | bytes, graph: Graph) -> OnnxProgram:
        return OnnxProgram(model, graph, self._threads, self._arena)


def _options(runtime: Any, threads: int, arena: bool) -> Any:
    global _arena_registered
    if arena and not _arena_registered:
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
    if arena:
        options.add_session_config_entry("session.use_env_allocators", "1")
    else:
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    return options


def _numpy_type(tensor: Tensor) -> Any:
    return np.bool_ if tensor.dtype == torch.bool else np.float32
