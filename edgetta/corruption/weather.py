"""Weather and light: snow, frost, fog and brightness. The signature is the one described in `noise`."""

from __future__ import annotations

import numpy as np

from edgetta.corruption.blur import centre_zoom, motion_streaks
from edgetta.corruption.parameters import Floats, Image, Parameters, Rng

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def snow(image: Image, parameters: Parameters, rng: Rng) -> Floats:
    """A whitened scene behind falling flakes: thresholded noise, enlarged, streaked, laid on twice."""
    mean, deviation, zoom, threshold, radius, streak, share = parameters
    flakes = mean + deviation * rng.standard_normal(image.shape[:2], dtype=np.float32)
    flakes = centre_zoom(flakes, zoom)
    flakes[flakes < threshold] = 0
    layer = motion_streaks((flakes.clip(0, 1) * 255).astype(np.uint8), radius, streak, rng.uniform(-135, -45))
    values = image.astype(np.float32)
    whitened = np.maximum(values, (values @ _LUMA)[..., None] * 1.5 + 127.5)
    fallen = layer.astype(np.float32) + layer[::-1, ::-1]
    return share * values + (1 - share) * whitened + fallen[..., None]


def frost(image: Image, parameters: Parameters, rng: Rng, textures: tuple[Image, ...]) -> Floats:
    """Ice on the lens: a random window of one of the `textures`, each at least as large as the image, is added."""
    scene, ice = parameters
    texture = textures[rng.integers(len(textures))]
    height, width = image.shape[:2]
    top = rng.integers(texture.shape[0] - height + 1)
    left = rng.integers(texture.shape[1] - width + 1)
    return np.float32(scene) * image + np.float32(ice) * texture[top : top + height, left : left + width]


def fog(image: Image, parameters: Parameters, rng: Rng) -> Floats:
    """A fractal mist is added and the whole dimmed, so that the brightest value stays."""
    amount, decay = parameters
    height, width = image.shape[:2]
    brightest = float(image.max())
    side = 1 << (max(height, width) - 1).bit_length()
    mist = plasma(side, decay, rng)[:height, :width, None]
    return (image + 255 * amount * mist) * (brightest / (brightest + 255 * amount))


def brightness(image: Image, parameters: Parameters, rng: Rng) -> Floats:
    """More V in HSV, hue and saturation kept: every pixel is scaled by new V over old V; black turns grey."""
    (added,) = parameters
    old = image.max(axis=2, keepdims=True).astype(np.float32)
    new = np.minimum(old + 255 * added, 255)
    return np.where(old > 0, image * (new / np.maximum(old, 1)), new)


def plasma(side: int, decay: float, rng: Rng) -> np.ndarray:
    """Fractal height map by the diamond-square algorithm on a torus, float64 (side, side), from 0 to 1.

    `side` is a power of two. The displacement is uniform, of an amplitude that falls by `decay` squared per octave.
    """
    field = np.zeros((side, side))
    step, amplitude = side, 1.0
    while step >= 2:
        half = step // 2
        count = side // step
        noise = amplitude * rng.uniform(-1, 1, (3, count, count))
        corners = field[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        centres = (pairs + np.roll(pairs, -1, axis=1)) / 4 + noise[0]
        field[half::step, half::step] = centres
        beside, above = corners + np.roll(corners, -1, axis=1), corners + np.roll(corners, -1, axis=0)
        field[::step, half::step] = (beside + centres + np.roll(centres, 1, axis=0)) / 4 + noise[1]
        field[half::step, ::step] = (above + centres + np.roll(centres, 1, axis=1)) / 4 + noise[2]
        step = half
        amplitude /= decay**2
    field -= field.min()
    return field / field.max()
