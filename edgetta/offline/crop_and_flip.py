"""The augmentation that small photographs are trained with: a random shift with empty borders, and a mirror image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class CropAndFlip:
    """Random crops of the padded image, as the CIFAR recipes have them, and left-right flips."""

    padding: int = 4  # pixels on every side; 0: no shift
    flip: float = 0.5  # probability; 0 for digits and text


def crop_and_flip(images: Tensor, augmentation: CropAndFlip, generator: torch.Generator) -> Tensor:
    """An augmented copy of images (N, C, H, W), each with its own draw; same type."""
    count, _, height, width = images.shape
    out = images
    if augmentation.padding:
        pad = augmentation.padding
        padded = F.pad(images, (pad, pad, pad, pad))
        down, right = (torch.randint(0, 2 * pad + 1, (count, 1), generator=generator) for _ in range(2))
        rows = (down + torch.arange(height))[:, None, :, None].to(images.device)
        columns = (right + torch.arange(width))[:, None, None, :].to(images.device)
        number = torch.arange(count, device=images.device)[:, None, None, None]
        channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
        out = padded[number, channel, rows, columns]
    if augmentation.flip:
        mirrored = (torch.rand(count, generator=generator) < augmentation.flip).to(images.device)
        out = torch.where(mirrored[:, None, None, None], out.flip(3), out)
    return out
