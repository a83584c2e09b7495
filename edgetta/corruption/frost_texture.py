"""The ice of the frost corruption: the published photographs where they are, otherwise synthetic crystals.

Error rates under frost depend on the texture; `frost_source()` says which one this machine uses.
"""

from __future__ import annotations

import math
import zipfile
from functools import lru_cache
from pathlib import Path
from zlib import crc32

import numpy as np

from edgetta.corruption.parameters import Image
from edgetta.errors import EdgettaError
from edgetta.sources.datasets import data_folder

_FILE = "frost_textures_0.2x.npz"
_COUNT = 5  # the published program has six photographs and draws among the first five
_TINTS = ((90, 140, 155), (200, 205, 214), (190, 198, 210), (138, 153, 166), (112, 123, 135))


def frost_source() -> str:
    """Which ice `corrupt(..., "frost")` uses here: "photographs (frost_textures_0.2x.npz)" or "procedural"."""
    return f"photographs ({_FILE})" if (data_folder() / _FILE).is_file() else "procedural"


def frost_textures(height: int, width: int, table: str) -> tuple[Image, ...]:
    """The textures, uint8 (h, w, 3) each, enlarged so that an image of `height` by `width` pixels fits.

    `table` "cifar" takes the textures at a fifth of the photographs' size, "imagenet" at their full size (enlarged
    from the stored fifth, so smoother than the originals). Raises `EdgettaError` if the texture file is damaged.
    """
    path = (data_folder() / _FILE).resolve()
    return _scaled(path if path.is_file() else None, height, width, 5 if table == "imagenet" else 1)


@lru_cache(maxsize=8)
def _scaled(path: Path | None, height: int, width: int, factor: int) -> tuple[Image, ...]:
    from PIL import Image as Pillow

    scaled = []
    for texture in procedural_textures() if path is None else _photographs(path):
        zoom = max(factor, height / texture.shape[0], width / texture.shape[1])
        size = (math.ceil(texture.shape[1] * zoom), math.ceil(texture.shape[0] * zoom))
        scaled.append(np.asarray(Pillow.fromarray(texture).resize(size, Pillow.Resampling.BICUBIC)))
    return tuple(scaled)


def _photographs(path: Path) -> list[Image]:
    try:
        with np.load(path, allow_pickle=False) as file:
            textures = [file[name] for name in sorted(file.files)[:_COUNT]]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise EdgettaError(
            f"{path}: the frost textures cannot be read ({error}); delete or replace the file"
        ) from error
    if not textures or any(t.dtype != np.uint8 or t.ndim != 3 or t.shape[2] != 3 for t in textures):
        raise EdgettaError(f"{path}: expected arrays of uint8 (height, width, 3); delete or replace the file")
    return textures


def procedural_textures(side: int = 160) -> list[Image]:
    """Five synthetic frost textures, uint8 (side, side, 3), the same on every machine.

    Crystals are the cells of a periodic Voronoi diagram. Each has its own direction, along which needles of random
    brightness run; seams between crystals and a few glints are bright. Tints and contrast resemble photographs of
    ice; the structure does not claim to be any of them.
    """
    return [_crystals(side, tint, np.random.default_rng((crc32(b"frost"), k))) for k, tint in enumerate(_TINTS)]


def _crystals(side: int, tint: tuple[int, int, int], rng: np.random.Generator) -> Image:
    from scipy.ndimage import gaussian_filter
    from scipy.spatial import cKDTree

    crystals = side * side // 150
    centres = rng.uniform(0, side, (crystals, 2))
    places = np.indices((side, side)).reshape(2, -1).T
    distances, nearest = cKDTree(centres, boxsize=side).query(places, k=2)
    cell = nearest[:, 0]
    offset = (places - centres[cell] + side / 2) % side - side / 2
    direction = rng.uniform(0, np.pi, crystals)[cell]
    across = np.rint(offset[:, 0] * np.cos(direction) + offset[:, 1] * np.sin(direction)).astype(int) % side
    needles = rng.standard_normal((crystals, side))[cell, across]
    seams = np.exp(-(distances[:, 1] - distances[:, 0]))
    drifts = gaussian_filter(rng.standard_normal((side, side)), side / 16, mode="wrap").ravel()
    glints = gaussian_filter((rng.random((side, side)) > 0.98).astype(float), 0.5, mode="wrap").ravel()
    relief = 0.7 * needles + 1.5 * seams + 0.8 * drifts / drifts.std() + 4 * glints
    relief = (relief - relief.mean()) / relief.std()
    return (np.array(tint) + 28 * relief[:, None]).clip(0, 255).astype(np.uint8).reshape(side, side, 3)
