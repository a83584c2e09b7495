"""Are these the values that a bundle takes? Images in 0 to 255 as floats, or normalised already, are classes, too."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from edgetta.errors import UsageError

SLACK = 0.5
"""So far beyond [0, 1] sharpening, noise and interpolation may go; normalised images and bytes go farther."""


def check_range(images: ArrayLike) -> None:
    """Check floats (N, C, H, W), image by image, for values that belong to another scale than [0, 1].

    Bytes are in their range, and values that are not finite are not judged: the adapter counts and refuses them.

    Raises:
        UsageError: names the first such image, its values, and what to do.
    """
    images = np.asarray(images)
    if not np.issubdtype(images.dtype, np.floating) or not images.size:
        return
    flat = images.reshape(len(images), -1)
    low, high = flat.min(1), flat.max(1)
    wrong = (low < -SLACK) | (high > 1 + SLACK)
    if not bool(wrong.any()):
        return
    first = int(wrong.argmax())
    least, most = float(low[first]), float(high[first])
    where = f"image {first} of {len(images)} has values from {least:.4g} to {most:.4g}"
    if least < -SLACK:
        remedy = "it seems to be normalised already, and the model normalises its input itself: give floats in [0, 1]"
    elif 1 + SLACK < most <= 256:
        remedy = "it seems to be in [0, 255]: divide by 255, or give uint8"
    else:
        remedy = "give floats in [0, 1], or uint8"
    raise UsageError(f"{where}; {remedy}")
