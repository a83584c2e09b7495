"""Derive the input gradient of a frozen segment, by reverse mode over its graph, one rule per operator.

A rule may extend the forward graph to make a residual and must express the gradient in operators that every engine
has. The residuals are what the exact gradient needs and no more: nothing for a convolution, one scale per channel for
a BatchNorm (statistics are constants), one bit per element for a ReLU, two bits for a 2x2 max-pool. Where BatchNorm's
weights adapt, one bit per element of its input stands for the gradient through its statistics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Imported for the rules that they register.
import edgetta.export.gradients
import edgetta.export.gradients_activation
import edgetta.export.gradients_batch_norm
import edgetta.export.gradients_pooling  # noqa: F401
from edgetta.export.batch_norm import Frozen
from edgetta.export.derivation import RULES, Derivation, DifferentiationError
from edgetta.segments.contract import SegmentGraphs
from edgetta.segments.graph import Graph

__all__ = ["DifferentiationError", "differentiate"]

GRAD_Y = "grad_y"
_CONSTANT_IN_BACKWARD = ("ChannelMean", "ChannelVariance", "Greater", "Less", "Equal", "And", "Or", "Not", "Detach")


def differentiate(frozen: Frozen, needs_gradient: bool = True) -> SegmentGraphs:
    """The forward, backward and recompute graphs of a settled segment.

    Without `needs_gradient` (the stem, whose input is the image) there is no backward and there are no residuals.
    A `detach()` stops the gradient, as autograd's does, where another way is left to it. Where all ways are detached,
    the network was written not to be trained, and the gradient is that of the network without them.
    Raises `DifferentiationError` naming an operator that has no rule.
    """
    graph = frozen.graph
    if not needs_gradient:
        return SegmentGraphs(graph, None, None, (), frozen.state, frozen.initial_state, frozen.initial_affine)
    wanted = ["x", *frozen.initial_affine]
    passes = () if graph.outputs[0] in active_values(graph, ["x"]) else ("Detach",)
    active = active_values(graph, wanted, passes)
    derivation = Derivation(graph)
    output = graph.outputs[0]
    gradients: dict[str, str] = {output: derivation.backward.input(GRAD_Y, graph.values[output].shape)}
    for node in reversed(graph.nodes):
        gradient = gradients.pop(node.output, None) if node.output not in wanted else None
        if gradient is None or node.output not in active:
            continue
        rule = RULES.get(node.op)
        if rule is None:
            raise DifferentiationError(f"operator {node.op} has no gradient rule in edgetta.export.gradients")
        for name, contribution in zip(node.inputs, rule(derivation, node, gradient), strict=False):
            if contribution is None or name not in active:
                continue
            old = gradients.get(name)
            gradients[name] = contribution if old is None else derivation.backward.emit("Add", old, contribution)
    if "x" not in gradients:
        raise DifferentiationError("the segment's output does not depend on 'x'")
    for name in wanted:
        if name not in gradients:  # what adapts behind a detach() has no gradient, so it stays
            shape = graph.values[name].shape
            gradients[name] = derivation.backward.constant(f"zeros.{'x'.join(map(str, shape))}", torch.zeros(shape))

    # Rules run eagerly for every input; what only inactive inputs needed is pruned here, residuals included.
    derivation.backward.inputs = [*derivation.residuals, GRAD_Y]
    backward = derivation.backward.graph([gradients[name] for name in wanted])
    used = {name for node in backward.nodes for name in node.inputs} | set(backward.outputs)
    residuals = tuple(r for name, r in derivation.residuals.items() if name in used)
    backward = Graph(
        (*(r.value.name for r in residuals), GRAD_Y),
        backward.outputs,
        backward.nodes,
        backward.values,
        backward.constants,
    )
    forward = derivation.forward.graph([*graph.outputs, *(r.value.name for r in residuals)], lent=graph.inputs)
    return SegmentGraphs(
        forward,
        backward,
        _recompute(forward, backward),
        residuals,
        frozen.state,
        frozen.initial_state,
        frozen.initial_affine,
    )


def _recompute(forward: Graph, backward: Graph) -> Graph:
    """Forward and backward in one graph, from the segment's input instead of its residuals."""
    fused = Graph(
        (*forward.inputs, GRAD_Y),
        backward.outputs,
        (*forward.nodes, *backward.nodes),
        {**forward.values, **backward.values},
        {**forward.constants, **backward.constants},
    )
    return fused.pruned()


def active_values(graph: Graph, wanted: Sequence[str], passes: Sequence[str] = ()) -> set[str]:
    """Values that depend on a wanted input through something other than statistics, or an operator that stops it."""
    active = set(wanted)
    for node in graph.nodes:
        differentiable = node.inputs[:3] if node.op == "BatchNormalization" else node.inputs
        if (node.op in passes or node.op not in _CONSTANT_IN_BACKWARD) and active.intersection(differentiable):
            active.add(node.output)
    return active
