"""ONNX Runtime on the processor: numpy in, numpy out, no torch.

A session is made when its program is first asked for, and with the outputs that are asked for: moments or residuals
that nobody wants are not computed. What the sessions have in common, and why:

- They do not spin: waiting threads would take the core from what runs between two sessions.
- They allocate from the C library and keep no arena of their own: what one frees serves the other. But where the
  process keeps what is freed anyway (`memory/allocator.py`), all share one arena.
- All programs read one copy of the weights, the one that is mapped from the bundle.
- Graphs are run in an order and in pieces that hold few values at a time (`onnx_memory.py`), and enter the layout of
  ONNX Runtime's convolutions once (`onnx_layout.py`).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from edgetta.engines.blocked import Lowered, block_size, lower
from edgetta.engines.contract import Array, Mixing, Moments, Passed, ProgramSet, Residuals, Statistics
from edgetta.engines.feeding import Feeding
from edgetta.engines.packing import pack, unpack
from edgetta.errors import BundleError, MissingDependencyError, one_line
from edgetta.memory.allocator import keeps_freed_memory
from edgetta.segments.graph import BATCH, Graph
from edgetta.segments.onnx_layout import in_blocks
from edgetta.segments.onnx_memory import (
    GATHERS_SLICES,
    beside_what_they_read,
    freeing_early,
    variances_in_pieces,
    what_waits_first,
)
from edgetta.segments.onnx_model import OnnxModel
from edgetta.segments.onnx_spelling import spelled
from edgetta.segments.shapes import with_batch

_SMALL = 1024
"""Weights of fewer bytes are copied into each session."""


class OnnxRuntimeEngine:
    """An `engines.contract.Engine` on ONNX Runtime.

    threads                    0: as many as `OMP_NUM_THREADS` says, or the processor has cores
    in_blocks_where_possible   in the layout of ONNX Runtime's convolutions, where it has one (`blocked.py`)
    Raises `MissingDependencyError` where ONNX Runtime is not installed, `BundleError` (when a program is first run)
    where it refuses one.
    """

    name = "onnxruntime"

    def __init__(self, programs: ProgramSet, threads: int = 0, in_blocks_where_possible: bool = True) -> None:
        import_onnxruntime()
        self.programs = programs
        self._threads = threads
        self._feeding = Feeding(programs)
        self._residuals = {residual.value.name: residual for residual in programs.residuals}
        self._sessions: dict[tuple[str, bool], Session] = {}
        self._shared_weights: dict[str, Any] = {}
        quantised = any(getattr(programs, name).quantised for name in ("predict", "measure"))
        self._block = 0 if quantised or not in_blocks_where_possible else block_size()

    def predict(self, images: Array, parameters: Array, statistics: Statistics) -> Array:
        (logits,) = self._session("predict").run(self._inputs("predict", images, parameters, statistics))
        return logits

    def measure(self, images: Array, parameters: Array, mixing: Mixing) -> tuple[Array, Moments]:
        feeding = self._feeding
        inputs = {
            "x": feeding.images(images),
            **feeding.parameters(parameters, self.programs.measure),
            **feeding.mixing(mixing),
        }
        logits, *moments = self._session("measure").run(inputs)
        return logits, feeding.moments_of(moments)

    def forward(self, images: Array, parameters: Array, statistics: Statistics, moments: bool = True) -> Passed:
        feeding, session = self._feeding, self._session("forward", moments)
        inputs = self._inputs("forward", images, parameters, statistics)
        found = dict(zip(session.outputs, session.run(inputs), strict=True))
        kept = {name: pack(self._residuals[name], found.pop(name)) for name in feeding.residuals}
        if "x" in self._residuals:
            kept["x"] = inputs["x"]
        distance = float(sum(found[name].mean() for name in feeding.distances))
        own = feeding.moments_of([found[name] for name in feeding.moments]) if moments else None
        return Passed(found[session.outputs[0]], distance, own, Residuals(len(images), kept))

    def backward(self, residuals: Residuals, grad_logits: Array, regulariser: float, parameters: Array) -> Array:
        feeding = self._feeding
        inputs = {
            **feeding.gradient(grad_logits, regulariser),
            **feeding.parameters(parameters, self.programs.backward),
        }
        for name in list(residuals.kept):
            shape = with_batch(self._shapes.get(name, self._residuals[name].value.shape), residuals.batch)
            inputs[name] = unpack(self._residuals[name], residuals.kept.pop(name), shape)
        return feeding.gradients(self._session("backward").run(inputs))

    def recompute(
        self, images: Array, grad_logits: Array, regulariser: float, parameters: Array, statistics: Statistics
    ) -> Array:
        inputs = self._inputs("recompute", images, parameters, statistics)
        inputs |= self._feeding.gradient(grad_logits, regulariser)
        return self._feeding.gradients(self._session("recompute").run(inputs))

    def release(self) -> None:
        """Give the sessions' memory back; they are made anew when they are needed."""
        self._sessions.clear()
        self._shared_weights.clear()

    def _inputs(self, program: str, images: Array, parameters: Array, statistics: Statistics) -> dict[str, Array]:
        graph: Graph = getattr(self.programs, program)
        return {
            "x": self._feeding.images(images),
            **self._feeding.parameters(parameters, graph),
            **self._feeding.statistics(statistics, graph),
        }

    def _session(self, program: str, moments: bool = True) -> Session:
        if (program, moments) not in self._sessions:
            graph: Graph = getattr(self.programs, program)
            if not moments:
                left = set(self._feeding.moments)
                graph = replace(graph, outputs=tuple(n for n in graph.outputs if n not in left)).pruned()
            if self._block:
                kept = self._feeding.residuals if program == "forward" else ()
                given = self._shapes if program == "backward" else ()
                lowered = lower(graph, self._block, given, kept)
            else:
                lowered = Lowered(variances_in_pieces(in_blocks(spelled(graph)), graph), {}, blocks=False)
            self._sessions[program, moments] = Session(lowered, graph, self._shared_weights, self._threads, program)
        return self._sessions[program, moments]

    @functools.cached_property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Residuals that lie between forward and backward as blocks have them, and their shapes there."""
        if not self._block:
            return {}
        return lower(self.programs.forward, self._block, (), self._feeding.residuals).in_blocks

    @property
    def residuals_in_blocks(self) -> frozenset[str]:
        """Residuals that are kept in the order of `blocked.to_blocks`."""
        return frozenset(self._shapes)


class Session:
    """One program as an ONNX Runtime session.

    lowered    the model, whose results are the graph's outputs in their order
    graph      says what inputs and outputs are
    weights    those that sessions share, by name; more are added
    name       of the program, for errors
    """

    def __init__(
        self, lowered: Lowered, graph: Graph, weights: dict[str, Any], threads: int = 0, name: str = ""
    ) -> None:
        runtime = import_onnxruntime()
        self.graph = graph
        self.outputs = graph.outputs
        self._shapes = {name: lowered.in_blocks.get(name, value.shape) for name, value in graph.values.items()}
        ordered, self._results = _in_order(lowered.model, graph)
        shared = {name for name, a in ordered.weights.items() if a.dtype == np.float32 and a.nbytes >= _SMALL}
        for large in sorted(shared - set(weights)):
            weights[large] = runtime.OrtValue.ortvalue_from_numpy(ordered.weights[large])
        self._weights = {large: weights[large] for large in sorted(shared)}
        options = _options(runtime, threads)
        if shared:
            options.add_external_initializers(list(self._weights), list(self._weights.values()))
        # Reshaped weights would be copied, to save what costs nothing; in plain layout more than that is folded.
        needless = [GATHERS_SLICES, *(["ConstantFolding"] if lowered.blocks else [])]
        try:
            self._session = runtime.InferenceSession(
                ordered.to_bytes(without=shared),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=needless,
            )
        except Exception as error:  # its kinds are many
            raise _refused("ONNX Runtime", name, error) from error
        self._inputs = [entry.name for entry in self._session.get_inputs()]

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The outputs, in new arrays."""
        binding = self._session.io_binding()
        batch = next(
            (len(array) for name, array in inputs.items() if self.graph.values[name].shape[:1] == (BATCH,)), 1
        )
        alive = []
        for name in self._inputs:
            # The session reads raw memory: of another type or shape it would make nonsense.
            value, array = self.graph.values[name], np.ascontiguousarray(inputs[name])
            kind = np.bool_ if value.dtype == "bool" else np.float32
            shape = with_batch(self._shapes[name], batch)
            if array.dtype != kind or array.shape != shape:
                raise ValueError(f"{name!r} is {array.dtype} {array.shape}, not {kind.__name__} {shape}")
            alive.append(array)
            binding.bind_input(name, "cpu", 0, kind, shape, array.ctypes.data)
        results = []
        for name, made in zip(self.outputs, self._results, strict=True):
            kind = np.bool_ if self.graph.values[name].dtype == "bool" else np.float32
            result = np.empty(with_batch(self._shapes[name], batch), kind)
            binding.bind_output(made, "cpu", 0, result.dtype, result.shape, result.ctypes.data)
            results.append(result)
        self._session.run_with_iobinding(binding)
        return results


