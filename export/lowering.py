"""The graph under construction while a traced model is lowered, and the registry of lowering rules.

A rule takes the lowering, the traced result's fake tensor (for shapes), and the call's arguments, where activations
are names (str) and weights are tensors. It returns the name of the result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from edgetta.segments.graph import BATCH, GraphBuilder, reshaping

Activation = str
Operand = str | Tensor | float | int
_MULTIPLE = re.compile(r"(?:(\d+)\*)?[a-z]\w*")  # as torch writes a size that depends on the batch


class Lowering:
    """The graph under construction and the names of the model's weights."""

    def __init__(self) -> None:
        self.builder = GraphBuilder("v")
        self._names: dict[int, str] = {}
        self._named: list[Tensor] = []  # keeps the ids above valid

    def name(self, tensor: Tensor, name: str) -> Tensor:
        """Call a weight `name` in the graph."""
        self._names[id(tensor)] = name
        self._named.append(tensor)
        return tensor

    def derived(self, tensor: Tensor, source: Tensor, suffix: str) -> Tensor:
        """Name a tensor that was made from another one."""
        return self.name(tensor, f"{self._names.get(id(source), 'constant')}.{suffix}")

    def operand(self, value: Operand) -> str:
        """The graph name of an activation, a weight or a number."""
        if isinstance(value, str):
            return value
        if not isinstance(value, Tensor):
            return self.builder.scalar(float(value))
        name = self._names.get(id(value), "constant")
        return self.builder.constant(name, value if value.is_floating_point() else value.float())

    def rank(self, name: str) -> int:
        return len(self.builder.shape(name))

    def emit(self, op: str, *inputs: Operand, **attributes: Any) -> str:
        return self.builder.emit(op, *(self.operand(i) for i in inputs), **attributes)

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """Reshape to `shape`, in which the batch, or a multiple of it, may stand once, at any place."""
        source = self.builder.shape(x)
        if tuple(shape) == source:
            return x
        return self.emit("Reshape", x, shape=reshaping(source, shape))


Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}
"""Operator of torch, such as "aten.relu.default" -> rule."""


def rule(*targets: str) -> Callable[[Rule], Rule]:
    """Register the function below as the lowering rule of `targets`."""

    def register(function: Rule) -> Rule:
        for target in targets:
            RULES[target] = function
        return function

    return register


def pair(value: int | Sequence[int]) -> list[int]:
    """Height and width of a size that may be given as one number."""
    sizes = [value] if isinstance(value, int) else list(value)
    return sizes * 2 if len(sizes) == 1 else sizes


def shape_of(fake: Any) -> list[int]:
    """The traced result's shape with the batch written as BATCH, and k times the batch as k times BATCH.

    Raises ValueError where the batch is in it in another way.
    """
    sizes = []
    for size in fake.shape:
        found = _MULTIPLE.fullmatch(str(size))
        if isinstance(size, int):
            sizes.append(size)
        elif found is not None:
            sizes.append(BATCH * int(found[1] or 1))
        else:
            raise ValueError(f"a size is neither fixed nor a multiple of the batch, got {tuple(fake.shape)}")
    return sizes
