"""Digital processing: contrast, elastic deformation, pixelation, JPEG and saturation.

The signature is the one described in `noise`.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np

from edgetta.corruption.blur import smooth
from edgetta.corruption.parameters import Floats, Image, Parameters, Rng


def contrast(image: Image, parameters: Parameters, rng: Rng) -> Floats:
    """All values move towards the mean colour of the image."""
    (factor,) = parameters
    mean = image.mean(axis=(0, 1), keepdims=True)
    return (image - mean) * factor + mean


def elastic_transform(image: Image, parameters: Parameters, rng: Rng) -> Floats:
    """A random affine map, given by three points that jitter, then a smooth random displacement."""
    height, width = image.shape[:2]
    strength, smoothness, jitter = (value * min(height, width) for value in parameters)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)

    reach = min(height, width) // 3
    centre = np.array([width // 2, height // 2])
    source = centre + reach * np.array([[1, 1], [1, -1], [-1, -1]])
    target = source + rng.uniform(-jitter, jitter, source.shape)
    # (3, 2): takes (x, y, 1) of the result to x, y of the source
    back = np.linalg.solve(np.column_stack([target, np.ones(3)]), source).astype(np.float32)
    across = columns * back[0, 0] + rows * back[1, 0] + back[2, 0]
    down = columns * back[0, 1] + rows * back[1, 1] + back[2, 1]
    mapped = _sample(image.astype(np.float32), _mirror(down, height), _mirror(across, width))

    noise = rng.uniform(-1, 1, (2, height, width))
    if strength == 0:
        return mapped
    drift = [strength * smooth(layer, smoothness, mode="reflect", truncate=3) for layer in noise]
    return _sample(mapped, _reflect(rows + drift[1], height), _reflect(columns + drift[0], width))


def pixelate(image: Image, parameters: Parameters, rng: Rng) -> Image:
    """Fewer pixels: shrink and enlarge with a box filter."""
    from PIL import Image as Pillow

    (factor,) = parameters
    height, width = image.shape[:2]
    small = Pillow.fromarray(image).resize((int(width * factor), int(height * factor)), Pillow.Resampling.BOX)
    return np.asarray(small.resize((width, height), Pillow.Resampling.BOX))


def jpeg_compression(image: Image, parameters: Parameters, rng: Rng) -> Image:
    """Saved as JPEG (colour at half the resolution) and read again."""
    from PIL import Image as Pillow

    (quality,) = parameters
    file = BytesIO()
    Pillow.fromarray(image).save(file, "JPEG", quality=int(quality))
    return np.asarray(Pillow.open(file))


def saturate(image: Image, parameters: Parameters, rng: Rng) -> Floats:
    """S of HSV scaled and shifted, hue and V kept. Grey has hue 0, as in the published program: it turns reddish."""
    factor, added = parameters
    values = image.astype(np.float32)
    brightest = values.max(axis=2, keepdims=True)
    spread = brightest - values.min(axis=2, keepdims=True)
    saturation = spread / np.maximum(brightest, 1)
    wanted = (saturation * factor + added).clip(0, 1)
    missing = (brightest - values) / np.maximum(spread, 1)  # 0 in the strongest channel, 1 in the weakest
    red = np.array([0, 1, 1], np.float32)
    return brightest * (1 - wanted * np.where(spread > 0, missing, red))


def _sample(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Bilinear samples of float32 (H, W, 3) at positions (H, W) inside the image."""
    top = np.minimum(rows.astype(np.intp), image.shape[0] - 2)
    left = np.minimum(columns.astype(np.intp), image.shape[1] - 2)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    upper = image[top, left] * (1 - right) + image[top, left + 1] * right
    lower = image[top + 1, left] * (1 - right) + image[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


def _mirror(position: np.ndarray, length: int) -> np.ndarray:
    """Positions folded into 0 to length - 1, the edge pixel itself not repeated."""
    period = 2 * (length - 1)
    folded = np.abs(position) % period
    return np.minimum(folded, period - folded).clip(0, length - 1)


def _reflect(position: np.ndarray, length: int) -> np.ndarray:
    """Positions folded into 0 to length - 1, the edge pixel repeated once."""
    folded = (position + 0.5) % (2 * length)
    return (np.minimum(folded, 2 * length - folded) - 0.5).clip(0, length - 1)
