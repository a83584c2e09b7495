"""The ONNX Runtime engine: the derived graphs as inference sessions, bound to torch memory without copies.

What the sessions of a process have in common, and why:

- They do not spin: measured between torch operators, a quarter less time.
- They allocate from the C library, as torch does, and keep no arena of their own: what one frees serves the other. But
  where the process keeps what is freed anyway (`memory/allocator.py`), all share one arena: a tenth of a step less.
- The graphs of a segment read one copy of its weights, the one that the bundle mapped into memory.
- Each runs its graph in an order and in pieces that hold few values at a time (`onnx_memory.py`),
  and enters the layout of ONNX Runtime's convolutions once (`onnx_layout.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgetta.errors import BundleError, MissingDependencyError, one_line
from edgetta.memory.allocator import keeps_freed_memory
from edgetta.segments.contract import GradientMode, Residuals, SegmentGraphs
from edgetta.segments.graph import BATCH, Graph
from edgetta.segments.onnx_layout import in_blocks
from edgetta.segments.onnx_memory import GATHERS_SLICES, freeing_early, variances_in_pieces
from edgetta.segments.onnx_model import OnnxModel, parse_onnx

_SMALL = 1024
"""Weights of fewer bytes are copied into each session."""


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

    model    the ONNX file: its path, its bytes, or what `read_model` made of it; it may lack outputs of `graph`
    threads  0: as many as torch has
    name     of the file, for errors
    Raises `BundleError` where ONNX Runtime does not take it.
    """

    def __init__(self, model: str | bytes | OnnxModel, graph: Graph, threads: int = 0, name: str = "") -> None:
        runtime = import_onnxruntime()
        name = name or _name(model, graph)
        if not isinstance(model, OnnxModel):
            model = read_model(model, graph, name)
        self.graph = graph
        self.outputs = tuple(value.name for value in model.outputs)
        ordered = freeing_early(variances_in_pieces(in_blocks(model), graph))
        self._results = [value.name for value in ordered.outputs]
        shared = {
            name for name, array in ordered.weights.items() if name in graph.constants and array.nbytes >= _SMALL
        }
        self._weights = {name: runtime.OrtValue.ortvalue_from_numpy(ordered.weights[name]) for name in sorted(shared)}
        options = _options(runtime, threads)
        if shared:
            options.add_external_initializers(list(self._weights), list(self._weights.values()))
        data = ordered.to_bytes(without=shared)
        try:
            self._session = runtime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"], disabled_optimizers=[GATHERS_SLICES]
            )
        except Exception as error:  # its kinds are many
            raise _refused("ONNX Runtime", name, error) from error
        self._inputs = [entry.name for entry in self._session.get_inputs()]

    def run(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """All outputs, in new tensors."""
        binding = self._session.io_binding()
        shapes = {name: self.graph.values[name].shape for name in inputs}
        batch = next((inputs[name].shape[shape.index(BATCH)] for name, shape in shapes.items() if BATCH in shape), 1)
        alive = []
        for name in self._inputs:
            # The session reads raw memory: of another type it would make nonsense.
            kind = torch.bool if self.graph.values[name].dtype == "bool" else torch.float32
            tensor = inputs[name].to("cpu", kind).contiguous()
            alive.append(tensor)
            binding.bind_input(name, "cpu", 0, _numpy_type(tensor), tuple(tensor.shape), tensor.data_ptr())
        results = []
        for name, made in zip(self.outputs, self._results, strict=True):
            value = self.graph.values[name]
            result = torch.empty(value.with_batch(batch), dtype=torch.bool if value.dtype == "bool" else torch.float32)
            binding.bind_output(made, "cpu", 0, _numpy_type(result), tuple(result.shape), result.data_ptr())
            results.append(result)
        self._session.run_with_iobinding(binding)
        return results


class OnnxRuntimeSegment:
    """A frozen segment on ONNX Runtime (see `contract.Segment`).

    `models` gives the ONNX file (a path, or its bytes) of each direction that the gradient mode needs: "forward", and
    "backward" for exact or "recompute" for recompute. A session is made when it is first called for. Where no residual
    is wanted, the forward runs without them, which is quicker and takes less memory.
    Raises `BundleError` where a file or ONNX Runtime is not as it should be.
    """

    def __init__(
        self,
        graphs: SegmentGraphs,
        models: Mapping[str, str | bytes],
        gradient: GradientMode = "exact",
        threads: int = 0,
        name: str = "",
    ) -> None:
        self.graphs = graphs
        self.gradient: GradientMode = gradient
        self.state = {name: tensor.clone() for name, tensor in graphs.initial_state.items()}
        self.affine = {name: tensor.clone() for name, tensor in graphs.initial_affine.items()}
        self._residuals = {r.value.name: r for r in graphs.residuals}
        self._made = [r.value.name for r in graphs.residuals if r.value.name not in graphs.forward.inputs]
        self._plain = graphs.forward.outputs[: 1 + len(graphs.state)]
        self._threads = threads
        self._names = {
            direction: f"{name}.{direction}" if name else _name(model, getattr(graphs, direction))
            for direction, model in models.items()
        }
        self._names["predict"] = self._names["forward"]
        forward = read_model(models["forward"], graphs.forward, self._names["forward"])
        self._models = {"forward": (forward, graphs.forward), "predict": (forward.only(self._plain), graphs.forward)}
        self._back = {"exact": "backward", "recompute": "recompute", "local": ""}[gradient]
        backward = {"backward": graphs.backward, "recompute": graphs.recompute, "": None}[self._back]
        if backward is not None:
            model = read_model(models[self._back], backward, self._names[self._back])
            self._models[self._back] = (model, backward)
        self._loaded: dict[str, OnnxProgram] = {}

    def forward(self, x: Tensor, *, keep: bool = True, momentum: float = 0.1) -> tuple[Tensor, Residuals]:
        inputs = {"x": x, **self.state, **self.affine}
        if self.state:
            inputs["ema_momentum"] = torch.full((1,), momentum)
        residuals = Residuals(batch=x.shape[0])
        exact = keep and self.gradient == "exact"
        program = self._forward(exact and bool(self._made))
        outputs = dict(zip(program.outputs, program.run(inputs), strict=True))
        if exact:
            residuals.kept = {name: self._residuals[name].pack(outputs.pop(name)) for name in self._made}
        elif keep and self.gradient == "recompute":
            residuals.kept = {k: v for k, v in inputs.items() if k in self.state or k == "ema_momentum"}
        if keep and (self.gradient == "recompute" or "x" in self._residuals):
            residuals.shared["x"] = x
        y, *state = (outputs[name] for name in self._plain)
        self.state = dict(zip(self.graphs.state, state, strict=True))
        return y, residuals

    def input_gradient(self, residuals: Residuals, grad_y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self._back not in self._models:
            raise RuntimeError(f"a segment in gradient mode {self.gradient!r} has no backward")
        inputs = {**residuals.shared, "grad_y": grad_y}
        for name in list(residuals.kept):
            kept = residuals.kept.pop(name)
            residual = self._residuals.get(name) if self.gradient == "exact" else None
            inputs[name] = residual.unpack(kept, residuals.batch) if residual is not None else kept
        if self.gradient == "recompute":
            inputs.update(self.affine)
        outputs = self._program(self._back).run(inputs)
        return outputs[0], dict(zip(self.affine, outputs[1:], strict=True))

    def _forward(self, residuals: bool) -> OnnxProgram:
        """The forward, with residuals or without. Once the one with them is there, it serves both: memory for one."""
        if residuals:
            self._loaded.pop("predict", None)
        return self._program("forward" if residuals or "forward" in self._loaded else "predict")

    def _program(self, name: str) -> OnnxProgram:
        if name not in self._loaded:
            model, graph = self._models[name]
            self._loaded[name] = OnnxProgram(model, graph, self._threads, self._names[name])
        return self._loaded[name]


def read_model(model: str | bytes, graph: Graph, name: str = "") -> OnnxModel:
    """The ONNX file of `graph`, its weights being the graph's own constants; errors call it `name`.

    Raises `BundleError`.
    """
    weights = {n: t.numpy() for n, t in graph.constants.items() if t.dtype in (torch.float32, torch.int8)}
    try:
        if isinstance(model, bytes):
            return parse_onnx(model, None, weights)
        return parse_onnx(Path(model).read_bytes(), Path(model).parent, weights)
    except (ValueError, OSError) as error:
        raise _refused("edgetta", name or _name(model, graph), error) from error


def _name(model: str | bytes | OnnxModel, graph: Graph) -> str:
    """What to call an ONNX file: its path, where it has one."""
    return model if isinstance(model, str) else f"the graph that returns {graph.outputs[0]!r}"


def _refused(who: str, what: str, error: Exception) -> BundleError:
    return BundleError(f"{who} refuses {what}: {one_line(error)}; try --engine torch, or export the bundle again")


@functools.cache
def _register_arena() -> None:
    runtime = import_onnxruntime()
    arena = runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    runtime.create_and_register_allocator(runtime.OrtMemoryInfo("Cpu", arena, 0, runtime.OrtMemType.DEFAULT), None)


def _options(runtime: Any, threads: int) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    if keeps_freed_memory():
        _register_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
    options.enable_mem_pattern = False  # it would lay all values of a run out in one block
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _numpy_type(tensor: Tensor) -> Any:
    return np.bool_ if tensor.dtype == torch.bool else np.float32
