"""Gradient rules of activations: a bit where the derivative is 0 or 1, a byte where it is smooth and bounded."""

from __future__ import annotations

import math
from collections.abc import Callable

from edgetta.export.derivation import RULES, Derivation, Rule, rule
from edgetta.segments.graph import LARGEST, GraphBuilder, Node


@rule("Relu")
def relu(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    mask = d.forward.emit("Greater", node.output, d.forward.scalar(0.0))
    return [d.backward.emit("Masked", gradient, d.save(mask, "mask"))]


@rule("Clip")
def clip(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    """At a bound exactly, torch's `clamp` lets the gradient through, and `hardtanh` and `relu6` do not."""
    low, high = node.attributes["min"], node.attributes["max"]
    if node.attributes.get("inclusive"):
        mask = _within(d, node.inputs[0], low, high)
    else:
        mask = _inside(d, node.output, low, high)
    return [d.backward.emit("Masked", gradient, d.save(mask, "mask"))]


@rule("HardSigmoid")
def hard_sigmoid(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    mask = d.save(_inside(d, node.output, 0.0, 1.0), "mask")
    return [
        d.backward.emit("Masked", d.backward.emit("Mul", gradient, d.backward.scalar(node.attributes["alpha"])), mask)
    ]


def _inside(d: Derivation, name: str, low: float, high: float) -> str:
    above = d.forward.emit("Greater", name, d.forward.scalar(low))
    if high >= LARGEST:
        return above
    below = d.forward.emit("Less", name, d.forward.scalar(high))
    return below if low <= -LARGEST else d.forward.emit("And", above, below)


def _within(d: Derivation, name: str, low: float, high: float) -> str:
    """As `_inside`, bounds included."""
    not_below = d.forward.emit("Not", d.forward.emit("Less", name, d.forward.scalar(low)))
    if high >= LARGEST:
        return not_below
    not_above = d.forward.emit("Not", d.forward.emit("Greater", name, d.forward.scalar(high)))
    return not_above if low <= -LARGEST else d.forward.emit("And", not_below, not_above)


Derivative = Callable[[GraphBuilder, str, str], str]
"""Emits the derivative of y = f(x) into the forward graph, from the names of x and y."""


def _smooth(low: float, high: float, derivative: Derivative) -> Rule:
    """A smooth activation: its derivative, which lies in [low, high], is kept in eight bits.

    0 and 1, the derivatives of units that are far from their bend, are among the 256 levels.
    """
    below, above = -low, max(0.0, high - 1.0)
    if high < 1.0:
        low, high = 0.0, high
    else:
        ones = next(n for n in range(255, 0, -1) if math.ceil(below * n) + n + math.ceil(above * n) <= 255)
        low, high = -math.ceil(below * ones) / ones, (255 - math.ceil(below * ones)) / ones

    def smooth(d: Derivation, node: Node, gradient: str) -> list[str | None]:
        slope = derivative(d.forward, node.inputs[0], node.output)
        return [d.backward.emit("Mul", gradient, d.save(slope, "code", low, high))]

    return smooth


def _silu(f: GraphBuilder, x: str, y: str) -> str:
    """s + y (1 - s) with s = sigmoid(x)"""
    s = f.emit("Sigmoid", x)
    return f.emit("Add", s, f.emit("Mul", y, f.emit("Sub", f.scalar(1.0), s)))


def _gelu(f: GraphBuilder, x: str, y: str) -> str:
    """Phi(x) + x phi(x)"""
    cdf = f.emit(
        "Mul", f.emit("Add", f.emit("Erf", f.emit("Mul", x, f.scalar(math.sqrt(0.5)))), f.scalar(1.0)), f.scalar(0.5)
    )
    bell = f.emit("Exp", f.emit("Mul", f.emit("Mul", x, x), f.scalar(-0.5)))
    return f.emit("Add", cdf, f.emit("Mul", f.emit("Mul", x, bell), f.scalar(1.0 / math.sqrt(2.0 * math.pi))))


def _hard_swish(f: GraphBuilder, x: str, y: str) -> str:
    """(2 x + 3) / 6 between -3 and 3, 0 below, 1 above"""
    line = f.emit("Add", f.emit("Mul", x, f.scalar(1.0 / 3.0)), f.scalar(0.5))
    below = f.emit("Greater", x, f.scalar(-3.0))
    above = f.emit("Less", x, f.scalar(3.0))
    return f.emit("Masked", f.emit("Where", above, line, f.scalar(1.0)), below)


def _sigmoid(f: GraphBuilder, x: str, y: str) -> str:
    return f.emit("Mul", y, f.emit("Sub", f.scalar(1.0), y))


def _tanh(f: GraphBuilder, x: str, y: str) -> str:
    return f.emit("Sub", f.scalar(1.0), f.emit("Mul", y, y))


def _erf(f: GraphBuilder, x: str, y: str) -> str:
    bell = f.emit("Exp", f.emit("Neg", f.emit("Mul", x, x)))
    return f.emit("Mul", bell, f.scalar(2.0 / math.sqrt(math.pi)))


RULES["Silu"] = _smooth(-0.0999, 1.0999, _silu)
RULES["Gelu"] = _smooth(-0.1291, 1.1291, _gelu)
RULES["Erf"] = _smooth(0.0, 1.1284, _erf)
RULES["HardSwish"] = _smooth(-0.5, 1.5, _hard_swish)
RULES["Sigmoid"] = _smooth(0.0, 0.25, _sigmoid)
RULES["Tanh"] = _smooth(0.0, 1.0, _tanh)


@rule("Exp")
def exp(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    return [d.backward.emit("Mul", gradient, d.save(node.output, "float"))]


@rule("Log")
def log(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    return [d.backward.emit("Div", gradient, d.save(node.inputs[0], "float"))]


@rule("Sqrt")
def sqrt(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    half = d.backward.emit("Mul", gradient, d.backward.scalar(0.5))
    return [d.backward.emit("Div", half, d.save(node.output, "float"))]


@rule("Reciprocal")
def reciprocal(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    y = d.save(node.output, "float")
    return [d.backward.emit("Neg", d.backward.emit("Mul", gradient, d.backward.emit("Mul", y, y)))]


@rule("Detach", "Identity")
def passed(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    """Asked of a `Detach` only where nothing but detached ways leads to the output."""
    return [gradient]


@rule("Neg")
def neg(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    return [d.backward.emit("Neg", gradient)]


@rule("Softmax")
def softmax(d: Derivation, node: Node, gradient: str) -> list[str | None]:
    y = d.save(node.output, "float")
    total = d.backward.emit(
        "ReduceSum", d.backward.emit("Mul", gradient, y), axes=[node.attributes["axis"]], keepdims=1
    )
    return [d.backward.emit("Mul", d.backward.emit("Sub", gradient, total), y)]
