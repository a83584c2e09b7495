"""Noise of the sensor: Gaussian, shot, impulse and speckle noise.

Like every corruption here, each takes one image, uint8 (H, W, 3), the parameters of one severity and that image's own
generator, and gives values on the scale 0 to 255, (H, W, 3), unclipped and unrounded.
"""

from __future__ import annotations

import numpy as np

from edgetta.corruption.parameters import Floats, Image, Parameters, Rng


def gaussian_noise(image: Image, parameters: Parameters, rng: Rng) -> Floats:
    """Readout noise: the same standard deviation everywhere."""
    (deviation,) = parameters
    return image + 255 * deviation * rng.standard_normal(image.shape, dtype=np.float32)


def shot_noise(image: Image, parameters: Parameters, rng: Rng) -> Floats:
    """Photon noise: a Poisson count per value, `photons` of them at full brightness."""
    (photons,) = parameters
    return rng.poisson(image * (photons / 255)) * (255 / photons)


def impulse_noise(image: Image, parameters: Parameters, rng: Rng) -> Floats:
    """Salt and pepper, drawn for every channel on its own, both equally likely."""
    (fraction,) = parameters
    draw = rng.random(image.shape, dtype=np.float32)
    noisy = np.where(draw < fraction / 2, np.uint8(0), image)
    return np.where(draw >= 1 - fraction / 2, np.uint8(255), noisy)


def speckle_noise(image: Image, parameters: Parameters, rng: Rng) -> Floats:
    """Multiplicative noise: the standard deviation grows with the value."""
    (deviation,) = parameters
    return image * (1 + deviation * rng.standard_normal(image.shape, dtype=np.float32))
