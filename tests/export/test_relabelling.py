"""Orders of classes: the assignment against scipy's, and which orders are called better."""

from __future__ import annotations

import numpy as np
import pytest

from edgetta.export.relabelling import assignment, better_order


def predictions(order: list[int], count: int, accuracy: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """What a network answers whose output k means class `order[k]`, and the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(order), count)
    outputs = np.argsort(order)[labels]
    wrong = rng.random(count) > accuracy
    outputs[wrong] = rng.integers(0, len(order), int(wrong.sum()))
    return outputs, labels


def test_assignment_is_scipys() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 7, 40):
        for _ in range(5):
            profit = rng.integers(0, 30, (size, size)).astype(float)
            found = assignment(profit)
            rows, columns = optimize.linear_sum_assignment(profit, maximize=True)
            assert sorted(found) == list(range(size))
            assert profit[range(size), found].sum() == profit[rows, columns].sum()


@pytest.mark.parametrize("order", [[2, 0, 1, 3, 5, 4], [0, 1, 2, 4, 3, 5], [5, 4, 3, 2, 1, 0]])
def test_the_order_that_is_right_is_found(order: list[int]) -> None:
    found = better_order(*predictions(order, 360, 0.97), classes=6)
    assert found is not None and list(found.order) == order
    assert found.accuracy > 0.93 and found.before < 0.75


def test_the_right_order_and_a_bad_network_are_left_alone() -> None:
    same = list(range(6))
    for accuracy, seed in ((0.97, 0), (0.5, 1), (0.0, 2), (0.0, 3), (0.2, 4)):
        assert better_order(*predictions(same, 360, accuracy, seed), classes=6) is None
    assert better_order(*predictions(list(range(1000)), 512, 0.3), classes=1000) is None
    assert better_order(*predictions([1, 0], 12, 1.0), classes=2) is None, "too few images to say"


def test_a_shift_by_one_is_found_with_few_images_per_class() -> None:
    shifted = [(k + 1) % 1000 for k in range(1000)]
    found = better_order(*predictions(shifted, 512, 0.7), classes=1000)
    assert found is not None and list(found.order) == shifted and found.before < 0.05


def test_numbers_sorted_as_words_are_found() -> None:
    names = sorted(str(number) for number in range(120))  # "0", "1", "10", "100", ...
    order = [names.index(str(k)) for k in range(120)]
    found = better_order(*predictions(order, 400, 0.8), classes=120, names=names)
    assert found is not None and list(found.order) == order
