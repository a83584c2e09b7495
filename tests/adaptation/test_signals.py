"""Signals of images, and how new each is."""

from __future__ import annotations

import numpy as np
import pytest

from edgetta.adaptation.signals import image_signals, novelty


def photographs(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.random((count, 3, 4, 4)).repeat(4, 2).repeat(4, 3)
    return np.clip(coarse + 0.05 * rng.standard_normal((count, 3, 16, 16)), 0, 1).astype(np.float32)


def test_each_kind_of_shift_moves_a_signal_of_its_own() -> None:
    images = photographs(32)
    plain = image_signals(images).mean(0)
    lighter = image_signals(np.clip(images + 0.2, 0, 1)).mean(0)
    noisy = image_signals(images + 0.2 * np.random.default_rng(1).standard_normal(images.shape)).mean(0)
    flat = image_signals(0.5 + 0.1 * (images - 0.5)).mean(0)
    assert plain.shape == (8,)
    assert lighter[0] > plain[0] + 0.1
    assert noisy[-1] > plain[-1] + 0.5
    assert flat[3] < plain[3] - 1


def test_a_picture_shown_again_is_not_new() -> None:
    signals = image_signals(photographs(20).repeat(3, 0))
    weights = novelty(signals, None, signals.var(0))
    assert weights[0] == 1
    assert not weights[1::3].any() and not weights[2::3].any()
    assert weights[3::3].mean() > 0.3


def test_novelty_goes_on_from_the_image_before() -> None:
    signals = image_signals(photographs(4))
    spread = signals.var(0)
    whole = novelty(signals, None, spread)
    rest = novelty(signals[2:], signals[1], spread)
    assert rest == pytest.approx(whole[2:])


def test_images_without_neighbours_have_fewer_signals() -> None:
    assert image_signals(np.zeros((2, 3, 2, 2), np.float32)).shape == (2, 6)
