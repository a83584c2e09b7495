"""`edgetta.preprocess` does to a picture what `edgetta run` does to a frame, and refuses what no picture is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgetta
from edgetta.bundle import Bundle, read_bundle
from edgetta.errors import UsageError
from edgetta.sources import open_source
from tests.small_bundle import copy_of_it, edit_manifest


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small bundle, as if it had been exported with `--resize crop --short-side 20`."""
    path = copy_of_it(tmp_path_factory.mktemp("cropping") / "bundle")
    crop = {"resize": "crop", "short_side": 20, "interpolation": "bicubic", "fill": [0, 0, 0]}
    edit_manifest(path, lambda manifest: manifest["preprocessing"].update(crop))
    return read_bundle(path)


def photo(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, channels)).astype(np.uint8)


def test_paths_pictures_and_arrays_become_what_run_predicts(bundle: Bundle, tmp_path: Path) -> None:
    upright = Image.fromarray(photo(30, 50))
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(tmp_path / "a.png")
    turned.save(tmp_path / "b.png", exif=exif)
    with open_source(tmp_path, size=bundle.resize) as source:
        first, second = (frame.image for frame in source)
    found = edgetta.preprocess(bundle, [tmp_path / "a.png", str(tmp_path / "b.png"), upright, photo(30, 50)])
    assert found.shape == (4, 16, 16, 3) and found.dtype == np.uint8
    for image in found:
        np.testing.assert_array_equal(image, first)
    np.testing.assert_array_equal(first, second)
    runtime = edgetta.load(bundle.path, "torch", check=False)
    assert np.array_equal(edgetta.preprocess(runtime, upright), found[:1]) and runtime(found).shape == (4, 5)


def test_grey_alpha_floats_and_batches(bundle: Bundle) -> None:
    rgba = photo(30, 50, 4)
    np.testing.assert_array_equal(edgetta.preprocess(bundle, rgba), edgetta.preprocess(bundle, rgba[..., :3]))
    grey = edgetta.preprocess(bundle, rgba[..., 0])
    assert np.array_equal(grey[..., 0], grey[..., 2])
    np.testing.assert_array_equal(edgetta.preprocess(bundle, Image.fromarray(rgba[..., 0])), grey)
    batch = edgetta.preprocess(bundle, np.stack([rgba, rgba]))
    assert batch.shape == (2, 16, 16, 3)
    floats = edgetta.preprocess(bundle, rgba[..., :3] / 255)
    assert floats.shape == (1, 3, 16, 16) and floats.dtype == np.float32
    assert np.abs(floats - batch[:1].transpose(0, 3, 1, 2) / 255).mean() < 0.02


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((5, 5, 2), np.uint8), "picture 1 cannot be used: an array of shape"),
        (np.zeros((5, 5, 3), np.int64), "picture 1 cannot be used: int64 values; give uint8"),
        (np.full((5, 5, 3), np.nan), "picture 1 cannot be used: values that are not finite"),
        (np.full((5, 5, 3), 200.0), "divide by 255"),
        (np.full((5, 5, 3), -2.0), "normalised already"),
        (object(), "picture 1 cannot be used: a object; give a path"),
        ("none.png", "picture 1 cannot be used: the file has gone"),
    ],
)
def test_what_is_no_picture(bundle: Bundle, picture: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        edgetta.preprocess(bundle, [photo(9, 9), picture])


def test_no_pictures(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="there are no pictures"):
        edgetta.preprocess(bundle, [])
