"""The meta-network beside one frozen part (EcoTTA, section 3.1), with its backward written out.

    x~_k = norm_k(x_k) + scale * ReLU(branch_norm_k(conv_k(x~_{k-1})))

x_k is the frozen part's output on x~_{k-1}. `norm`, `branch_norm`, `conv` and `scale` train. Writing the backward
out lets two gradients pass in one sweep (the entropy's, which goes on to earlier parts, and the regulariser's, which
trains this meta-network alone) and decides what is kept: x~_{k-1}, x_k and the convolution's output. The ReLU's mask
and the signs of the regulariser follow from these and are rebuilt, which is quicker than keeping them.

For token tensors (N, T, C) the convolution is a linear map per token, and the normalisations see (N * T, C).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetta.adaptation.channel_norm import (
    EPSILON,
    Moments,
    Statistics,
    channel_dot,
    column,
    input_gradient,
    moments,
    normalise,
    parameter_gradients,
)

Initialisation = Literal["identity", "published"]


@dataclass(frozen=True)
class MetaSpec:
    """Shape and kind of a meta-network; travels in the bundle's manifest."""

    in_channels: int
    out_channels: int
    kernel: int  # 3 for basic blocks, 1 for bottleneck blocks and tokens
    stride: int  # of the part: input height / output height
    tokens: bool = False  # activations are (N, T, C) instead of (N, C, H, W)
    initialisation: Initialisation = "identity"
    normalised: bool = True  # False for backbones without BatchNorm: norm_k is then a per-channel affine map

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Kept:
    """What a meta-network keeps from its forward for its backward."""

    x_in: Tensor  # x~_{k-1}
    x_frozen: Tensor  # x_k
    convolved: Tensor  # conv_k(x~_{k-1})
    norm_moments: Moments
    branch_moments: Moments

    def tensors(self) -> dict[str, Tensor]:
        return {"x_in": self.x_in, "x_frozen": self.x_frozen, "convolved": self.convolved}


