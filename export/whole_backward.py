"""The backward of a whole network, derived once for all parameters.

Two cotangents pass a meta-network: the objective's, which goes on to earlier parts, and its sum with the
regulariser's, which is for this meta-network's own parameters alone (equation 3's inputs are detached). Both go
through the same rules, and what nothing reads in the end is pruned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from edgetta.export.derivation import RULES, Derivation, DifferentiationError
from edgetta.export.differentiate import active_values
from edgetta.export.whole_network import MetaPlace, WholeNetwork
from edgetta.segments.contract import Residual
from edgetta.segments.graph import Graph, Node

GRAD_LOGITS, REGULARISER = "grad_logits", "regulariser"


@dataclass(frozen=True)
class Derived:
    """The forward, extended by what makes its residuals; the backward; both in one."""

    forward: Graph  # outputs: logits, then the residuals
    backward: Graph  # inputs: residuals, "grad_logits", "regulariser" / images, parameters; outputs: gradients
    recompute: Graph
    residuals: tuple[Residual, ...]


def differentiate_whole(network: WholeNetwork) -> Derived:
    """The gradients of all parameters, in their order.

    "regulariser" comes in divided by the number of images. Raises `DifferentiationError` naming an operator that has
    no rule, or a parameter that the logits do not depend on.

    A `detach()` stops the gradient where every parameter has another way; otherwise the network was written not to be
    trained, and the gradient is that of the network without it.
    """
    return _Sweep(network).result() if _reached(network) else _Sweep(network, ("Detach",)).result()


def _reached(network: WholeNetwork) -> bool:
    """Whether the logits depend on all parameters in spite of every `detach()`."""
    needed = {network.graph.outputs[0]}
    for node in reversed(network.graph.nodes):
        if node.output in needed and node.op != "Detach":
            needed.update(node.inputs)
    return needed.issuperset(network.parameters)


class _Sweep:
    """Reverse mode over the graph."""

    def __init__(self, network: WholeNetwork, passes: Sequence[str] = ()) -> None:
        self.network = network
        self.active = active_values(network.graph, list(network.parameters), passes)
        self.d = Derivation(network.graph, given=network.parameters)
        self.objective: dict[str, str] = {}  # value -> gradient of the objective
        self.total: dict[str, str] = {}  # of values inside a meta-network, and parameters: with the regulariser's
        self.place_of = {name: place for place in network.metas for name in place.inside}

    def result(self) -> Derived:
        graph, backward = self.network.graph, self.d.backward
        logits = graph.outputs[0]
        self.objective[logits] = backward.input(GRAD_LOGITS, graph.values[logits].shape)
        backward.input(REGULARISER, (1,))
        for node in reversed(graph.nodes):
            if node.output in self.active:
                self._pass(node)
        missing = [name for name in self.network.parameters if name not in self.total]
        if missing:
            raise DifferentiationError(f"the logits do not depend on {missing[0]!r}")
        return self._assembled()

    def _pass(self, node: Node) -> None:
        place = self.place_of.get(node.output)
        gradient = self.objective.pop(node.output, None)
        if place is None:
            if gradient is not None:
                self._add(node, gradient, self.objective, parameters=self.total)
            return
        total = self.total.pop(node.output, None)
        if node.output == place.out and gradient is not None:
            total = self._with_regulariser(place, gradient)
        if gradient is not None:
            self._add(node, gradient, self.objective)
        if total is not None:
            self._add(node, total, self.total, inside=place.inside, parameters=self.total)

    def _add(
        self,
        node: Node,
        gradient: str,
        into: dict[str, str],
        inside: frozenset[str] | None = None,
        parameters: dict[str, str] | None = None,
    ) -> None:
        """Add to the gradients of a node's inputs: of those `inside`, and to those of parameters where asked for."""
        rule = RULES.get(node.op)
        if rule is None:
            raise DifferentiationError(f"operator {node.op} has no gradient rule in edgetta.export.gradients")
        for name, contribution in zip(node.inputs, rule(self.d, node, gradient), strict=False):
            if contribution is None or name not in self.active:
                continue
            if name in self.network.parameters:
                target = parameters
            else:
                target = into if inside is None or name in inside else None
            if target is not None:
                old = target.get(name)
                target[name] = contribution if old is None else self.d.backward.emit("Add", old, contribution)

    def _with_regulariser(self, place: MetaPlace, gradient: str) -> str:
        """The gradient of x~_k with that of the regulariser: its weight per element, by the sign of x~_k - x_k.

        One bit per element: exactly equal elements, which rounding makes rare, count as below.
        """
        d, emit = self.d, self.d.backward.emit
        above = d.save(d.forward.emit("Greater", place.out, place.frozen), "mask")
        elements = math.prod(d.shape(place.out)[1:])
        pull = emit("Mul", REGULARISER, d.backward.scalar(1.0 / elements))
        signs = emit("Masked", d.backward.constant("one", torch.ones([1] * len(d.shape(place.out)))), above)
        lifted = emit("Mul", signs, emit("Add", pull, pull))
        return emit("Add", emit("Sub", gradient, pull), lifted)

    def _assembled(self) -> Derived:
        network, builder = self.network, self.d.backward
        builder.inputs = [*self.d.residuals, GRAD_LOGITS, REGULARISER, *network.parameters]
        gradients = [self._shaped(name) for name in network.parameters]
        backward = builder.graph(gradients)
        used = {name for node in backward.nodes for name in node.inputs} | set(backward.outputs)
        residuals = tuple(r for name, r in self.d.residuals.items() if name in used)
        given = [name for name in network.parameters if name in used]
        backward = replace(backward, inputs=(*(r.value.name for r in residuals), GRAD_LOGITS, REGULARISER, *given))
        forward = self.d.forward.graph(
            [*network.graph.outputs, *(r.value.name for r in residuals)], lent=network.graph.inputs
        )
        return Derived(forward, backward, _fused(forward, backward), residuals)

    def _shaped(self, name: str) -> str:
        """A gradient in the shape of its parameter."""
        found, shape = self.total[name], self.d.forward.shape(name)
        return found if self.d.backward.shape(found) == shape else self.d.reshape(found, shape)


def _fused(forward: Graph, backward: Graph) -> Graph:
    """Forward and backward in one graph, from images instead of residuals."""
    values = {**forward.values, **backward.values}
    inputs = [*forward.inputs, GRAD_LOGITS, REGULARISER]
    nodes = (*forward.nodes, *backward.nodes)
    constants = {**forward.constants, **backward.constants}
    return Graph(tuple(inputs), backward.outputs, nodes, values, constants).pruned()
