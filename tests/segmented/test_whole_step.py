"""The whole step against autograd in float64, for every statistics policy, with and without adaptable biases.

The reference restates the method in a few lines of stock autograd: frozen BatchNorms whose statistics are constants,
meta-networks beside them, the entropy of confident samples, and a regulariser that reaches its own meta-network only.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edgetta.adaptation.channel_norm import EPSILON
from edgetta.adaptation.network import AdaptiveNetwork
from edgetta.segmented.objective import filtered_entropy
from tests.adaptation.backbones import SmallNet, network_of, randomised, small_model

LIMIT = 1e-9
REGULARISER = 0.7
POLICIES = [
    ("adaptive", "batch", 24),
    ("adaptive", "ema", 24),
    ("adaptive", "source", 24),
    ("adaptive", "auto", 6),  # below 16 images: running statistics
    ("source", "source", 24),  # BatchNorms folded into the convolutions
    ("source", "auto", 24),  # folded, and meta-networks that follow the batch
]


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def blended(running: Tensor, current: Tensor, momentum: float) -> Tensor:
    return (1 - momentum) * running + momentum * current.detach()


class ConstantStatistics(nn.Module):
    """A frozen BatchNorm under `batch` (momentum 1), `ema`, or `source` (0): statistics are constants."""

    def __init__(self, norm: nn.BatchNorm2d, momentum: float) -> None:
        super().__init__()
        self.norm, self.momentum = norm, momentum

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x.detach(), (0, 2, 3), correction=0)
        assert self.norm.running_mean is not None and self.norm.running_var is not None
        mean = blended(self.norm.running_mean, mean, self.momentum)
        variance = blended(self.norm.running_var, variance, self.momentum)
        return F.batch_norm(x, mean, variance, self.norm.weight, self.norm.bias, False, 0.0, self.norm.eps)


def with_constant_statistics(model: nn.Module, momentum: float) -> nn.Module:
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(model, name, ConstantStatistics(child, momentum))
        else:
            with_constant_statistics(child, momentum)
    return model


def with_folded_norms(model: nn.Module) -> nn.Module:
    """Weights rounded to float32, as an export has them."""
    pairs = [(model.stem, "0", "1"), *((b, f"conv{i}", f"bn{i}") for b in blocks(model) for i in (1, 2))]
    for owner, conv, norm in pairs:
        fused = fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm))  # type: ignore[type-var]
        setattr(owner, conv, fused.float().double().requires_grad_(True))
        setattr(owner, norm, nn.Identity())
    return model


def blocks(model: nn.Module) -> tuple[nn.Module, ...]:
    return model.block1, model.block2, model.block3  # type: ignore[return-value]


def meta_output(meta: nn.Module, x: Tensor, frozen: Tensor, statistics: str, momentum: float) -> Tensor:
    def norm(x: Tensor, kind: str) -> Tensor:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        if statistics == "ema":
            mean = blended(getattr(meta, f"{kind}_mean"), mean, momentum)
            variance = blended(getattr(meta, f"{kind}_variance"), variance, momentum)
        x = (x - mean.view(1, -1, 1, 1)) / torch.sqrt(variance.view(1, -1, 1, 1) + EPSILON)
        weight, bias = getattr(meta, f"{kind}_weight"), getattr(meta, f"{kind}_bias")
        return weight.view(1, -1, 1, 1) * x + bias.view(1, -1, 1, 1)

    branch = F.conv2d(x, meta.conv, None, meta.spec.stride, meta.spec.kernel // 2)  # type: ignore[arg-type, union-attr]
    return norm(frozen, "norm") + meta.scale.view(1, -1, 1, 1) * F.relu(norm(branch, "branch"))  # type: ignore[operator, union-attr]


def reference_loss(
    backbone: SmallNet, metas: nn.ModuleList, batch: Tensor, statistics: str, momentum: float, margin: float
) -> tuple[Tensor, Tensor]:
    """The objective, and the logits."""
    x, distance = backbone.stem(batch).detach(), torch.zeros((), dtype=torch.float64)
    for block, meta in zip(blocks(backbone), metas, strict=True):
        frozen = block(x)
        alone = meta_output(meta, x.detach(), frozen.detach(), statistics, momentum)
        distance = distance + (alone - frozen.detach()).abs().mean()
        x = meta_output(meta, x, frozen, statistics, momentum)
    logits = backbone.fc(x.mean((2, 3)))
    confident = (entropies := entropy_of(logits)) < margin * math.log(logits.shape[1])
    assert 0 < int(confident.sum()) < len(confident), "the filter must let some samples through, and not all"
    return entropies[confident].mean() + REGULARISER * distance, logits


def entropy_of(logits: Tensor) -> Tensor:
    return torch.distributions.Categorical(logits=logits).entropy()


def step(network: AdaptiveNetwork, batch: Tensor) -> tuple[Tensor, float]:
    """One forward and backward: the logits, and an entropy margin that half of the samples pass."""
    logits, tape = network.forward(batch)
    margin = float(entropy_of(logits).median()) * (1 + 1e-6) / math.log(logits.shape[1])
    network.backward(tape, filtered_entropy(logits, margin).gradient, REGULARISER)
    return logits, margin


@pytest.mark.parametrize("adapt", ["meta", "bias"])
@pytest.mark.parametrize("gradient", ["exact", "recompute"])
@pytest.mark.parametrize(("form", "policy", "count"), POLICIES)
def test_every_gradient_is_autograds(form: str, policy: str, count: int, gradient: str, adapt: str) -> None:
    network = network_of(small_model(adapt=adapt, form=form), policy, gradient)  # type: ignore[arg-type]
    statistics, momentum = network.statistics(count)
    metas = copy.deepcopy(network.metas)  # the step moves running statistics
    logits, margin = step(network, images(count))

    backbone = randomised(SmallNet()).double()
    backbone = with_folded_norms(backbone) if form == "source" else with_constant_statistics(backbone, momentum)
    loss, expected = reference_loss(backbone, metas, images(count), statistics, momentum, margin)  # type: ignore[arg-type]
    loss.backward()
    expected = expected.detach()
    assert float((logits - expected).norm() / expected.norm()) < LIMIT
    wanted = {name: parameter.grad for name, parameter in metas.named_parameters()}
    for name, parameter in network.metas.named_parameters():
        assert close(parameter.grad, wanted[name]), name
    moved = dict(backbone.named_parameters())
    biases = [
        (f"block{k}", name, bias) for k, part in enumerate(network.parts, 1) for name, bias in part.affine.items()
    ]
    assert bool(biases) == (adapt == "bias")
    for block, name, bias in biases:
        norm = name.removeprefix("bias.").removesuffix(".folded").removesuffix(".bias").split(".")[-1]
        owner = norm.replace("bn", "conv") if form == "source" else f"{norm}.norm"
        assert close(bias.grad, moved[f"{block}.{owner}.bias"].grad), f"{block} {name}"


def close(found: Tensor | None, wanted: Tensor | None) -> bool:
    assert found is not None and wanted is not None
    return float((found.flatten() - wanted.flatten()).norm() / wanted.norm().clamp_min(1e-12)) < LIMIT


@pytest.mark.parametrize("policy", ["batch", "ema", "source"])
def test_policies_differ(policy: str) -> None:
    """Otherwise the test above could pass with one policy in place of another."""
    others = [other for other in ("batch", "ema", "source") if other != policy]
    mine, *theirs = (step(network_of(small_model(), p), images(24))[0] for p in (policy, *others))  # type: ignore[arg-type]
    assert all(float((mine - other).norm() / mine.norm()) > 1e-3 for other in theirs)
