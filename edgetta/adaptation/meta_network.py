"""The meta-network beside one frozen part (EcoTTA, section 3.1): its shape and kind. Nothing here imports torch.

    x~_k = norm_k(x_k) + scale * ReLU(branch_norm_k(conv_k(x~_{k-1})))

x_k is the frozen part's output on x~_{k-1}. `norm`, `branch_norm`, `conv` and `scale` train; the published block has
no scale. For token tensors (N, T, C) the convolution is a linear map per token, and the normalisations see (N * T, C).
`edgetta.export.whole_network` makes it a part of the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Initialisation = Literal["identity", "published"]
EPSILON = 1e-5
"""Of its normalisations."""


@dataclass(frozen=True)
class MetaSpec:
    """Shape and kind of a meta-network."""

    in_channels: int
    out_channels: int
    kernel: int  # 3 for basic blocks, 1 for bottleneck blocks and tokens
    stride: int  # of the part: input height / output height
    tokens: bool = False  # activations are (N, T, C) instead of (N, C, H, W)
    initialisation: Initialisation = "identity"
    normalised: bool = True  # False for backbones without BatchNorm: norm_k is then a per-channel affine map