def _in_order(model: OnnxModel, graph: Graph) -> tuple[OnnxModel, list[str]]:
    """The model in an order of execution that holds little, and the names of its outputs, in the graph's order."""
    first, source = 0, "x"
    if "grad_logits" in graph.inputs:  # of gradients the one that comes last is the way on which the others lie
        source = "grad_logits"
        places = {value.name: i for i, value in enumerate(model.outputs)}
        made = [places[n] for node in model.nodes for n in node.outputs if n in places and node.op != "Reshape"]
        first = made[-1] if made else 0
    order = [first, *(i for i in range(len(model.outputs)) if i != first)]
    model = replace(model, outputs=tuple(model.outputs[i] for i in order))
    model = freeing_early(beside_what_they_read(what_waits_first(model, source)))
    names = dict(zip(order, (value.name for value in model.outputs), strict=True))
    return model, [names[i] for i in range(len(order))]


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


def default_threads() -> int:
    """How many threads a session has: what `OMP_NUM_THREADS` says, else 0, for as many as there are cores."""
    text = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(text) if text.isdigit() else 0


def _refused(who: str, what: str, error: Exception) -> BundleError:
    return BundleError(f"{who} refuses {what}: {one_line(error)}; try --engine torch, or export the bundle again")


@functools.cache
def _register_arena() -> None:
    runtime = import_onnxruntime()
    arena = runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    runtime.create_and_register_allocator(runtime.OrtMemoryInfo("Cpu", arena, 0, runtime.OrtMemType.DEFAULT), None)


def _options(runtime: Any, threads: int) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or default_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    if keeps_freed_memory():
        _register_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
    options.enable_mem_pattern = False  # it would lay all values of a run out in one block
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
