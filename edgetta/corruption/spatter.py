"""Drops of water or mud on the lens. The signature is the one described in `noise`."""

from __future__ import annotations

import numpy as np

from edgetta.corruption.blur import smooth
from edgetta.corruption.parameters import Floats, Image, Parameters, Rng

_WATER = np.array([175, 238, 238], np.float32)  # pale turquoise
_MUD = np.array([63, 42, 20], np.float32)


def spatter(image: Image, parameters: Parameters, rng: Rng) -> Floats:
    """Blobs of smoothed, thresholded noise: water adds light near the blobs' outlines, mud covers."""
    mean, deviation, smoothness, threshold, strength, mud = parameters
    blobs = smooth(mean + deviation * rng.standard_normal(image.shape[:2], dtype=np.float32), smoothness)
    if mud:
        cover = smooth((blobs >= threshold).astype(np.float32), strength)
        cover[cover < 0.8] = 0
        return image * (1 - cover[..., None]) + cover[..., None] * _MUD
    liquid = np.where(blobs < threshold, 0, blobs.clip(0, 1) * 255).astype(np.uint8)
    shine = liquid * _relief(liquid)
    brightest = float(shine.max())
    if brightest == 0:  # no drop met the lens
        return image
    return image + (strength / brightest) * shine[..., None] * _WATER


def _relief(liquid: np.ndarray) -> np.ndarray:
    """Light and shade of the drops (H, W), float32: an embossed map of the distance from their outlines."""
    from scipy.ndimage import correlate, distance_transform_edt

    outline = _edges(liquid, low=50, high=150)
    if not outline.any():
        distance = np.full(liquid.shape, 20.0)
    else:
        distance = np.minimum(distance_transform_edt(~outline), 20)
    distance = _equalise(_box(distance).astype(np.uint8))
    light = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])  # from the upper left
    embossed = correlate(distance.astype(np.int32), light, mode="mirror").clip(0, 255)
    return np.rint(_box(embossed)).astype(np.float32)


def _box(values: np.ndarray) -> np.ndarray:
    from scipy.ndimage import uniform_filter

    return uniform_filter(values.astype(np.float64), 3, mode="mirror")


def _equalise(levels: np.ndarray) -> np.ndarray:
    """Histogram equalisation of uint8: the lowest level present goes to 0, the highest to 255."""
    counts = np.bincount(levels.ravel(), minlength=256)
    rank = np.cumsum(counts) - counts[levels.min()]
    if rank[-1] == 0:  # a single level
        return levels
    return np.rint(rank.clip(0) * (255 / rank[-1])).astype(np.uint8)[levels]


def _edges(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Canny's edges of uint8 (H, W), as booleans: Sobel gradients in the 1-norm, thinned, joined by hysteresis."""
    from scipy.ndimage import label, sobel

    values = image.astype(np.int32)
    down, across = sobel(values, axis=0, mode="nearest"), sobel(values, axis=1, mode="nearest")
    strength = np.abs(down) + np.abs(across)
    around = np.pad(strength, 1)
    height, width = image.shape

    def neighbour(dy: int, dx: int) -> np.ndarray:
        return around[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    steepness = np.abs(down) / np.maximum(np.abs(across), 1e-9)
    level, steep = steepness < np.tan(np.pi / 8), steepness > np.tan(3 * np.pi / 8)
    same_sign = (down >= 0) == (across >= 0)
    ridge = np.where(
        level,
        (strength > neighbour(0, -1)) & (strength >= neighbour(0, 1)),
        np.where(
            steep,
            (strength > neighbour(-1, 0)) & (strength >= neighbour(1, 0)),
            np.where(
                same_sign,
                (strength > neighbour(-1, -1)) & (strength > neighbour(1, 1)),
                (strength > neighbour(-1, 1)) & (strength > neighbour(1, -1)),
            ),
        ),
    )
    weak = ridge & (strength > low)
    islands, count = label(weak, structure=np.ones((3, 3)))
    kept = np.zeros(count + 1, bool)
    kept[np.unique(islands[weak & (strength > high)])] = True
    kept[0] = False
    return kept[islands]
