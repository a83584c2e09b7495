"""The blurs keep what a blur keeps, spread a point as far as they should, and follow their definitions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgetta.corruption import PARAMETERS, blur


@pytest.fixture
def point() -> np.ndarray:
    """One white pixel in the middle of black."""
    image = np.zeros((65, 65, 3), np.uint8)
    image[32, 32] = 255
    return image


def spread(image: np.ndarray, axis: int) -> float:
    """Root mean square distance of the light from the middle, in pixels."""
    light = image[..., 0].astype(float).sum(axis=1 - axis)
    return float(np.sqrt((light * (np.arange(len(light)) - 32) ** 2).sum() / light.sum()))


@pytest.mark.parametrize("deviation", [0.7, 2.0])
def test_gaussian_blur_spreads_a_point_by_its_deviation(
    deviation: float, point: np.ndarray, rng: np.random.Generator
) -> None:
    blurred = blur.gaussian_blur(point, (deviation,), rng)
    assert blurred.sum() == pytest.approx(3 * 255, rel=1e-4)
    assert spread(blurred, 0) == pytest.approx(deviation, rel=0.03) == spread(blurred, 1)


@pytest.mark.parametrize("severity", range(5))
@pytest.mark.parametrize("table", ["cifar", "imagenet"])
def test_defocus_spreads_a_point_over_a_disk(
    table: str, severity: int, point: np.ndarray, rng: np.random.Generator
) -> None:
    radius, softness = PARAMETERS[table]["defocus_blur"][severity]
    blurred = blur.defocus_blur(point, (radius, softness), rng)
    assert blurred.sum() == pytest.approx(3 * 255, rel=0.02)
    down, across = np.mgrid[-32:33, -32:33]
    disk = down**2 + across**2 <= radius**2
    assert blurred[disk].min() > 0.3 * 255 / disk.sum()
    far = down**2 + across**2 > (radius + 2.9) ** 2
    assert np.abs(blurred[far]).max() < 1e-3


def test_large_disks_are_the_direct_convolution(
    make_pictures: Callable[[int, int], np.ndarray], rng: np.random.Generator
) -> None:
    image = make_pictures(1, 48)[0]
    fast = blur.defocus_blur(image, (4, 0.5), rng)
    kernel = blur._disk(4, 0.5)
    reach = kernel.shape[0] // 2
    padded = np.pad(image.astype(float), ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape, axis=(0, 1))
    assert np.abs(fast - np.einsum("hwckl,kl->hwc", windows, kernel)).max() < 1e-3


def test_glass_moves_pixels_and_invents_none(rng: np.random.Generator) -> None:
    image = np.arange(32 * 32, dtype=np.int64)
    image = np.stack([image % 256, image // 256, np.zeros_like(image)], axis=-1).astype(np.uint8).reshape(32, 32, 3)
    moved = blur.glass_blur(image, (0.05, 1, 1), rng).astype(int)  # a blur this narrow does nothing
    origin = moved[..., 0] + 256 * moved[..., 1]
    down, across = np.mgrid[:32, :32]
    steps = {
        (int(a), int(b)) for a, b in zip((origin // 32 - down).ravel(), (origin % 32 - across).ravel(), strict=True)
    }
    assert steps == {(0, 0), (-1, 0), (0, -1), (-1, -1)}
    assert np.array_equal(moved[:2], image[:2]) and np.array_equal(moved[:, :2], image[:, :2])  # the published margin


@pytest.mark.parametrize(("angle", "step"), [(0, (0, 1)), (90, (1, 0)), (-90, (-1, 0)), (45, (1, 1))])
def test_motion_streaks_are_half_a_gaussian_along_their_angle(angle: float, step: tuple[int, int]) -> None:
    image = np.zeros((65, 65), np.uint8)
    image[32, 32] = 255
    streak = blur.motion_streaks(image, 6, 2.0, angle)
    weights = np.exp(-(np.arange(13) ** 2) / 8)
    expected = np.rint(255 * weights / weights.sum())
    found = [streak[32 - j * step[0], 32 - j * step[1]] for j in range(13)]
    if angle == 45:  # diagonal taps lie at every whole step of 0.71 pixels, so some fall together
        assert streak.sum() == pytest.approx(255, abs=6) and np.count_nonzero(np.diag(streak)) > 4
        assert np.array_equal(streak, streak.T)
    else:
        assert np.array_equal(found, expected)
        assert streak.sum() == expected.sum()


@pytest.mark.parametrize("factor", [1.0, 1.13, 1.25, 2.25, 4.5])
def test_centre_zoom_keeps_ramps_straight_and_enlarges_them(factor: float) -> None:
    ramp = np.tile(np.arange(64, dtype=np.float32), (64, 1))
    for axis, image in enumerate((ramp.T, ramp)):
        zoomed = blur.centre_zoom(image, factor)
        slope = np.diff(zoomed, axis=axis)
        assert zoomed.shape == image.shape
        assert np.ptp(slope) < 1e-3
        assert slope.mean() == pytest.approx(1 / factor, rel=0.08)
        assert abs(zoomed.mean() - 31.5) <= 1
    assert np.array_equal(blur.centre_zoom(ramp, 1.0), ramp)


def test_zoom_blur_is_the_mean_over_the_published_factors(
    make_pictures: Callable[[int, int], np.ndarray], rng: np.random.Generator
) -> None:
    from scipy.ndimage import zoom

    image = make_pictures(1, 32)[0].astype(np.float64)
    versions = [image]
    for factor in (1.0, 1.02, 1.04, 1.06, 1.08, 1.10):
        crop = int(np.ceil(32 / factor))
        start = (32 - crop) // 2
        large = zoom(image[start : start + crop, start : start + crop], (factor, factor, 1), order=1)
        cut = (len(large) - 32) // 2
        versions.append(large[cut : cut + 32, cut : cut + 32])
    blurred = blur.zoom_blur(image.astype(np.uint8), (1.11, 0.02), rng)
    assert np.abs(blurred - np.mean(versions, axis=0)).max() < 1e-3
