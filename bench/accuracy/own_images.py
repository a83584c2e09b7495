"""Orders of frames on somebody's own labelled images, for the report of a preparation: adapted and shipped, beside.

A test set that is shuffled tells little of a camera. Here the same images come shuffled, class by class, in runs, one
class alone, as still scenes and one at a time, clean and under whatever corruptions are given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from edgetta.bench.accuracy.camera import order_errors
from edgetta.bench.accuracy.images import CLEAN
from edgetta.bench.accuracy.orders import SHUFFLED
from edgetta.bench.baselines import Method

SHOWN = (SHUFFLED, "runs", "sorted", "one-class", "still")
SINGLE = "single frames"
COLUMNS = ("frames", "clean %", "shipped", "shifted %", "shipped")


@dataclass(frozen=True)
class OwnOrder:
    """Errors in percent of one order; those under a shift are means over the corruptions, nan where there are none."""

    order: str
    clean: float
    clean_source: float
    shifted: float
    shifted_source: float

    def row(self) -> tuple[str, ...]:
        """As the report shows it, under `COLUMNS`."""
        values = (self.clean, self.clean_source, self.shifted, self.shifted_source)
        return (self.order, *("" if math.isnan(value) else f"{value:.1f}" for value in values))


def own_orders(
    method: Method,
    source: Method,
    domains: Mapping[str, np.ndarray],
    labels: np.ndarray,
    batch: int = 64,
    seed: int = 0,
) -> list[OwnOrder]:
    """One entry per order, and single frames last.

    Args:
        method: adapts; it is reset before each stream.
        source: the shipped network.
        domains: "clean" and corruption -> the same images (N, H, W, 3), uint8.
        labels: int64 (N,).
        batch: frames that come at a time.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for kind, images in domains.items():
        shipped = order_errors(source, images, labels, batch, seed, SHOWN)
        for order, error in order_errors(method, images, labels, batch, seed, SHOWN).items():
            found.setdefault(order, {})[kind] = error, shipped[order]
        alone = order_errors(method, images, labels, 1, seed, (SHUFFLED,))[SHUFFLED]
        found.setdefault(SINGLE, {})[kind] = alone, shipped[SHUFFLED]
    return [_entry(order, by_kind) for order, by_kind in found.items()]


def _entry(order: str, by_kind: Mapping[str, tuple[float, float]]) -> OwnOrder:
    shifted = [pair for kind, pair in by_kind.items() if kind != CLEAN]
    error, source = (fmean(values) for values in zip(*shifted, strict=True)) if shifted else (math.nan, math.nan)
    return OwnOrder(order, *by_kind.get(CLEAN, (math.nan, math.nan)), error, source)
