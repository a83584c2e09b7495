"""Images made by formula, so that the corruptions can be tested without any data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


def pictures(count: int, side: int) -> np.ndarray:
    """Colour waves, coarse and fine, with a bright square and a dark disk each, uint8 (count, side, side, 3)."""
    down, across = np.mgrid[:side, :side] / side
    made = np.empty((count, side, side, 3))
    for k in range(count):
        turn = 0.7 + 2.399963 * k  # the golden angle: no two pictures alike
        grain = 15 * np.sin(2.1 * side * across) * np.sin(1.7 * side * down)
        for channel in range(3):
            wave = np.cos(turn) * down + np.sin(turn) * across
            made[k, ..., channel] = 120 + 70 * np.sin(2 * np.pi * (1 + k % 4) * wave + 0.3 * channel + turn) + grain
        centre = 0.5 + 0.25 * np.array([np.sin(turn), np.cos(turn)])
        made[k][(abs(down - centre[0]) < 0.12) & (abs(across - centre[1]) < 0.12)] = (250, 210, 60)
        made[k][(down - 1 + centre[0]) ** 2 + (across - 1 + centre[1]) ** 2 < 0.02] = (10, 30, 50)
    return made.round().astype(np.uint8)


@pytest.fixture(scope="session")
def make_pictures() -> Callable[[int, int], np.ndarray]:
    return pictures


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without the frost photographs."""
    monkeypatch.setenv("EDGETTA_DATA", str(tmp_path / "absent"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def grey() -> np.ndarray:
    """One flat image in the middle of the range, large enough for statistics."""
    return np.full((96, 96, 3), 128, np.uint8)
