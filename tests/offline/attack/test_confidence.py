"""Intervals and paired bounds against their definitions, and against what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from edgetta.errors import UsageError
from edgetta.offline.attack import PairedLoss, Proportion, fewest_images


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (3, 10), (10, 10), (871, 1000)])
def test_wilson_intervals_are_those_of_scipy(successes: int, count: int) -> None:
    reference = stats.binomtest(successes, count).proportion_ci(0.95, method="wilson")
    assert Proportion(successes, count).interval == pytest.approx((reference.low, reference.high))


def test_a_bound_on_the_loss_is_where_the_score_test_refuses() -> None:
    """Against a likelihood that is maximised by brute force under the supposed loss."""
    loss = PairedLoss(first_only=9, second_only=4, count=200)
    bound = loss.upper(0.95)
    q = np.linspace(1e-9, 1 - bound - 1e-9, 200_001)  # share of "only the second"
    rest = np.clip(1 - 2 * q - bound, 1e-300, None)
    likelihood = 9 * np.log(q + bound) + 4 * np.log(q) + (200 - 13) * np.log(rest)
    best = q[likelihood.argmax()]
    variance = 200 * (2 * best + bound - bound**2)
    assert (9 - 4 - 200 * bound) / math.sqrt(variance) == pytest.approx(-stats.norm.ppf(0.95), abs=1e-3)
    assert loss.lower() < loss.value < bound
    assert loss.lower() == pytest.approx(-PairedLoss(4, 9, 200).upper())


def test_the_bound_holds_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    only_first, only_second, count = 0.02, 0.012, 800
    draws = rng.multinomial(count, [only_first, only_second, 1 - only_first - only_second], 2000)
    covered = np.mean([PairedLoss(int(b), int(c), count).upper() >= only_first - only_second for b, c, _ in draws])
    assert 0.935 < covered < 0.97


def test_no_difference_still_leaves_a_doubt_that_shrinks() -> None:
    assert 0 < PairedLoss(0, 0, 4000).upper() < PairedLoss(0, 0, 400).upper() < 0.01
    needed = fewest_images(0.01)
    assert PairedLoss(0, 0, needed).upper() <= 0.01 < PairedLoss(0, 0, needed - 2).upper()
    assert PairedLoss(5, 0, 5).upper() == pytest.approx(1)
    assert PairedLoss(0, 5, 5).upper() < 0.2


def test_from_masks() -> None:
    first = torch.tensor([True, True, False, True])
    second = torch.tensor([True, False, True, False])
    assert PairedLoss.of(first, second) == PairedLoss(2, 1, 4)
    assert Proportion.of(first) == Proportion(3, 4) and "75.00 %" in str(Proportion.of(first))
    with pytest.raises(UsageError, match="same images"):
        PairedLoss.of(first, second[:2])
    with pytest.raises(UsageError, match="no image"):
        Proportion.of(first[:0])
