"""The noises have the moments that their definitions say."""

from __future__ import annotations

import numpy as np
import pytest

from edgetta.corruption import PARAMETERS, noise

BOTH = [(table, severity) for table in ("cifar", "imagenet") for severity in (0, 4)]


@pytest.mark.parametrize(("table", "severity"), BOTH)
def test_gaussian_noise(table: str, severity: int, grey: np.ndarray, rng: np.random.Generator) -> None:
    values = PARAMETERS[table]["gaussian_noise"][severity]
    added = noise.gaussian_noise(grey, values, rng) - 128.0
    assert added.std() == pytest.approx(255 * values[0], rel=0.02)
    assert abs(added.mean()) < 0.03 * added.std()


@pytest.mark.parametrize(("table", "severity"), BOTH)
def test_shot_noise_has_a_variance_that_grows_with_the_value(
    table: str, severity: int, grey: np.ndarray, rng: np.random.Generator
) -> None:
    values = PARAMETERS[table]["shot_noise"][severity]
    for level in (64, 192):
        noisy = noise.shot_noise(np.full_like(grey, level), values, rng)
        assert noisy.mean() == pytest.approx(level, rel=0.02)
        assert noisy.var() == pytest.approx(level * 255 / values[0], rel=0.05)


@pytest.mark.parametrize(("table", "severity"), BOTH)
def test_impulse_noise_replaces_the_stated_fraction_by_black_and_white(
    table: str, severity: int, grey: np.ndarray, rng: np.random.Generator
) -> None:
    values = PARAMETERS[table]["impulse_noise"][severity]
    noisy = noise.impulse_noise(grey, values, rng)
    assert set(np.unique(noisy)) == {0, 128, 255}
    deviation = (values[0] / grey.size) ** 0.5
    for extreme in (0, 255):
        assert (noisy == extreme).mean() == pytest.approx(values[0] / 2, abs=4 * deviation)
    changed = noisy != 128
    one_or_more = 1 - (1 - values[0]) ** 3  # channels on their own
    assert changed.any(axis=2).mean() == pytest.approx(one_or_more, abs=4 * deviation * 3**0.5)


@pytest.mark.parametrize(("table", "severity"), BOTH)
def test_speckle_noise_is_proportional_to_the_value(
    table: str, severity: int, grey: np.ndarray, rng: np.random.Generator
) -> None:
    values = PARAMETERS[table]["speckle_noise"][severity]
    for level in (50, 200):
        noisy = noise.speckle_noise(np.full_like(grey, level), values, rng)
        assert noisy.std() == pytest.approx(level * values[0], rel=0.02)
