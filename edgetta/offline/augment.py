"""Augmentation of source images for warm-up: colour jitter, blur and grey, as the published recipe has them.

Works on batches (N, 3, H, W) in [0, 1], one random draw per image, with a torch generator, so that it is reproducible.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augmentation:
    """Probability and strength of each transform; the defaults are those of the published warm-up.

    Brightness, contrast and saturation are scaled by a factor in [1 - s, 1 + s]; hue turns by at most `hue` of a
    circle; blur is a 3x3 Gaussian with sigma in `blur_sigma` pixels.
    """

    jitter: float = 0.4  # probability
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    blur: float = 0.2  # probability
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    grey: float = 0.1  # probability
    flip: float = 0.0  # probability


def augment(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Augmented copy of images (N, C, H, W) in [0, 1]. Colour transforms need C = 3 and are left out otherwise."""
    out = images.clone()
    count = images.shape[0]
    if augmentation.flip:
        chosen = _chosen(count, augmentation.flip, generator)
        out[chosen] = out[chosen].flip(3)
    if images.shape[1] == 3:
        chosen = _chosen(count, augmentation.jitter, generator)
        out[chosen] = _jitter(out[chosen], augmentation, generator)
    chosen = _chosen(count, augmentation.blur, generator)
    out[chosen] = _blur(out[chosen], augmentation.blur_sigma, generator)
    if images.shape[1] == 3:
        chosen = _chosen(count, augmentation.grey, generator)
        out[chosen] = _grey(out[chosen]).expand(-1, 3, -1, -1)
    return out


def _chosen(count: int, probability: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(count, generator=generator) < probability).nonzero()[:, 0]


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return (low + (high - low) * torch.rand(count, generator=generator)).view(-1, 1, 1, 1)


def _jitter(x: Tensor, a: Augmentation, generator: torch.Generator) -> Tensor:
    n = x.shape[0]
    x = (x * _uniform(n, 1 - a.brightness, 1 + a.brightness, generator)).clamp_(0, 1)
    mean = _grey(x).mean((1, 2, 3), keepdim=True)
    x = torch.lerp(mean, x, _uniform(n, 1 - a.contrast, 1 + a.contrast, generator)).clamp_(0, 1)
    x = torch.lerp(_grey(x), x, _uniform(n, 1 - a.saturation, 1 + a.saturation, generator)).clamp_(0, 1)
    return _turn_hue(x, _uniform(n, -a.hue, a.hue, generator).view(-1)).clamp_(0, 1)


def _grey(x: Tensor) -> Tensor:
    weights = torch.tensor(_LUMA, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    return (x * weights).sum(1, keepdim=True)


def _turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate colours about the grey axis in YIQ space by `turns` of a circle (N,)."""
    to_yiq = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    angle = turns * 2 * torch.pi
    rotation = torch.zeros(x.shape[0], 3, 3)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = angle.cos()
    rotation[:, 1, 2], rotation[:, 2, 1] = -angle.sin(), angle.sin()
    matrix = torch.linalg.inv(to_yiq) @ rotation @ to_yiq
    return torch.einsum("nij,njhw->nihw", matrix.to(x.dtype), x)


def _blur(x: Tensor, sigma: tuple[float, float], generator: torch.Generator) -> Tensor:
    """3x3 Gaussian blur, one sigma per image, edges reflected."""
    n, c, h, w = x.shape
    if n == 0:
        return x
    sigmas = _uniform(n, *sigma, generator).view(n, 1)
    taps = torch.exp(-0.5 * (torch.tensor([[-1.0, 0.0, 1.0]]) / sigmas) ** 2)
    taps = taps / taps.sum(1, keepdim=True)
    kernel = (taps[:, :, None] * taps[:, None, :]).repeat_interleave(c, 0)[:, None].to(x.dtype)  # (N * C, 1, 3, 3)
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect").reshape(1, n * c, h + 2, w + 2)
    return F.conv2d(padded, kernel, groups=n * c).view(n, c, h, w)