class MetaNetwork(nn.Module):
    """Trainable part of EcoTTA; `forward` and `backward` work without autograd."""

    norm_mean: Tensor
    norm_variance: Tensor
    branch_mean: Tensor
    branch_variance: Tensor

    def __init__(self, spec: MetaSpec, seed: int = 0) -> None:
        super().__init__()
        self.spec = spec
        size = (spec.out_channels, spec.in_channels, spec.kernel, spec.kernel)
        bound = (spec.in_channels * spec.kernel**2) ** -0.5  # torch's default for convolutions
        generator = torch.Generator().manual_seed(seed)
        self.conv = nn.Parameter((torch.rand(size, generator=generator) * 2 - 1) * bound)
        channels = spec.out_channels
        self.norm_weight = nn.Parameter(torch.ones(channels))
        self.norm_bias = nn.Parameter(torch.zeros(channels))
        self.branch_weight = nn.Parameter(torch.ones(channels))
        self.branch_bias = nn.Parameter(torch.zeros(channels))
        # The published block has no scale. `identity` starts with the branch silent but its gradient alive.
        initial = 0.0 if spec.initialisation == "identity" else 1.0
        self.scale = nn.Parameter(torch.full((channels,), initial))
        for name in ("norm_mean", "branch_mean"):
            self.register_buffer(name, torch.zeros(channels))
        for name in ("norm_variance", "branch_variance"):
            self.register_buffer(name, torch.ones(channels))

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that adaptation updates; the published block has no scale."""
        frozen = {"scale"} if self.spec.initialisation == "published" else set()
        return [parameter for name, parameter in self.named_parameters() if name not in frozen]

    @torch.no_grad()
    def set_source_statistics(
        self, mean: Tensor, variance: Tensor, branch_mean: Tensor, branch_variance: Tensor
    ) -> None:
        """Source statistics (C,) of x_k and of the convolution's output.

        Running statistics start there. With `identity` initialisation the norm's weight and bias become the source
        deviation and mean, so that the block maps x_k back to its source statistics: feature alignment.
        """
        self.norm_mean.copy_(mean)
        self.norm_variance.copy_(variance)
        self.branch_mean.copy_(branch_mean)
        self.branch_variance.copy_(branch_variance)
        if self.spec.initialisation == "identity" and self.spec.normalised:
            self.norm_weight.copy_(torch.sqrt(variance + EPSILON))
            self.norm_bias.copy_(mean)

    @torch.no_grad()
    def forward(
        self,
        x_in: Tensor,
        x_frozen: Tensor,
        statistics: Statistics = "batch",
        momentum: float = 0.1,
        keep: bool = True,
    ) -> tuple[Tensor, Kept | None]:
        """x~_k for x~_{k-1} and x_k, and what the backward needs when `keep` is set."""
        norm_statistics: Statistics = statistics if self.spec.normalised else "none"
        shape = x_frozen.shape
        frozen = self._flat(x_frozen)
        convolved = self.convolve(x_in)
        norm = moments(frozen, norm_statistics, self.norm_mean, self.norm_variance, momentum)
        branch = moments(convolved, statistics, self.branch_mean, self.branch_variance, momentum)
        out = self._combine(frozen, self._active(convolved, branch), norm)
        return out.view(shape), Kept(x_in, x_frozen, convolved, norm, branch) if keep else None

    @torch.no_grad()
    def backward(
        self,
        kept: Kept,
        grad: Tensor | None,
        regulariser: float = 0.0,
        needs_frozen: bool = True,
        needs_input: bool = True,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Add to the parameters' gradients; return those of x_k and x~_{k-1}, None where they are not needed.

        `grad` is the objective's gradient of x~_k, of its shape, or None. The gradient of
        `regulariser * mean |x~_k - x_k|` reaches the parameters only (its inputs are detached).
        """
        frozen, convolved = self._flat(kept.x_frozen), kept.convolved
        objective = None if grad is None else self._flat(grad)
        if objective is None and not regulariser:
            return None, None
        active = self._active(convolved, kept.branch_moments)
        total = objective
        if regulariser:
            pull = (
                self._combine(frozen, active, kept.norm_moments)
                .sub_(frozen)
                .sign_()
                .mul_(regulariser / frozen.numel())
            )
            total = pull if objective is None else pull.add_(objective)
        assert total is not None
        self._accumulate(("norm_weight", "norm_bias"), parameter_gradients(total, frozen, kept.norm_moments))
        if self.spec.initialisation == "identity":
            self._accumulate(("scale",), (channel_dot(total, active),))

        to_convolved = self._through_branch(total, active, kept, accumulate=True)
        self._accumulate(("conv",), (self._conv_weight_gradient(kept.x_in, to_convolved),))
        if objective is None:
            return None, None
        to_frozen: Tensor | None = None
        to_input: Tensor | None = None
        if needs_input:
            if total is not objective:
                del total
                to_convolved = self._through_branch(objective, active, kept, accumulate=False)
            del active
            to_input = self._conv_input_gradient(kept.x_in, to_convolved)
        if needs_frozen:
            to_frozen = input_gradient(objective, frozen, kept.norm_moments, self.norm_weight)
            to_frozen = to_frozen.view(kept.x_frozen.shape)
        return to_frozen, to_input

    def regulariser(self, out: Tensor, x_frozen: Tensor) -> Tensor:
        """R_k = mean |x~_k - x_k| (the self-distilled regularisation, equation 3)."""
        return torch.linalg.vector_norm(out - x_frozen, 1) / out.numel()

    def convolve(self, x_in: Tensor) -> Tensor:
        """conv_k(x~_{k-1}): (N, C, H, W), or (N * T, C) for tokens."""
        if self.spec.tokens:
            return F.linear(self._flat(x_in), self.conv[:, :, 0, 0])
        return F.conv2d(x_in, self.conv, None, self.spec.stride, self.spec.kernel // 2)

    def _flat(self, x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1]) if self.spec.tokens else x

    def _active(self, convolved: Tensor, branch: Moments) -> Tensor:
        """ReLU(branch_norm(conv(x~_{k-1})))"""
        return normalise(convolved, branch, self.branch_weight, self.branch_bias).relu_()

    def _combine(self, frozen: Tensor, active: Tensor, norm: Moments) -> Tensor:
        """norm(x_k) + scale * active"""
        return normalise(frozen, norm, self.norm_weight, self.norm_bias).addcmul_(active, column(self.scale, active))

    def _through_branch(self, grad: Tensor, active: Tensor, kept: Kept, accumulate: bool) -> Tensor:
        """The gradient of the convolution's output for a gradient of x~_k."""
        through = torch.ops.aten.threshold_backward(grad * column(self.scale, grad), active, 0.0)
        if accumulate:
            gradients = parameter_gradients(through, kept.convolved, kept.branch_moments)
            self._accumulate(("branch_weight", "branch_bias"), gradients)
        result: Tensor = input_gradient(through, kept.convolved, kept.branch_moments, self.branch_weight)
        return result

    def _conv_weight_gradient(self, x_in: Tensor, grad: Tensor) -> Tensor:
        if self.spec.tokens:
            return (grad.t() @ self._flat(x_in))[:, :, None, None]
        return self._conv_gradients(x_in, grad, weight=True)

    def _conv_input_gradient(self, x_in: Tensor, grad: Tensor) -> Tensor:
        if self.spec.tokens:
            return (grad @ self.conv[:, :, 0, 0]).view(x_in.shape)
        return self._conv_gradients(x_in, grad, weight=False)

    def _conv_gradients(self, x_in: Tensor, grad: Tensor, weight: bool) -> Tensor:
        pad, stride = self.spec.kernel // 2, self.spec.stride
        gradients = torch.ops.aten.convolution_backward(
            grad,
            x_in,
            self.conv,
            None,
            [stride, stride],
            [pad, pad],
            [1, 1],
            False,
            [0, 0],
            1,
            [not weight, weight, False],
        )
        return gradients[1] if weight else gradients[0]

    def _accumulate(self, names: tuple[str, ...], gradients: tuple[Tensor, ...]) -> None:
        for name, gradient in zip(names, gradients, strict=True):
            parameter = getattr(self, name)
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
