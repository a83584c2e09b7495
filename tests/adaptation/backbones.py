"""Small backbones and an autograd re-statement of the method, as an independent reference for the tests."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetta.adaptation.channel_norm import EPSILON
from edgetta.adaptation.meta_network import MetaNetwork
from edgetta.adaptation.model import AdaptableModel, build
from edgetta.adaptation.network import AdaptiveNetwork, BatchNorm
from edgetta.engines.contract import ProgramSet
from edgetta.export.derive import derive
from edgetta.segments.torch_engine import TorchSegment


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class SmallNet(nn.Module):
    """Stem, three residual blocks, linear classifier; 16x16 images."""

    cuts = ("stem", "block1", "block2", "block3")

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.block1 = Block(6, 6, 1)
        self.block2 = Block(6, 8, 2)
        self.block3 = Block(8, 8, 1)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block3(self.block2(self.block1(self.stem(x)))).mean((2, 3)))


class DetachedNorm(nn.Module):
    """BatchNorm with batch statistics that are constants in the backward."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x.detach(), (0, 2, 3), correction=0)
        return F.batch_norm(x, mean, variance, self.norm.weight, self.norm.bias, False, 0.0, self.norm.eps)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode with BatchNorms whose statistics and affine maps are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * (0.5 if parameter.dim() > 1 else 0.2)
        if parameter.dim() == 4:
            parameter.data /= (parameter.shape[1] * parameter.shape[2]) ** 0.5
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=generator) * 0.3
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
            module.weight.data.add_(1.0)
    return model.eval()


@functools.cache
def small_programs(initialisation: str = "identity", adapt: str = "affine", form: str = "adaptive") -> ProgramSet:
    """Programs of the small network, its meta-networks away from their initialisation, as after warm-up."""
    programs = small_model(initialisation, adapt, form).programs
    assert programs is not None
    rng = np.random.default_rng(3)
    moved = {
        name: array + (0.1 * rng.standard_normal(array.shape) if name.startswith("metas.") else 0)
        for name, array in programs.parameters.split(programs.shipped).items()
    }
    return replace(programs, shipped=programs.parameters.join(moved).astype(np.float32))


@functools.cache
def small_model(initialisation: str = "identity", adapt: str = "meta", form: str = "adaptive") -> AdaptableModel:
    return derive(
        randomised(SmallNet()),
        (3, 16, 16),
        SmallNet.cuts,
        batch_norm=form,  # type: ignore[arg-type]
        adapt=adapt,
        initialisation=initialisation,  # type: ignore[arg-type]
        kernel=3,
    )


def network_of(
    model: AdaptableModel, batch_norm: BatchNorm = "batch", gradient: str = "exact", dtype: torch.dtype = torch.float64
) -> AdaptiveNetwork:
    network = build(
        model,
        lambda name, graphs, mode: TorchSegment(graphs, mode, dtype=dtype, pack=False),
        gradient,
        batch_norm,  # type: ignore[arg-type]
    )
    network.metas.to(dtype)
    generator = torch.Generator().manual_seed(7)
    for parameter in network.metas.parameters():  # leave the special point of the initialisation
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return network


def autograd_meta(meta: MetaNetwork, x_in: Tensor, x_frozen: Tensor) -> Tensor:
    """The meta-network in plain autograd, batch statistics."""

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, weight, bias, True, 0.0, EPSILON)

    branch = F.conv2d(x_in, meta.conv, None, meta.spec.stride, meta.spec.kernel // 2)
    branch = F.relu(norm(branch, meta.branch_weight, meta.branch_bias))
    return norm(x_frozen, meta.norm_weight, meta.norm_bias) + meta.scale.view(1, -1, 1, 1) * branch


def autograd_loss(
    backbone: SmallNet, metas: nn.ModuleList, images: Tensor, margin: float, regulariser: float, local: bool = False
) -> Tensor:
    """EcoTTA's objective in one graph: filtered entropy reaches everything, each R_k its own meta-network."""
    x = backbone.stem(images).detach()
    distance = torch.zeros((), dtype=x.dtype)
    for block, meta in zip((backbone.block1, backbone.block2, backbone.block3), metas, strict=True):
        frozen = block(x)
        if local:
            frozen = frozen.detach()
        adapted = autograd_meta(meta, x, frozen)  # type: ignore[arg-type]
        alone = autograd_meta(meta, x.detach(), frozen.detach())  # type: ignore[arg-type]
        distance = distance + (alone - frozen.detach()).abs().mean()
        x = adapted
    logits = backbone.fc(x.mean((2, 3)))
    log_probabilities = F.log_softmax(logits, 1)
    entropies = -(log_probabilities.exp() * log_probabilities).sum(1)
    kept = entropies < margin * torch.log(torch.tensor(float(logits.shape[1])))
    entropy = entropies[kept].mean() if kept.any() else torch.zeros((), dtype=x.dtype)
    return entropy + regulariser * distance


def with_detached_norms(model: nn.Module) -> nn.Module:
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(model, name, DetachedNorm(child))
        else:
            with_detached_norms(child)
    return model
