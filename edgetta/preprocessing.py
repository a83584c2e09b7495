"""Pictures as a bundle takes them, for programs: exactly what `edgetta run` does to its frames."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetta.errors import UsageError
from edgetta.input_range import check_range
from edgetta.sources.images import UnusableFrame, load, upright_rgb
from edgetta.sources.pictures import images_of
from edgetta.sources.source import Frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgetta.bundle import Bundle
    from edgetta.runtime import Runtime


def preprocess(bundle: Bundle | Runtime, pictures: Any) -> NDArray[Any]:
    """Decode, turn upright, and crop, pad or stretch as the bundle says.

    Args:
        bundle: or a runtime of it.
        pictures: one or several of: the path of an image file, a PIL image, an array (H, W), (H, W, 1), (H, W, 3) or
            (H, W, 4), RGB, uint8 or floats in [0, 1]. Alpha is dropped.

    Returns:
        uint8 (N, H, W, 3), or float32 (N, C, H, W) in [0, 1] where a picture holds floats or the model takes grey:
        what `Runtime` takes.

    Raises:
        UsageError: a picture that cannot be used, by its number, and why.
    """
    opened: Any = getattr(bundle, "bundle", bundle)
    several = pictures if _is_several(pictures) else [pictures]
    frames = []
    for number, picture in enumerate(several):
        try:
            frames.append(Frame(f"picture {number}", _fitted(picture, opened)))
        except UnusableFrame as reason:
            raise UsageError(f"picture {number} cannot be used: {reason}") from reason
        except UsageError as error:
            raise UsageError(f"picture {number} cannot be used: {error}") from error
    if not frames:
        raise UsageError("there are no pictures; give at least one")
    return images_of(frames, opened.input_shape[0])


def _is_several(pictures: Any) -> bool:
    if isinstance(pictures, np.ndarray):
        return pictures.ndim == 4
    return (
        isinstance(pictures, Iterable)
        and not isinstance(pictures, str | os.PathLike)
        and not hasattr(pictures, "mode")
    )


def _fitted(picture: Any, bundle: Bundle) -> np.ndarray:
    from PIL import Image

    if isinstance(picture, str | os.PathLike):
        return bundle.resize.picture(load(Path(picture)))
    if isinstance(picture, Image.Image):
        return bundle.resize.picture(upright_rgb(picture))
    if not isinstance(picture, np.ndarray):
        raise UnusableFrame(f"a {type(picture).__name__}; give a path, a PIL image or an array (H, W, 3)")
    array = picture[..., None] if picture.ndim == 2 else picture
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        raise UnusableFrame(f"an array of shape {picture.shape}; pictures are (H, W), (H, W, 3) or (H, W, 4)")
    array = np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[..., :3]
    if array.dtype == np.uint8:
        return bundle.resize.array(array)
    if array.dtype.kind != "f":
        raise UnusableFrame(f"{array.dtype} values; give uint8 in [0, 255], or floats in [0, 1]")
    floats = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(floats).all():
        raise UnusableFrame("values that are not finite")
    check_range(floats[None])
    return bundle.resize.array(np.clip(floats, 0, 1))
