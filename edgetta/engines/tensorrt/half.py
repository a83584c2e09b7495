"""From a float32 model to one that computes in float16 where that is safe, with the types written into the graph.

TensorRT 10 and 11 take every type from the graph. Convolutions and matrix products run in float16, and what lies
between them follows; sums, exponentials and everything per channel (BatchNorm statistics and scales) stay in float32.
Inputs and outputs stay float32: the casts are inside. It is done on the device, from the float32 file that every
bundle has, so that one bundle serves both precisions and a segment that fails in float16 still has its float32 form.
BatchNorms that are folded were folded at export, in float32.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgetta.segments.onnx_model import BOOL, FLOAT, HALF, INT64, OnnxModel, OnnxNode, cast

LARGEST_HALF = 65504.0

# Always in float16: nearly all of the time is spent here, on tensor cores that take float16.
_HALF_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# As wide as their widest operand that is no weight.
_FOLLOWING_OPS = frozenset(
    {"Add", "Clip", "Concat", "MaxPool", "Mul", "Neg", "Pad", "Relu", "Reshape", "Slice", "Sub", "Transpose", "Where"}
)
# But those that read quantised activations run in int8 and stay as they are.
_COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
_LOGIC = frozenset({"And", "Not", "Or", "Xor"})
# Everything else computes in float32.


def to_half(model: OnnxModel) -> OnnxModel:
    """`model` with float16 inside and float32 at its edges."""
    return _Rewriter(model).rewritten()


def single_nodes(model: OnnxModel) -> frozenset[str]:
    """Names of the nodes that `to_half` leaves in float32, for builders that take precisions by layer."""
    rewriter = _Rewriter(model)
    rewriter.rewritten()
    return frozenset(rewriter.single)


class _Rewriter:
    """Walks the nodes in order, knowing the type of every value, and casts where a node needs another."""

    def __init__(self, model: OnnxModel) -> None:
        self.model = model
        self.nodes: list[OnnxNode] = []
        self.weights: dict[str, np.ndarray[Any, Any]] = {}
        self.single: list[str] = []
        self._kinds = {value.name: value.kind for value in model.inputs}  # the type that each value is made in
        self._places = {(value.name, value.kind): value.name for value in model.inputs}  # what it is called, by type
        self._dequantised: set[str] = set()
        self._masks: set[str] = set()  # casts of booleans: exact in every type, so they never decide one
        self._taken = {*self._kinds, *model.weights, *(name for node in model.nodes for name in node.outputs)}

    def rewritten(self) -> OnnxModel:
        for value in self.model.inputs:
            if value.kind == FLOAT and value.per_sample:  # activations become float16 at once
                self._find(value.name, HALF)
                self._kinds[value.name] = HALF
        for node in self.model.nodes:
            self._write(node)
        for value in self.model.outputs:
            if self._kinds[value.name] == HALF:
                self.nodes.append(cast(self._places[value.name, HALF], value.name, FLOAT))
        return replace(self.model, nodes=tuple(self.nodes), weights=self.weights)

    def _write(self, node: OnnxNode) -> None:
        if node.op == "Cast" and node.integer("to") == FLOAT and self._kind(node.inputs[0]) == BOOL:
            self._masks.add(node.outputs[0])
            self._emit(cast(node.inputs[0], node.outputs[0], HALF), HALF)
            return
        if node.op == "DequantizeLinear" and node.inputs[0] not in self.model.weights:
            self._dequantised.update(node.outputs)
        floats = {name for name in node.inputs if name and self._kind(name) in (FLOAT, HALF)}
        deciding = floats - self.model.weights.keys() - self._masks
        follows = node.op in _FOLLOWING_OPS or node.op in _COMPARISONS
        int8 = node.op in _HALF_OPS and node.inputs[0] in self._dequantised
        half = (node.op in _HALF_OPS and not int8) or (follows and all(self._kind(name) == HALF for name in deciding))
        if floats and not half:
            self.single.append(node.name)
        kind = HALF if half else FLOAT
        inputs = tuple(self._find(name, kind if name in floats else self._kind(name)) for name in node.inputs)
        made = BOOL if node.op in _COMPARISONS or node.op in _LOGIC else kind
        self._emit(replace(node, inputs=inputs), made)

    def _emit(self, node: OnnxNode, kind: int) -> None:
        """Append a node whose outputs are of a type; an output of the model that is float16 gets a name of its own."""
        outputs = []
        for name in node.outputs:
            inner = kind == HALF and any(value.name == name for value in self.model.outputs)
            outputs.append(self._new(name, kind) if inner else name)
            self._kinds[name] = kind
            self._places[name, kind] = outputs[-1]
        self.nodes.append(replace(node, outputs=tuple(outputs)))

    def _find(self, name: str, kind: int) -> str:
        """What a value is called in a type, after a cast where it is not there yet."""
        if name and (name, kind) not in self._places:
            if name in self.model.weights:
                self._places[name, kind] = self._weight(name, kind)
            else:
                target = self._new(name, kind)
                self.nodes.append(cast(self._places[name, self._kinds[name]], target, kind))
                self._places[name, kind] = target
        return self._places[name, kind] if name else ""

    def _weight(self, name: str, kind: int) -> str:
        array = self.model.weights[name]
        if kind != HALF:
            self.weights[name] = array
            return name
        target = self._new(name, kind)
        # Clipped are stand-ins for infinity; where real weights are too large, the test of the engine sees it.
        self.weights[target] = np.clip(array, -LARGEST_HALF, LARGEST_HALF).astype(np.float16)
        return target

    def _kind(self, name: str) -> int:
        if name in self.model.weights:
            return INT64 if self.model.weights[name].dtype == np.int64 else FLOAT
        return self._kinds.get(name, FLOAT)

    def _new(self, name: str, kind: int) -> str:
        """A name that nothing has."""
        unique = base = f"{name}.{'half' if kind == HALF else 'single'}"
        count = 0
        while unique in self._taken:
            count += 1
            unique = f"{base}.{count}"
        self._taken.add(unique)
        return unique
