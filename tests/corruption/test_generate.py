"""corrupt(): what it gives back does not depend on order, subset or processes, and bad arguments are named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgetta.corruption import CORRUPTIONS, EXTRA_CORRUPTIONS, PARAMETERS, corrupt
from edgetta.errors import UsageError

Pictures = Callable[[int, int], np.ndarray]
ALL = CORRUPTIONS + EXTRA_CORRUPTIONS
DETERMINISTIC = {
    "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression", "gaussian_blur", "saturate"
}  # fmt: skip


def test_there_are_fifteen_and_four_with_five_severities_in_both_tables() -> None:
    assert (len(CORRUPTIONS), len(EXTRA_CORRUPTIONS), len(set(ALL))) == (15, 4, 19)
    for table in PARAMETERS.values():
        assert set(table) == set(ALL)
        assert all(len(severities) == 5 for severities in table.values())


@pytest.mark.parametrize("name", ALL)
def test_an_image_is_corrupted_alike_alone_and_within_a_set(name: str, make_pictures: Pictures, no_data: None) -> None:
    images = make_pictures(6, 32)
    before = images.copy()
    whole = corrupt(images, name, 5, seed=3)
    chosen = [4, 0, 5]
    assert whole.dtype == np.uint8 and whole.shape == images.shape
    assert np.array_equal(corrupt(images[chosen], name, 5, seed=3, indices=chosen), whole[chosen])
    assert np.array_equal(images, before)
    assert not np.array_equal(whole, images)
    other_seed, other_index = corrupt(images, name, 5, seed=4), corrupt(images, name, 5, seed=3, indices=range(1, 7))
    assert np.array_equal(whole, other_seed) == np.array_equal(whole, other_index) == (name in DETERMINISTIC)


@pytest.mark.parametrize(
    "name", [name for name in ALL if name != "elastic_transform"]
)  # published as it is: unordered
def test_the_strongest_severity_does_more_than_the_weakest(name: str, make_pictures: Pictures, no_data: None) -> None:
    images = make_pictures(8, 32)
    change = [np.abs(corrupt(images, name, severity).astype(float) - images).mean() for severity in (1, 5)]
    assert change[1] > change[0]


@pytest.mark.parametrize("name", ALL)
def test_images_need_not_be_square_or_of_the_native_size(name: str, make_pictures: Pictures, no_data: None) -> None:
    for height, width in ((16, 40), (72, 64), (100, 80)):
        image = make_pictures(1, 100)[:, :height, :width]
        for severity in (1, 5):
            assert corrupt(image, name, severity).shape == (1, height, width, 3)


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("name", ALL)
def test_black_and_white_images_survive(name: str, value: int, no_data: None) -> None:
    image = np.full((1, 32, 32, 3), value, np.uint8)
    with np.errstate(all="raise", under="ignore"):
        for severity in range(1, 6):
            corrupted = corrupt(image, name, severity)
            if name in (
                "defocus_blur",
                "glass_blur",
                "motion_blur",
                "zoom_blur",
                "gaussian_blur",
                "elastic_transform",
            ):
                assert np.abs(corrupted.astype(int) - value).max() <= 1  # a blur leaves flat images flat


def test_parameters_follow_the_height_unless_named(make_pictures: Pictures) -> None:
    small, large = make_pictures(2, 64), make_pictures(2, 65)
    for images, table, other in ((small, "cifar", "imagenet"), (large, "imagenet", "cifar")):
        automatic = corrupt(images, "contrast", 2)
        assert np.array_equal(automatic, corrupt(images, "contrast", 2, parameters=table))
        assert not np.array_equal(automatic, corrupt(images, "contrast", 2, parameters=other))


@pytest.mark.parametrize("name", ["shot_noise", "frost"])
def test_processes_do_not_change_the_result(name: str, make_pictures: Pictures, no_data: None) -> None:
    images = make_pictures(5, 32)
    assert np.array_equal(corrupt(images, name, 3, workers=2), corrupt(images, name, 3))


def test_no_images_give_no_images() -> None:
    assert corrupt(np.empty((0, 32, 32, 3), np.uint8), "fog", 1, workers=2).shape == (0, 32, 32, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "rain"}, "unknown corruption 'rain'.*gaussian_noise"),
        ({"severity": 0}, "severity 0 of fog.*1 to 5"),
        ({"severity": 6}, "severity 6"),
        ({"parameters": "tiny"}, "unknown parameters 'tiny'.*cifar"),
        ({"seed": -1}, "seed=-1"),
        ({"workers": 0}, "workers=0"),
        ({"indices": [0]}, "indices must be 2"),
        ({"indices": [0, -1]}, "not negative"),
        ({"indices": [0.5, 1.5]}, "whole numbers"),
        ({"images": np.zeros((2, 32, 32, 3))}, "uint8.*not float64"),
        ({"images": np.zeros((2, 32, 32), np.uint8)}, "not uint8 \\(2, 32, 32\\)"),
        ({"images": np.zeros((2, 8, 32, 3), np.uint8)}, "8 by 32 pixels are too small"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "images": np.zeros((2, 32, 32, 3), np.uint8),
        "name": "fog",
        "severity": 1,
        **change,
    }
    with pytest.raises(UsageError, match=message):
        corrupt(**arguments)  # type: ignore[arg-type]
