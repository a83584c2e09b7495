"""Resize policies against torchvision, timm and Pillow; what is the same in every way of reading a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from edgetta.errors import UsageError
from edgetta.sources import SourceError, open_source
from edgetta.sources import resize as module
from edgetta.sources.resize import INTERPOLATIONS, Resize

SHAPES = ((96, 960), (960, 96), (33, 47), (256, 256), (500, 375), (20, 31))
"""(height, width) of pictures: thin, upright, small, square, of a camera."""


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture with edges and noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    shapes = 255 * ((x // 7 + y // 5) % 2)[..., None] * np.array([1.0, 0.5, 0.2])
    return Image.fromarray((0.7 * shapes + rng.integers(0, 70, (height, width, 3))).astype(np.uint8))


def circle(height: int, width: int) -> Image.Image:
    """A white circle in the middle of black, a third of the short side in radius."""
    y, x = np.mgrid[:height, :width]
    inside = (y - height / 2 + 0.5) ** 2 + (x - width / 2 + 0.5) ** 2 <= (min(height, width) / 3) ** 2
    return Image.fromarray(np.repeat((255 * inside).astype(np.uint8)[..., None], 3, 2))


def extent(image: np.ndarray) -> tuple[int, int]:
    """(height, width) of what is bright."""
    bright = image[..., 0] > 127
    return int(bright.any(1).sum()), int(bright.any(0).sum())


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("side", "short"), [(224, 256), (64, 64), (32, 37)])
def test_crop_is_torchvisions(side: int, short: int, interpolation: Any) -> None:
    transforms = pytest.importorskip("torchvision.transforms", exc_type=ImportError)
    mode = transforms.InterpolationMode(interpolation)
    theirs = transforms.Compose([transforms.Resize(short, interpolation=mode), transforms.CenterCrop(side)])
    ours = Resize((side, side), "crop", short, interpolation)
    for shape in SHAPES:
        np.testing.assert_array_equal(ours.picture(photo(*shape)), np.asarray(theirs(photo(*shape))))


def test_crop_is_timms() -> None:
    transforms_factory = pytest.importorskip("timm.data.transforms_factory", exc_type=ImportError)
    theirs = transforms_factory.transforms_imagenet_eval(224, crop_pct=0.95, interpolation="bicubic", normalize=False)
    ours = Resize((224, 224), "crop", int(224 / 0.95), "bicubic")
    for shape in SHAPES:
        expected = theirs(photo(*shape)).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(ours.picture(photo(*shape)), expected)


def test_an_oblong_input_shows_the_same_part_as_timm() -> None:
    transforms_factory = pytest.importorskip("timm.data.transforms_factory", exc_type=ImportError)
    theirs = transforms_factory.transforms_imagenet_eval((48, 80), crop_pct=0.95, normalize=False)
    for shape in ((300, 500), (500, 375), (260, 256)):
        expected = theirs(circle(*shape)).permute(1, 2, 0).numpy()
        found = Resize((48, 80), "crop", int(48 / 0.95)).picture(circle(*shape))
        pairs = zip(extent(found), extent(expected), strict=True)
        assert all(abs(ours - other) <= 1 for ours, other in pairs), "sides are rounded differently, by a pixel"


def test_pad_is_pillows() -> None:
    for shape in SHAPES:
        for fill in ((0, 0, 0), (114, 120, 7)):
            ours = Resize((64, 96), "pad", None, "bicubic", fill).picture(photo(*shape))
            theirs = ImageOps.pad(photo(*shape), (96, 64), Image.Resampling.BICUBIC, color=fill)
            np.testing.assert_array_equal(ours, np.asarray(theirs))


def test_stretch_is_a_plain_resize_and_what_unspecified_bundles_did() -> None:
    for shape in SHAPES:
        expected = np.asarray(photo(*shape).resize((96, 64), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(Resize((64, 96)).picture(photo(*shape)), expected)
        np.testing.assert_array_equal(Resize.from_json({}, (64, 96)).picture(photo(*shape)), expected)


def test_a_circle_stays_a_circle_but_under_stretch() -> None:
    thin = circle(96, 960)
    assert extent(Resize((64, 64), "crop").picture(thin)) == (42, 42)
    high, wide = extent(Resize((64, 64), "pad").picture(circle(96, 192)))
    assert abs(high - wide) <= 1 and high > 15
    high, wide = extent(Resize((64, 64), "stretch").picture(thin))
    assert high > 8 * wide


def test_a_picture_of_the_models_size_is_taken_as_it_is() -> None:
    picture = photo(64, 64)
    for policy in ("crop", "pad", "stretch", "refuse"):
        short = 73 if policy == "crop" else None
        np.testing.assert_array_equal(Resize((64, 64), policy, short).picture(picture), np.asarray(picture))  # type: ignore[arg-type]


def test_floats_keep_their_precision_and_range() -> None:
    exact = np.linspace(0, 1, 40 * 50 * 3, dtype=np.float32).reshape(40, 50, 3)
    exact[10:20, 10:20] = (exact[10:20, 10:20] > 0.3).astype(np.float32)
    for policy in ("crop", "pad", "stretch"):
        for interpolation in INTERPOLATIONS:
            resize = Resize((32, 32), policy, None, interpolation, (10, 200, 30))  # type: ignore[arg-type]
            found = resize.array(exact)
            coarse = resize.array((exact * 255).round().astype(np.uint8))
            assert found.dtype == np.float32 and found.min() >= 0 and found.max() <= 1
            assert np.abs(found - coarse / 255).mean() < 0.01


def test_a_thin_strip_takes_no_memory_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    resize = Resize((64, 64), "crop", 70, "bicubic")
    whole = resize.picture(photo(20, 900))
    monkeypatch.setattr(module, "MAX_RESIZED_PIXELS", 1000)
    assert np.abs(resize.picture(photo(20, 900)).astype(int) - whole).max() <= 2
    monkeypatch.undo()
    assert Resize((224, 224), "crop", 256).picture(Image.new("RGB", (60_000, 1), (9, 9, 9))).shape == (224, 224, 3)
    assert Resize((224, 224), "pad").picture(Image.new("RGB", (60_000, 1), (9, 9, 9))).shape == (224, 224, 3)


def test_sources_of_every_kind_resize_alike(tmp_path: Path) -> None:
    picture = photo(50, 90)
    picture.save(tmp_path / "x.png")
    np.save(tmp_path / "x.npy", np.asarray(picture)[None])
    resize = Resize((32, 32), "crop", 36, "bicubic")
    expected = resize.picture(picture)
    for name in ("x.png", "x.npy", ".", "*.png"):
        with open_source(str(tmp_path / name), size=resize) as source:
            frames = list(source)
        assert len(frames) == 1 and frames[0].original == (50, 90)
        np.testing.assert_array_equal(frames[0].image, expected)


def test_refusal_names_picture_and_sizes() -> None:
    with pytest.raises(SourceError, match=r"x\.png is 31 x 20 pixels and the model takes 16 x 24"):
        Resize((24, 16), "refuse").picture(photo(20, 31), "x.png")


def test_what_is_said_and_what_is_written() -> None:
    crop = Resize((224, 224), "crop", 256)
    assert crop.told() == "crop: short side to 256, bilinear, then the centre of 224 x 224"
    pad = Resize((64, 96), "pad", None, "bicubic", (1, 2, 3))
    assert pad.told() == "pad: the whole picture into 96 x 64, bicubic, borders of colour 1, 2, 3"
    assert Resize((64, 96)).told() == "stretch to 96 x 64, bilinear, whatever the shape"
    squash = Resize((192, 192), "stretch", 213)
    assert squash.told() == "stretch to 213 x 213, bilinear, whatever the shape, then the centre of 192 x 192"
    for resize in (crop, pad, squash):
        assert Resize.from_json(resize.to_json(), resize.size) == resize


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"resize": "zoom"}, "must be one of crop, pad, stretch, not 'zoom'"),
        ({"resize": "refuse"}, "must be one of crop, pad, stretch"),
        ({"resize": ["crop"]}, "must be one of"),
        ({"resize": "crop", "short_side": "256"}, "must be a whole number"),
        ({"resize": "crop", "short_side": True}, "must be a whole number"),
        ({"resize": "crop", "short_side": 8}, "at least 64, not 8"),
        ({"resize": "crop", "short_side": 1 << 30}, "at least 64, not"),
        ({"resize": "pad", "short_side": 70}, "pad fits the whole picture in"),
        ({"resize": "crop", "interpolation": "magic"}, "interpolation is one of nearest"),
        ({"resize": "crop", "interpolation": 2}, "must be one of"),
        ({"resize": "pad", "fill": [0, 0]}, "three whole numbers"),
        ({"resize": "pad", "fill": [0, 0, 300]}, "from 0 to 255"),
    ],
)
def test_manifests_are_read_strictly(data: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, UsageError), match=message):
        Resize.from_json(data, (64, 64))
