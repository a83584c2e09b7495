"""Drops lighten with water and cover with mud, and their outlines are Canny's."""

from __future__ import annotations

import numpy as np
import pytest

from edgetta.corruption import PARAMETERS
from edgetta.corruption.spatter import _edges, _equalise, spatter


@pytest.mark.parametrize("table", ["cifar", "imagenet"])
@pytest.mark.parametrize("severity", range(5))
def test_water_adds_light_and_mud_pulls_to_brown(table: str, severity: int, rng: np.random.Generator) -> None:
    image = np.full((96, 96, 3), 100, np.uint8)
    values = PARAMETERS[table]["spatter"][severity]
    change = spatter(image, values, rng) - 100.0
    touched = (np.abs(change) > 0.5).any(axis=2)
    assert 0.001 < touched.mean() < 0.6
    if values[5] == 0:
        assert change.min() > -1e-3 and change.max() <= values[4] * 238 + 1e-3
        assert np.allclose(change[..., 0] * 238, change[..., 1] * 175, atol=1e-2)  # pale turquoise
    else:
        cover = change[touched] / (np.array([63, 42, 20]) - 100)
        assert cover.min() >= 0.8 - 1e-3 and cover.max() <= 1 + 1e-3


def test_no_drop_leaves_the_image(rng: np.random.Generator) -> None:
    image = np.full((32, 32, 3), 100, np.uint8)
    assert np.array_equal(spatter(image, (0.2, 0.01, 1, 0.7, 0.5, 0), rng), image)


def test_edges_are_thin_closed_and_above_the_threshold() -> None:
    image = np.zeros((20, 20), np.uint8)
    image[5:15, 5:15] = 200
    edges = _edges(image, 50, 150)
    assert not edges[7:13, 7:13].any() and not edges[:3].any() and not edges[:, 17:].any()
    assert all(edges[10, :].nonzero()[0].tolist()[k] in (4 + 10 * k, 5 + 10 * k) for k in (0, 1))
    assert np.count_nonzero(edges[10]) == 2 == np.count_nonzero(edges[:, 10])
    faint = np.zeros((20, 20), np.uint8)
    faint[5:15, 5:15] = 20  # gradient 80 to 120: weak, and nothing strong to hold on to
    assert not _edges(faint, 50, 150).any()
    faint[5:15, 5:8] = 200
    assert _edges(faint, 50, 150)[4:6, 12].any()  # now joined to a strong edge


def test_equalised_levels_fill_the_range_evenly() -> None:
    levels = np.repeat(np.arange(40, 60, dtype=np.uint8), 5)
    spread = _equalise(levels)
    assert spread.min() == 0 and spread.max() == 255
    assert np.ptp(np.diff(np.unique(spread).astype(int))) <= 1
    assert np.array_equal(_equalise(np.full(9, 7, np.uint8)), np.full(9, 7))
