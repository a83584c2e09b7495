"""The meta-network beside one frozen part (EcoTTA, section 3.1): its parameters and its forward.

    x~_k = norm_k(x_k) + scale * ReLU(branch_norm_k(conv_k(x~_{k-1})))

x_k is the frozen part's output on x~_{k-1}. `norm`, `branch_norm`, `conv` and `scale` train. There is no autograd:
`meta_backward.py` writes the backward out, and `Kept` is what it needs of the forward.

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
    MomentSums,
    Statistics,
    column,
    moments,
    moments_of,
    needs_batch,
    normalise,
    rows_in_cache,
)
from edgetta.adaptation.kept_tensor import Dither, KeptMask, KeptTensor
from edgetta.adaptation.step_memory import FULL, StepMemory

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
    """What a meta-network keeps from its forward for its backward, beside the tensors between the parts."""

    shape: torch.Size  # of x_k
    norm_moments: Moments
    branch_moments: Moments
    x_frozen: KeptTensor | None = None  # x_k, unless it is rebuilt
    convolved: KeptTensor | None = None  # conv_k(x~_{k-1}), unless it is rebuilt
    active: KeptMask | None = None  # where the branch's ReLU passes; the masks are None where exact tensors tell
    above: KeptMask | None = None  # where x~_k > x_k: the regulariser's gradient is a sign
    below: KeptMask | None = None

    def put(self, start: int, frozen: Tensor, convolved: Tensor, active: Tensor, difference: Tensor) -> None:
        """Keep the images from `start` on: x_k, the convolution's output, the active branch, and x~_k - x_k."""
        if self.x_frozen is not None:
            self.x_frozen.put(start, frozen)
        if self.convolved is not None:
            self.convolved.put(start, convolved)
        if self.active is not None and self.above is not None and self.below is not None:
            self.active.put(start, active > 0)
            self.above.put(start, difference > 0)
            self.below.put(start, difference < 0)

    def tensors(self) -> dict[str, list[Tensor]]:
        """What is held, by name, the moments apart."""
        whole = {"x_frozen": self.x_frozen, "convolved": self.convolved}
        held = {name: tensor.tensors() for name, tensor in whole.items() if tensor is not None}
        masks = [mask.bits for mask in (self.active, self.above, self.below) if mask is not None]
        return {**held, "signs": masks} if masks else held


@dataclass
class Passed:
    """What a meta-network makes of a batch."""

    out: Tensor  # x~_k
    distance: Tensor  # R_k = mean |x~_k - x_k| (the self-distilled regularisation, equation 3), if anything is kept
    kept: Kept | None


class MetaNetwork(nn.Module):
    """Trainable part of EcoTTA."""

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
        memory: StepMemory = FULL,
        dither: Dither | None = None,
        overwrite: bool = False,
    ) -> Passed:
        """x~_k for x~_{k-1} and x_k, and what the backward needs when `keep` is set.

        memory      how it is kept; in slices the convolution runs twice rather than be held for the whole batch
        dither      for rounding to 8 bits
        overwrite   x~_k may take the memory of x_k, unless that is kept as it is
        """
        whole = keep and memory.storage == "full"
        rows = rows_in_cache(x_frozen.shape, x_frozen.device)
        rows = min(rows, memory.slice or rows)
        norm_statistics: Statistics = statistics if self.spec.normalised else "none"
        norm = moments(self.flat(x_frozen), norm_statistics, self.norm_mean, self.norm_variance, momentum)
        sums = MomentSums()
        held = whole or (memory.slice == 0 and needs_batch(statistics, momentum))
        convolved = self.convolve(x_in).view(x_frozen.shape) if held else None
        if needs_batch(statistics, momentum):
            for images in x_in.split(rows) if convolved is None else convolved.split(rows):
                sums.add(self.convolve(images) if convolved is None else self.flat(images))
        branch = moments_of(sums, statistics, self.branch_mean, self.branch_variance, momentum)
        kept = self._kept(x_frozen, convolved, norm, branch, memory, dither) if keep else None
        out = x_frozen if overwrite and not whole else torch.empty_like(x_frozen)
        distance = torch.zeros((), dtype=out.dtype, device=out.device)
        for start in range(0, len(out), rows):
            images = slice(start, start + rows)
            frozen = self.flat(x_frozen[images])
            branch_in = self.convolve(x_in[images]) if convolved is None else self.flat(convolved[images])
            active = self.activate(branch_in, branch).relu_()
            result = self.combine(frozen, active, norm)
            if kept is not None:
                difference = result - frozen
                kept.put(start, *(x.view(out[images].shape) for x in (frozen, branch_in, active, difference)))
                distance += difference.abs_().sum()  # on a processor three times as fast as a norm
            out[images] = result.view(out[images].shape)
        return Passed(out, distance / out.numel(), kept)

    @staticmethod
    def _kept(
        x_frozen: Tensor,
        convolved: Tensor | None,
        norm: Moments,
        branch: Moments,
        memory: StepMemory,
        dither: Dither | None,
    ) -> Kept:
        """Where what `memory` asks for is put."""
        kept = Kept(x_frozen.shape, norm, branch)
        if not memory.rebuilds:
            kept.x_frozen = KeptTensor(x_frozen, memory.form, dither)
            kept.convolved = KeptTensor(x_frozen if convolved is None else convolved, memory.form, dither)
        if memory.storage != "full":
            kept.active, kept.above, kept.below = (KeptMask(x_frozen.shape, x_frozen.device) for _ in range(3))
        return kept

    def convolve(self, x_in: Tensor) -> Tensor:
        """conv_k(x~_{k-1}): (N, C, H, W), or (N * T, C) for tokens."""
        if self.spec.tokens:
            return F.linear(self.flat(x_in), self.conv[:, :, 0, 0])
        return F.conv2d(x_in, self.conv, None, self.spec.stride, self.spec.kernel // 2)

    def activate(self, convolved: Tensor, branch: Moments) -> Tensor:
        """branch_norm(conv(x~_{k-1})), what the branch's ReLU sees"""
        return normalise(convolved, branch, self.branch_weight, self.branch_bias)

    def combine(self, frozen: Tensor, active: Tensor, norm: Moments) -> Tensor:
        """norm(x_k) + scale * active"""
        return normalise(frozen, norm, self.norm_weight, self.norm_bias).addcmul_(active, column(self.scale, active))

    def flat(self, x: Tensor) -> Tensor:
        """x as normalisations see it: channels are dimension 1."""
        return x.reshape(-1, x.shape[-1]) if self.spec.tokens else x
