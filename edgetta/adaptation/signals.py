"""What an image looks like in a few numbers, and how new it is after the one before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]

USUAL_SPREAD = 0.02
"""Variance of a signal from photograph to photograph where no source images told."""


def image_signals(images: Array) -> Array:
    """Signals (N, 2 C + 2) of images (N, C, H, W) in [0, 1].

    Per channel its mean and the logarithm of its deviation; of the middle channel, the logarithms of the steps from
    pixel to pixel and of what stands out from its neighbours. Noise, blur, light and contrast each move one.
    """
    x = np.asarray(images, np.float32)
    pixels = x.reshape(*x.shape[:2], -1)
    mean = pixels.mean(2)
    deviation = np.sqrt(np.maximum(np.square(pixels).mean(2) - np.square(mean), 1e-8))
    if min(x.shape[2:]) < 3:  # there are no neighbours
        return np.concatenate([mean, np.log(deviation)], 1)
    one = x[:, x.shape[1] // 2]
    left, middle = one[:, 1:-1, :-2], one[:, 1:-1, 1:-1]
    around = left + one[:, 1:-1, 2:] + one[:, :-2, 1:-1] + one[:, 2:, 1:-1]
    steps, outstanding = np.abs(middle - left).mean((1, 2)), np.abs(around - 4 * middle).mean((1, 2))
    local = np.maximum(np.stack([steps, outstanding], 1), 1e-4)
    return np.concatenate([mean, np.log(deviation), np.log(local)], 1)


def novelty(signals: Array, before: Array | None, spread: Array) -> Array:
    """How much of a new picture each image (N, S) is after the one before it, (N,) in [0, 1].

    A still camera shows one picture many times: an image counts by how far its signals moved, in units of how far they
    move from photograph to photograph. The first image of a stream counts in full.

    before   (S,) of the image before the first; None: there is none
    spread   (S,) variance of the signals from photograph to photograph
    """
    last = signals[:1] if before is None else before[None].astype(signals.dtype)
    moved = np.square(signals - np.concatenate([last, signals[:-1]]))
    weights = np.minimum(1.0, (moved / (2 * spread)).mean(1))
    if before is None:
        weights[0] = 1.0
    return weights
