"""The adaptation objective as a loss surface: an adaptive network restated in operations of autograd."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgetta.adaptation.channel_norm import Statistics, column, moments, normalise
from edgetta.adaptation.meta_network import MetaNetwork
from edgetta.adaptation.network import AdaptiveNetwork
from edgetta.errors import UsageError
from edgetta.offline.curvature.surface import Loss, LossSurface
from edgetta.segments.contract import Segment
from edgetta.segments.graph import Graph
from edgetta.segments.operators import OPERATORS

Objective = Literal["entropy", "cross_entropy"]
STATISTICS = ("ChannelMean", "ChannelVariance")
"""Operators that feed running statistics and nothing else; their results are constants of the derivative."""


class DifferentiableNetwork(nn.Module):
    """An `AdaptiveNetwork` in plain autograd: images (N, C, H, W) -> (logits (N, classes), distances (K,)).

    The meta-networks are the network's own modules, so that their current values are seen; frozen parts are run from
    their graphs. As on the device, statistics of frozen BatchNorms are constants of the derivative, and distance k,
    mean |x~_k - x_k|, depends on meta-network k alone. Running statistics are read and never moved.

    Args:
        network: with segments that hold their graphs; its `batch_norm` policy decides the statistics, by batch size.
    """

    def __init__(self, network: AdaptiveNetwork) -> None:
        super().__init__()
        self.metas = network.metas
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        statistics, momentum = self.network.statistics(len(images))
        current = momentum if statistics == "batch" else 0.0
        x = _run(self.network.stem, images, current)
        distances = []
        for part, meta in zip(self.network.parts, self.metas, strict=True):
            assert isinstance(meta, MetaNetwork)
            frozen = _run(part, x, current)
            alone = _meta(meta, x.detach(), frozen.detach(), statistics)
            distances.append((alone - frozen.detach()).abs().mean())
            x = _meta(meta, x, frozen, statistics)
        return _run(self.network.classifier, x, current), torch.stack(distances)


def adaptation_surface(
    network: AdaptiveNetwork,
    objective: Objective = "entropy",
    *,
    regulariser: float = 0.0,
    margin: float | None = None,
) -> LossSurface:
    """The surface on which the device descends, over the trainable parameters of the meta-networks.

    Its samples are coupled by batch statistics and by the filter, so batches are never split.

    Args:
        network: see `DifferentiableNetwork`.
        objective: "entropy" of the predictions (EcoTTA, equation 2), or "cross_entropy" with labels, as in warm-up.
        regulariser: lambda, the weight of the sum of distances (equation 3).
        margin: only samples with entropy below margin * ln(classes) count; None: all.

    Raises:
        UsageError: an objective that does not exist.
    """
    if objective not in ("entropy", "cross_entropy"):
        raise UsageError(f"objective {objective!r} is unknown; choose entropy or cross_entropy")
    model = DifferentiableNetwork(network)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    trainable = [
        names[id(parameter)]
        for meta in network.metas
        for parameter in meta.trainable()  # type: ignore[operator]
    ]
    return LossSurface(model, _loss(objective, regulariser, margin), parameters=trainable, separable=False)


def _loss(objective: Objective, regulariser: float, margin: float | None) -> Loss:
    def loss(outputs: Sequence[Tensor], targets: Any) -> Tensor:
        logits, distances = outputs
        log_probabilities = logits.log_softmax(1)
        if objective == "cross_entropy":
            value = nn.functional.nll_loss(log_probabilities, targets)
        else:
            entropies = -(log_probabilities.exp() * log_probabilities).sum(1)
            kept = torch.ones_like(entropies)
            if margin is not None:
                kept = (entropies.detach() < margin * math.log(logits.shape[1])).to(entropies.dtype)
            value = (entropies * kept).sum() / kept.sum().clamp_min(1)
        return value + regulariser * distances.sum()

    return loss


def _run(segment: Segment, x: Tensor, momentum: float) -> Tensor:
    """The segment's output; its new running statistics, which it normalises with, are constants."""
    graph: Graph = segment.graphs.forward
    moved = graph.outputs[1 : 1 + len(segment.graphs.state)]
    values: dict[str, Tensor | None] = {"": None, "x": x, "ema_momentum": x.new_full((1,), momentum)}
    held: Mapping[str, Tensor] = {**graph.constants, **segment.state, **segment.affine}
    for name, tensor in held.items():
        values[name] = tensor.detach().to(x.device, x.dtype if tensor.is_floating_point() else tensor.dtype)
    for node in graph.nodes:
        # Statistics square in place, which in a recorded graph ties a cycle that is never freed.
        recorded = nullcontext() if node.op not in STATISTICS else torch.no_grad()
        with recorded:
            result = OPERATORS[node.op](*[values[name] for name in node.inputs], **node.attributes)
        values[node.output] = result.detach() if node.output in moved else result
        if node.output == graph.outputs[0] and all(name in values for name in moved):
            break  # what follows are residuals for a backward pass that autograd does itself
    output = values[graph.outputs[0]]
    assert output is not None
    return output


def _meta(meta: MetaNetwork, x_in: Tensor, x_frozen: Tensor, statistics: Statistics) -> Tensor:
    """`MetaNetwork.forward` without its in-place operations."""
    frozen = x_frozen.reshape(-1, x_frozen.shape[-1]) if meta.spec.tokens else x_frozen
    convolved = meta.convolve(x_in)
    kind: Statistics = statistics if meta.spec.normalised else "none"
    norm = moments(frozen, kind, meta.norm_mean, meta.norm_variance, 0.0)
    branch = moments(convolved, statistics, meta.branch_mean, meta.branch_variance, 0.0)
    active = normalise(convolved, branch, meta.branch_weight, meta.branch_bias).relu()
    out = normalise(frozen, norm, meta.norm_weight, meta.norm_bias) + column(meta.scale, active) * active
    return out.view(x_frozen.shape)
