"""Snow whitens, frost adds ice, fog adds a fractal, brightness raises V and nothing else."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
import pytest

from edgetta.corruption import PARAMETERS, weather

Pictures = Callable[[int, int], np.ndarray]


def test_brightness_raises_v_and_keeps_hue_and_saturation(make_pictures: Pictures, rng: np.random.Generator) -> None:
    image = make_pictures(3, 32)[2].copy()
    image[0, 0], image[0, 1] = 0, 200  # black, grey
    brighter = weather.brightness(image, (0.3,), rng)
    for before, after in zip(image.reshape(-1, 3)[::7], brighter.reshape(-1, 3)[::7], strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(before / 255))
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.3, 1))
        assert np.allclose(after / 255, expected, atol=1e-5)


def test_fog_keeps_the_brightest_value_in_reach_and_adds_the_same_mist_to_all_channels(
    make_pictures: Pictures, rng: np.random.Generator
) -> None:
    image = make_pictures(1, 32)[0]
    amount, decay = PARAMETERS["cifar"]["fog"][4]
    foggy = weather.fog(image, (amount, decay), rng)
    brightest = float(image.max())
    assert foggy.min() >= 0 and foggy.max() <= brightest + 1e-6
    mist = foggy * (brightest + 255 * amount) / brightest - image
    assert np.abs(mist - mist[..., :1]).max() < 1e-6
    assert mist.min() == pytest.approx(0, abs=1e-6) and mist.max() == pytest.approx(255 * amount)


def test_plasma_is_rougher_where_the_displacement_decays_less(rng: np.random.Generator) -> None:
    def roughness(decay: float) -> float:
        fields = [weather.plasma(64, decay, rng) for _ in range(8)]
        assert all(field.min() == 0 and field.max() == 1 for field in fields)
        return float(np.mean([np.abs(np.diff(field, axis=1)).mean() for field in fields]))

    assert roughness(1.4) > 1.5 * roughness(2) > 1.5 * roughness(3)


def test_plasma_halves_its_steps_as_diamond_square_does() -> None:
    class Constant:
        """Stands in for a generator: every displacement is the amplitude itself."""

        def uniform(self, low: float, high: float, size: tuple[int, ...]) -> np.ndarray:
            return np.full(size, high)

    centre = 0 + 1  # the mean of four zeros, displaced by 1
    edge = (0 + 0 + centre + centre) / 4 + 1
    inner = (0 + edge + edge + centre) / 4 + 1 / 4
    field = weather.plasma(4, 2.0, Constant())  # type: ignore[arg-type]
    raw = field * 1.0 / field[2, 2]  # undo the scaling to 0 ... 1: the corner is 0, so ratios remain
    assert field[0, 0] == 0
    assert raw[0, 2] == pytest.approx(edge / centre) and raw[2, 0] == pytest.approx(edge / centre)
    assert raw[1, 1] == pytest.approx(inner / centre)


@pytest.mark.parametrize("table", ["cifar", "imagenet"])
def test_snow_whitens_and_falls_downwards(table: str, rng: np.random.Generator) -> None:
    image = np.full((96, 96, 3), (30, 60, 90), np.uint8)
    severe = PARAMETERS[table]["snow"][4]
    snowy = np.mean([weather.snow(image, severe, rng) for _ in range(20)], axis=0)
    assert snowy.min() >= 0.999 * (severe[6] * 30 + (1 - severe[6]) * 127.5)
    single = weather.snow(image, severe, rng)
    along, across = np.abs(np.diff(single, axis=0)).mean(), np.abs(np.diff(single, axis=1)).mean()
    assert across > along  # streaks within 45 degrees of the vertical


def test_frost_is_a_window_of_one_texture(make_pictures: Pictures, rng: np.random.Generator) -> None:
    image = make_pictures(1, 32)[0]
    textures = (make_pictures(5, 40)[3], make_pictures(5, 33)[4])
    drawn = set()
    for _ in range(40):
        ice = (weather.frost(image, (0.75, 0.45), rng, textures) - 0.75 * image) / 0.45
        places = [
            (number, top, left)
            for number, texture in enumerate(textures)
            for top in range(len(texture) - 31)
            for left in range(len(texture) - 31)
            if np.allclose(texture[top : top + 32, left : left + 32], ice, atol=1e-3)
        ]
        assert len(places) == 1
        drawn.add(places[0])
    assert {number for number, _, _ in drawn} == {0, 1}
    assert max(top for _, top, _ in drawn) > 4
