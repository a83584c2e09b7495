"""The reference that derived graphs are compared with: torch.autograd through the module itself, in float64.

It shares no code with the derivation. Forward hooks on the modules where the network is cut capture what a part
returns and hand a fresh leaf to what follows, so that every part's gradient is its own. BatchNorms that use statistics
of the stream are replaced by elementary arithmetic whose statistics are detached.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class PartReference:
    """One part's input, output, incoming gradient, and what autograd makes of it, all in float64."""

    x: Tensor
    y: Tensor
    grad_y: Tensor
    grad_x: Tensor
    grad_biases: dict[str, Tensor]  # by the parameter's name in the network


def reference(
    model: nn.Module,
    cuts: Sequence[str],
    images: Tensor,
    policy: str = "source",
    momentum: float = 0.1,
    biases: bool = False,
    seed: int = 0,
) -> list[PartReference]:
    """The gradients of what lies between the modules of `cuts`, and behind the last one, on `images` (N, C, H, W)."""
    model = copy.deepcopy(model).double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and policy != "source":
            module.forward = MethodType(_batch_norm(policy, momentum), module)  # type: ignore[method-assign]
        if isinstance(module, nn.Hardsigmoid):  # torch differentiates it with a float32 sixth, even in float64
            module.forward = _hard_sigmoid  # type: ignore[method-assign, assignment]
    parameters = {name: p for name, p in model.named_parameters() if name.endswith("bias")}
    if biases:
        for parameter in parameters.values():
            parameter.requires_grad_(True)

    outputs: list[Tensor] = []
    leaves: list[Tensor] = []

    def cut_here(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        outputs.append(output)
        leaves.append(output.detach().clone().requires_grad_(True))
        return leaves[-1].clone()  # a copy, so that an in-place ReLU behind the cut is allowed

    handles = [model.get_submodule(name).register_forward_hook(cut_here) for name in cuts]
    logits = model(images.double())
    for handle in handles:
        handle.remove()
    if len(outputs) != len(cuts):
        raise RuntimeError("a cut module was called more than once; the reference cannot tell which call is meant")

    parts = []
    for x, y in zip(leaves, [*outputs[1:], logits], strict=True):
        grad_y = torch.randn(y.shape, generator=generator, dtype=torch.float64)
        used = list(parameters.items()) if biases else []
        gradients = torch.autograd.grad(y, [x, *(p for _, p in used)], grad_y, retain_graph=True, allow_unused=True)
        named = {name: g for (name, _), g in zip(used, gradients[1:], strict=True) if g is not None}
        parts.append(PartReference(x.detach(), y.detach(), grad_y, gradients[0], named))
    return parts


def relative_error(result: Tensor, expected: Tensor) -> float:
    """|result - expected| / |expected| in the L2 norm."""
    if result.shape != expected.shape:
        raise ValueError(f"shapes differ: {tuple(result.shape)} and {tuple(expected.shape)}")
    expected = expected.double()
    return float((result.double() - expected).norm() / expected.norm().clamp_min(1e-300))


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random BatchNorm statistics, scales and biases, LayerNorm ones too, so that nothing is trivially 0 or 1."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                value.copy_(uniform(value, 0.5, 2.0))
            elif name.endswith(("running_mean", "bias")):
                value.copy_(uniform(value, -0.3, 0.3))
            elif name.endswith("weight") and value.dim() == 1:
                value.copy_(uniform(value, 0.6, 1.4))
            elif name.endswith("gamma"):  # layer scale, which begins at 1e-6
                value.copy_(uniform(value, 0.3, 1.0))
    return model


def _hard_sigmoid(x: Tensor) -> Tensor:
    return torch.clamp(x / 6.0 + 0.5, 0.0, 1.0)


def _batch_norm(policy: str, momentum: float) -> Any:
    def forward(self: Any, x: Tensor) -> Tensor:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        mean = x.detach().mean(axes)
        variance = x.detach().var(axes, correction=0)
        if policy == "ema":
            mean = (1 - momentum) * self.running_mean + momentum * mean
            variance = (1 - momentum) * self.running_var + momentum * variance
        column = [1, -1, *([1] * (x.dim() - 2))]
        y = (x - mean.reshape(column)) / torch.sqrt(variance.reshape(column) + self.eps)
        y = y * self.weight.reshape(column) + self.bias.reshape(column)
        if hasattr(self, "act"):  # timm's BatchNorm with its activation inside
            y = self.act(self.drop(y))
        return y

    return forward
