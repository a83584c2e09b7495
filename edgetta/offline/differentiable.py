"""The adapted network as one function that autograd differentiates, as often as is needed: for training, curvature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetta.engines.contract import ProgramSet, Statistics
from edgetta.engines.feeding import Feeding
from edgetta.segments.graph import Graph, Node
from edgetta.segments.operators import OPERATORS

_SEPARATOR = "/"  # in names of parameters, where torch allows no dot


class DifferentiableNetwork(nn.Module):
    """Images (N, C, H, W) -> logits (N, classes) and the distances (K,) of the regulariser.

    Its parameters are all that adapts, beginning with what ships. Distance k, mean |x~_k - x_k|, depends on the
    meta-network k alone (EcoTTA, equation 3).

    Where the weight of a BatchNorm adapts, the derivative goes through the statistics, as these follow the weights on
    a device whose gradient takes that from one bit per element; where it does not, they are constants, as there.

    Args:
        programs: of the network.
        statistics: that BatchNorms normalise with. None: each batch's own.
        moving: given statistics have the derivative of the batch's own moments, as those of a stream, which move with
            them; False: they are constants.
        distances: False leaves them out, and none are returned.
    """

    def __init__(
        self,
        programs: ProgramSet,
        statistics: Statistics | None = None,
        *,
        moving: bool = True,
        distances: bool = True,
    ) -> None:
        super().__init__()
        self.graph = replace(programs.forward, outputs=programs.forward.outputs[:1]).pruned()
        self.names = {name: name.replace(".", _SEPARATOR) for name in programs.parameters.shapes}
        for name, array in programs.parameters.split(programs.shipped).items():
            self.register_parameter(self.names[name], nn.Parameter(torch.tensor(array)))
        self.given = statistics is not None
        self.moving = moving or statistics is None
        for kind in ("mean", "variance") if statistics is not None else ():
            for layer, array in programs.statistics.split(getattr(statistics, kind)).items():
                value = torch.tensor(array, dtype=torch.float32)
                self.register_buffer(f"{kind}.{layer}".replace(".", _SEPARATOR), value)
        self._metas = _metas(programs) if distances else []
        self._detaches = _reached(self.graph, self.names)

    @property
    def meta_parameters(self) -> list[str]:
        """Names of the meta-networks' parameters."""
        return [own for name, own in self.names.items() if name.startswith("meta")]

    def vector(self) -> Tensor:
        """The parameters (P,) in the order of the programs."""
        return torch.cat([self.get_parameter(own).detach().flatten() for own in self.names.values()])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        values: dict[str, Tensor | None] = {"": None, "x": images}
        values |= {name: getattr(self, own) for name, own in self.names.items()}
        for name, constant in self.graph.constants.items():
            tensor = torch.as_tensor(constant)
            values[name] = tensor.to(images.device, images.dtype if tensor.is_floating_point() else tensor.dtype)
        for node in self.graph.nodes:
            values[node.output] = self._call(node, values)
        logits = values[self.graph.outputs[0]]
        assert logits is not None
        distances = [self._distance(meta, values) for meta in self._metas]
        return logits, torch.stack(distances) if distances else logits[:0, 0]

    def _distance(self, meta: _Meta, values: Mapping[str, Tensor | None]) -> Tensor:
        """mean |x~_k - x_k|, with x~_k once more as a function of its meta-network's parameters alone."""
        own = {n: t if t is None or n in self.names else t.detach() for n, t in values.items() if n in meta.reads}
        for node in meta.nodes:
            own[node.output] = self._call(node, own)
        out, frozen = own[meta.out], values[meta.frozen]
        assert out is not None and frozen is not None
        return (out - frozen.detach()).abs().mean()

    def _call(self, node: Node, values: Mapping[str, Tensor | None]) -> Tensor:
        if node.op == "BatchNormalization" and node.inputs[3] not in self.graph.constants:
            return self._normalised(node, values)
        operands = [values[name] for name in node.inputs]
        if node.op == "FakeQuantize":  # the gradient goes straight through the rounding
            x = operands[0]
            assert x is not None
            return x + (OPERATORS[node.op](x.detach(), operands[1]) - x).detach()
        if node.op == "Clip" and not node.attributes.get("inclusive", 0):  # no gradient at the bounds themselves
            return F.hardtanh(operands[0], node.attributes["min"], node.attributes["max"])  # type: ignore[arg-type]
        if node.op == "Detach":
            assert operands[0] is not None
            return operands[0].detach() if self._detaches else operands[0]
        return OPERATORS[node.op](*operands, **node.attributes)

    def _normalised(self, node: Node, values: Mapping[str, Tensor | None]) -> Tensor:
        """A BatchNorm; see the class for its statistics."""
        x, weight, bias = (values[name] for name in node.inputs[:3])
        assert x is not None and weight is not None and bias is not None
        epsilon = node.attributes["epsilon"]
        follows = self.moving and node.inputs[1] in self.names
        if follows and not self.given and x.numel() > x.shape[1]:
            return F.batch_norm(x, None, None, weight, bias, True, 0.0, epsilon)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        if self.given:
            mean, variance = (getattr(self, name.replace(".", _SEPARATOR)) for name in node.inputs[3:])
        else:
            variance, mean = torch.var_mean(x.detach(), axes, correction=0)
        if follows:
            own_variance, own_mean = torch.var_mean(x, axes, correction=0)
            mean = mean + (own_mean - own_mean.detach())
            constant = own_variance.detach()
            variance = variance + variance * (own_variance - constant) / constant.clamp_min(1e-12)
        column = [1, -1, *[1] * (x.dim() - 2)]
        scale = weight * torch.rsqrt(variance + epsilon)
        return (x - mean.view(column)) * scale.view(column) + bias.view(column)


@dataclass(frozen=True)
class _Meta:
    """A meta-network in the graph: x~_k, x_k, its nodes in order, and all that they read from outside."""

    out: str
    frozen: str
    nodes: tuple[Node, ...]
    reads: frozenset[str]


def _metas(programs: ProgramSet) -> list[_Meta]:
    """Found from the distances, which are ReduceMean(Abs(Sub(x~_k, x_k))), and from the names of its parameters."""
    graph, found = programs.forward, []
    producers = graph.producers()
    for k, distance in enumerate(Feeding(programs).distances):
        out, frozen = producers[producers[producers[distance].inputs[0]].inputs[0]].inputs
        depends = {name for name in graph.inputs if name.removeprefix("mean.").startswith(f"metas.{k}.")}
        needed, nodes = {out}, []
        for node in graph.nodes:
            if depends.intersection(node.inputs):
                depends.add(node.output)
        for node in reversed(graph.nodes):
            if node.output in needed and node.output in depends:
                needed.update(node.inputs)
                nodes.append(node)
        made = {node.output for node in nodes}
        reads = frozenset(name for node in nodes for name in node.inputs if name not in made)
        found.append(_Meta(out, frozen, tuple(nodes[::-1]), reads))
    return found


def _reached(graph: Graph, parameters: Mapping[str, Any]) -> bool:
    """Whether the logits depend on all parameters in spite of every `detach()`; else all of these pass."""
    needed = {graph.outputs[0]}
    for node in reversed(graph.nodes):
        if node.output in needed and node.op != "Detach":
            needed.update(node.inputs)
    return needed.issuperset(parameters)
