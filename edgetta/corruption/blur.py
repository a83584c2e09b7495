"""Blur of the lens: defocus, frosted glass, motion, zoom and Gaussian blur.

The signature is the one described in `noise`. `motion_streaks` and `centre_zoom` also serve the snow.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from edgetta.corruption.parameters import Floats, Image, Parameters, Rng


def gaussian_blur(image: Image, parameters: Parameters, rng: Rng) -> Floats:
    """Isotropic Gaussian blur."""
    (deviation,) = parameters
    return smooth(image, deviation)


def defocus_blur(image: Image, parameters: Parameters, rng: Rng) -> Floats:
    """Out of focus: convolution with a disk whose edge is softened."""
    from scipy.fft import irfft2, next_fast_len, rfft2
    from scipy.ndimage import correlate

    radius, softness = parameters
    kernel = _disk(radius, softness)
    values = image.astype(np.float32)
    if kernel.shape[0] <= 7:
        return correlate(values, kernel[:, :, None], mode="mirror")
    reach = kernel.shape[0] // 2
    padded = np.pad(values, ((reach, reach), (reach, reach), (0, 0)), mode="reflect").transpose(2, 0, 1)
    size = [next_fast_len(length, real=True) for length in padded.shape[1:]]
    product = irfft2(rfft2(padded, size) * rfft2(kernel, size), size)  # the disk is symmetric
    height, width = image.shape[:2]
    return product[:, 2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width].transpose(1, 2, 0)


def glass_blur(image: Image, parameters: Parameters, rng: Rng) -> Floats:
    """Frosted glass: blur, let pixels take the place of near ones, blur again.

    In the published program the exchange of two pixels works on views of one array, so that it copies the neighbour
    and never writes the other half. The published images are those of a copy, and so are these.
    """
    deviation, reach, passes = parameters[0], int(parameters[1]), int(parameters[2])
    height, width = image.shape[:2]
    blurred = smooth(image, deviation).astype(np.uint8)
    order = _glass_order(height, width, reach)
    taken_from = list(range(height * width))
    for _ in range(passes):
        steps = rng.integers(-reach, reach, size=(len(order), 2))
        for place, step in zip(order, (steps[:, 0] * width + steps[:, 1]).tolist(), strict=True):
            taken_from[place] = taken_from[place + step]
    shuffled = blurred.reshape(height * width, -1)[taken_from].reshape(image.shape)
    return smooth(shuffled, deviation)


def motion_blur(image: Image, parameters: Parameters, rng: Rng) -> Floats:
    """A moving camera: a one-sided Gaussian streak at an angle between -45 and 45 degrees."""
    radius, deviation = parameters
    return motion_streaks(image, radius, deviation, rng.uniform(-45, 45))


def zoom_blur(image: Image, parameters: Parameters, rng: Rng) -> Floats:
    """A moving lens: the mean of the image and of its zoomed versions."""
    end, step = parameters
    factors = np.arange(1, end, step)
    values = image.astype(np.float32)
    total = values.copy()
    for factor in factors:
        total += centre_zoom(values, float(factor))
    return total / (len(factors) + 1)


def smooth(image: np.ndarray, deviation: float, *, mode: str = "nearest", truncate: float = 4.0) -> Floats:
    """Gaussian blur of the first two axes, float32, on the scale of its input."""
    from scipy.ndimage import gaussian_filter

    deviations = (deviation, deviation) + (0.0,) * (image.ndim - 2)
    return gaussian_filter(image.astype(np.float32), deviations, mode=mode, truncate=truncate)


def motion_streaks(image: np.ndarray, radius: float, deviation: float, angle: float) -> np.ndarray:
    """One-sided motion blur as ImageMagick defines it, of a uint8 image (H, W) or (H, W, 3), to uint8, rounded.

    The kernel has 2 ceil(radius) + 1 taps of a Gaussian that starts at the pixel; tap j lies at
    ceil(j (cos, sin) - 1/2) for an `angle` in degrees; the edge pixel continues outside.
    """
    taps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-(taps**2) / (2 * deviation**2))
    weights /= weights.sum()
    across = np.ceil(taps * math.cos(math.radians(angle)) - 0.5).astype(int)
    down = np.ceil(taps * math.sin(math.radians(angle)) - 0.5).astype(int)
    left, top = max(0, -across.min()), max(0, -down.min())
    right, bottom = max(0, across.max()), max(0, down.max())
    padded = np.pad(image, ((top, bottom), (left, right)) + ((0, 0),) * (image.ndim - 2), mode="edge")
    padded = padded.astype(np.float32)
    height, width = image.shape[:2]
    total = np.zeros(image.shape, np.float32)
    for weight, dx, dy in zip(weights.astype(np.float32), across + left, down + top, strict=True):
        total += weight * padded[dy : dy + height, dx : dx + width]
    return np.rint(total).clip(0, 255).astype(np.uint8)


def centre_zoom(image: np.ndarray, factor: float) -> np.ndarray:
    """The middle of a float image (H, W, ...), enlarged `factor` times (at least 1) by linear interpolation."""
    above, below, share = _zoom_taps(image.shape[0], factor)
    share = share.reshape(-1, *(1,) * (image.ndim - 1))
    rows = image[above] * (1 - share) + image[below] * share
    before, after, share = _zoom_taps(image.shape[1], factor)
    share = share.reshape(-1, *(1,) * (image.ndim - 2))
    return rows[:, before] * (1 - share) + rows[:, after] * share


@lru_cache(maxsize=256)
def _zoom_taps(length: int, factor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each output position along one axis the two input positions and the share of the second."""
    crop = math.ceil(length / factor)
    enlarged = round(crop * factor)
    trim = (enlarged - length) // 2
    position = (trim + np.arange(length)) * ((crop - 1) / (enlarged - 1))  # the corners stay corners
    first = np.minimum(position.astype(int), crop - 2)
    start = (length - crop) // 2
    return first + start, first + start + 1, (position - first).astype(np.float32)


@lru_cache(maxsize=32)
def _disk(radius: float, softness: float) -> np.ndarray:
    """Disk softened by a Gaussian of 3 taps (5 above radius 8), cut to its support, float32 (K, K).

    It sums to 1, but to 1.01 from radius 8 up, where the softening is mirrored at the border of the published kernel.
    """
    from scipy.ndimage import correlate1d

    reach, taps = (8, 1) if radius <= 8 else (math.ceil(radius), 2)
    offsets = np.arange(-reach, reach + 1)
    disk = (offsets[:, None] ** 2 + offsets**2 <= radius**2).astype(np.float64)
    disk /= disk.sum()
    edge = np.exp(-(np.arange(-taps, taps + 1) ** 2) / (2 * softness**2))
    edge /= edge.sum()
    for axis in (0, 1):
        disk = correlate1d(disk, edge, axis=axis, mode="mirror")
    support = int(np.abs(offsets[disk.max(axis=0) > 1e-9]).max())
    return disk[reach - support : reach + support + 1, reach - support : reach + support + 1].astype(np.float32)


@lru_cache(maxsize=16)
def _glass_order(height: int, width: int, reach: int) -> list[int]:
    """Flat positions in the order in which the glass visits them: from the lower right to the upper left."""
    rows = np.arange(height - reach, reach, -1)
    columns = np.arange(width - reach, reach, -1)
    return (rows[:, None] * width + columns).ravel().tolist()
