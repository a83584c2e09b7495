"""Which other order of the classes would fit a network's predictions: names in the wrong order are a silent mistake.

An order is found on half of the images and judged on the other half: with few images of many classes some order always
fits the images that it was found on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IMAGES_PER_CLASS = 4
"""Below so many images per class in half of them, only orders are tried that people are known to mix up."""


@dataclass(frozen=True)
class Relabelling:
    """`order[k]` is the class, in the order that was given, that output k means; what it would give."""

    order: tuple[int, ...]
    accuracy: float  # on the images that it was not found on
    before: float  # on the same images, in the order that was given


def better_order(
    predicted: np.ndarray, labels: np.ndarray, classes: int, names: Sequence[str] | None = None
) -> Relabelling | None:
    """The order of classes that fits best, where it does far better than the one that was given; else None.

    Args:
        predicted, labels: (N,) classes from 0, in an order without meaning.
        classes: of the network.
        names: of the classes; folders that are numbers are often sorted as words.
    """
    half = len(labels) // 2
    if half < 8:
        return None
    orders = [_shifted(classes, 1), _shifted(classes, -1)]
    if names is not None and all(name.isdigit() for name in names):
        # Output k is the number k, and names were sorted as words, or the other way round.
        by_number = sorted(range(classes), key=lambda k: int(names[k]))
        orders += [tuple(by_number), tuple(int(k) for k in np.argsort(by_number))]
    if half >= IMAGES_PER_CLASS * classes:
        counts = np.zeros((classes, classes))
        np.add.at(counts, (predicted[:half], labels[:half]), 1)
        # A class that is as good elsewhere stays where it is.
        orders.append(assignment(counts + 0.5 * np.eye(classes)))
    judged, true = predicted[half:], labels[half:]
    before = float((judged == true).mean())
    found = [Relabelling(order, float((np.asarray(order)[judged] == true).mean()), before) for order in orders]
    best = max(found, key=lambda one: one.accuracy)
    return best if best.accuracy - before > far_better(len(true)) else None


def far_better(count: int) -> float:
    """By how much an accuracy on `count` images must be higher not to be chance: three deviations, at least 0.1."""
    return max(0.1, 3 * (0.5 / count) ** 0.5)


def assignment(profit: np.ndarray) -> tuple[int, ...]:
    """For each row the column, each column once, of the largest total profit (shortest augmenting paths)."""
    cost = profit.max() - profit
    count = len(cost)
    row_price, column_price = np.zeros(count + 1), np.zeros(count + 1)
    row_of = np.full(count + 1, -1)  # the row that holds each column; the last column is where a search starts
    for row in range(count):
        row_of[count] = row
        column = count
        distance, before = np.full(count, np.inf), np.full(count, count)
        done = np.zeros(count + 1, bool)
        while row_of[column] >= 0:
            done[column] = True
            holder = row_of[column]
            reduced = cost[holder] - row_price[holder] - column_price[:count]
            closer = ~done[:count] & (reduced < distance)
            distance[closer], before[closer] = reduced[closer], column
            step = np.where(done[:count], np.inf, distance)
            following = int(step.argmin())
            delta = step[following]
            row_price[row_of[done]] += delta
            column_price[done] -= delta
            distance[~done[:count]] -= delta
            column = following
        while column != count:
            previous = int(before[column])
            row_of[column] = row_of[previous]
            column = previous
    columns = np.empty(count, int)
    columns[row_of[:count]] = np.arange(count)
    return tuple(int(column) for column in columns)


def _shifted(classes: int, by: int) -> tuple[int, ...]:
    return tuple((k + by) % classes for k in range(classes))
