"""Contrast, elastic deformation, pixelation, JPEG and saturation against their definitions."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
import pytest

from edgetta.corruption import PARAMETERS, digital

Pictures = Callable[[int, int], np.ndarray]


def test_contrast_keeps_the_mean_colour_and_shrinks_the_spread(
    make_pictures: Pictures, rng: np.random.Generator
) -> None:
    image = make_pictures(2, 32)[1]
    flat = digital.contrast(image, (0.15,), rng)
    assert np.allclose(flat.mean(axis=(0, 1)), image.mean(axis=(0, 1)))
    assert np.allclose(flat.std(axis=(0, 1)), 0.15 * image.std(axis=(0, 1)))


@pytest.mark.parametrize("values", PARAMETERS["cifar"]["saturate"])
def test_saturate_changes_s_only(values: tuple[float, ...], make_pictures: Pictures, rng: np.random.Generator) -> None:
    image = make_pictures(3, 32)[2].copy()
    image[0, 0], image[0, 7] = 0, 200  # black and grey have no hue: they turn red
    changed = digital.saturate(image, values, rng)
    for before, after in zip(image.reshape(-1, 3)[::7], changed.reshape(-1, 3)[::7], strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255))
        expected = colorsys.hsv_to_rgb(hue, min(max(saturation * values[0] + values[1], 0), 1), value)
        assert np.allclose(after / 255, expected, atol=1e-5)


@pytest.mark.parametrize(("table", "side"), [("cifar", 32), ("imagenet", 224)])
def test_pixelate_leaves_as_many_values_as_pixels(
    table: str, side: int, make_pictures: Pictures, rng: np.random.Generator
) -> None:
    image = make_pictures(1, side)[0]
    coarse = digital.pixelate(image, PARAMETERS[table]["pixelate"][4], rng)
    kept = int(side * PARAMETERS[table]["pixelate"][4][0])
    distinct_rows = 1 + np.count_nonzero(np.abs(np.diff(coarse.astype(int), axis=0)).sum(axis=(1, 2)))
    assert coarse.shape == image.shape and distinct_rows < side
    if side % kept == 0:
        assert distinct_rows <= kept
    assert coarse.mean() == pytest.approx(image.mean(), abs=1.5)


def test_jpeg_loses_more_at_lower_quality(make_pictures: Pictures, rng: np.random.Generator) -> None:
    image = make_pictures(1, 64)[0]
    losses = [np.abs(digital.jpeg_compression(image, (q,), rng).astype(int) - image).mean() for q in (95, 60, 10)]
    assert 0 < losses[0] < losses[1] < losses[2]


def test_elastic_without_displacement_is_the_affine_map_of_three_points(rng: np.random.Generator) -> None:
    down, across = np.mgrid[:32, :32]
    image = np.stack([4 * across + 60, 4 * down + 60, np.full((32, 32), 9)], axis=-1).astype(np.uint8)  # coordinates
    warped = digital.elastic_transform(image, (0, 0, 0.08), np.random.default_rng(5))
    source = np.array([[26, 26], [26, 6], [6, 6]])  # a third of the side from the centre
    target = source + np.random.default_rng(5).uniform(-0.08 * 32, 0.08 * 32, (3, 2))
    for (x, y), (u, v) in zip(source, target, strict=True):
        left, top = int(u), int(v)
        corner = np.array([1 - (u - left), u - left]) * np.array([1 - (v - top), v - top])[:, None]
        found = (warped[top : top + 2, left : left + 2, :2] * corner[..., None]).sum(axis=(0, 1))
        assert np.allclose(found, [4 * x + 60, 4 * y + 60], atol=1e-2)
    assert np.allclose(warped[..., 2], 9)


def test_elastic_displacement_is_as_smooth_and_strong_as_stated() -> None:
    across = np.tile(np.arange(200), (200, 1))
    image = np.repeat(across[..., None], 3, axis=2).astype(np.uint8)
    moved = [digital.elastic_transform(image, (0.05, 0.02, 0), np.random.default_rng(k)) for k in range(4)]
    drift = np.stack(moved)[:, 20:-20, 20:-20, 0] - across[20:-20, 20:-20]
    deviation = 10 * np.sqrt(1 / 3) / (2 * np.sqrt(np.pi) * 4)  # uniform noise under a Gaussian of 4 pixels, times 10
    assert drift.std() == pytest.approx(deviation, rel=0.15)
    correlation = (drift[..., 8:] * drift[..., :-8]).mean() / drift.var()
    assert correlation == pytest.approx(np.exp(-(8**2) / (4 * 4**2)), abs=0.15)


def test_positions_outside_fold_back() -> None:
    outside = np.array([-1.0, -0.25, 31.0, 31.5, 33.0])
    assert np.allclose(digital._mirror(outside, 32), [1, 0.25, 31, 30.5, 29])
    assert np.allclose(digital._reflect(outside, 32), [0, 0, 31, 31, 30])
