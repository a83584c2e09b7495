"""Corrupt images: every image has its own generator, so order, subset and number of processes do not matter."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from zlib import crc32

import numpy as np

from edgetta.corruption import blur, digital, noise, weather
from edgetta.corruption.frost_texture import frost_textures
from edgetta.corruption.parameters import CORRUPTIONS, EXTRA_CORRUPTIONS, PARAMETERS, Parameters
from edgetta.corruption.spatter import spatter
from edgetta.errors import UsageError

SMALLEST = 16  # pixels; below, a streak or a crop is larger than the image

_Corruption = Callable[..., np.ndarray]

_FUNCTIONS: dict[str, _Corruption] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
    "speckle_noise": noise.speckle_noise,
    "gaussian_blur": blur.gaussian_blur,
    "spatter": spatter,
    "saturate": digital.saturate,
}


def corrupt(
    images: np.ndarray,
    name: str,
    severity: int,
    *,
    seed: int = 0,
    indices: Sequence[int] | np.ndarray | None = None,
    parameters: str = "auto",
    workers: int = 1,
) -> np.ndarray:
    """The images under one corruption, after Hendrycks and Dietterich (ICLR 2019).

    Args:
        images: uint8 (N, H, W, 3), RGB, at least 16 pixels high and wide. Not changed.
        name: one of `CORRUPTIONS` or `EXTRA_CORRUPTIONS`.
        severity: 1 to 5.
        seed: not negative. The generator of an image is made from (seed, name, severity, index), nothing else.
        indices: the number of each image in its data set, (N,), not negative; 0 to N - 1 by default. Pass them when
            corrupting a subset, so that each image gets the same noise as within the whole set.
        parameters: "cifar" (32 pixels), "imagenet" (224 pixels), or "auto": cifar up to a height of 64.
        workers: processes. Each takes about a second to start, so more than 1 pays from some thousand small images;
            then call it from a program whose main module can be imported (`if __name__ == "__main__"`).

    Returns:
        uint8 (N, H, W, 3), fractions cut off as in the published sets.
        Frost also depends on the ice at hand, see `frost_source`.

    Raises:
        UsageError: an unknown name, severity, table or index, or images of another kind.
        EdgettaError: the frost textures are there but damaged.
    """
    severities = _severities(images, name, parameters)
    if not 1 <= severity <= len(severities):
        raise UsageError(f"severity {severity} of {name} does not exist; use 1 to {len(severities)}")
    if workers < 1:
        raise UsageError(f"workers={workers}: use at least 1")
    numbers = _numbers(len(images), seed, indices)
    function = _FUNCTIONS[name]
    if name == "frost":
        height, width = images.shape[1:3]
        function = partial(function, textures=frost_textures(height, width, _table(height, parameters)))
    work = partial(_corrupt_part, function, severities[severity - 1], (seed, crc32(name.encode()), severity))
    parts = min(workers, len(images))
    if parts <= 1:
        return work(images, numbers)
    spawn = multiprocessing.get_context("spawn")  # a fork of a process with running torch threads can hang
    with ProcessPoolExecutor(parts, mp_context=spawn) as pool:
        results = pool.map(work, np.array_split(images, parts), np.array_split(numbers, parts))
        return np.concatenate(list(results))


def _corrupt_part(
    function: _Corruption, values: Parameters, key: tuple[int, int, int], images: np.ndarray, numbers: np.ndarray
) -> np.ndarray:
    result = np.empty_like(images)
    for position, (image, number) in enumerate(zip(images, numbers, strict=True)):
        corrupted = function(image, values, np.random.default_rng((*key, int(number))))
        result[position] = corrupted if corrupted.dtype == np.uint8 else corrupted.clip(0, 255).astype(np.uint8)
    return result


def _severities(images: np.ndarray, name: str, parameters: str) -> tuple[Parameters, ...]:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        found = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise UsageError(f"images to corrupt are uint8 (N, H, W, 3), not {found}; convert them first")
    if min(images.shape[1:3]) < SMALLEST:
        raise UsageError(
            f"images of {images.shape[1]} by {images.shape[2]} pixels are too small; enlarge to {SMALLEST}"
        )
    if name not in _FUNCTIONS:
        raise UsageError(f"unknown corruption {name!r}; use one of {', '.join(CORRUPTIONS + EXTRA_CORRUPTIONS)}")
    table = _table(images.shape[1], parameters)
    if table not in PARAMETERS:
        raise UsageError(f"unknown parameters {parameters!r}; use auto, {' or '.join(PARAMETERS)}")
    return PARAMETERS[table][name]


def _table(height: int, parameters: str) -> str:
    return parameters if parameters != "auto" else "cifar" if height <= 64 else "imagenet"


def _numbers(count: int, seed: int, indices: Sequence[int] | np.ndarray | None) -> np.ndarray:
    numbers = np.arange(count) if indices is None else np.asarray(indices)
    if numbers.shape != (count,) or (count and (not np.issubdtype(numbers.dtype, np.integer) or numbers.min() < 0)):
        raise UsageError(f"indices must be {count} whole numbers that are not negative, one per image")
    if seed < 0:
        raise UsageError(f"seed={seed}: use a number that is not negative")
    return numbers
