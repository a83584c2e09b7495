"""Orders of frames: what each shows, and that the seed decides it."""

from __future__ import annotations

import numpy as np
import pytest

from edgetta.bench.accuracy.orders import AFTER, PLAIN, degenerate, starts, streams
from edgetta.errors import UsageError

LABELS = np.random.default_rng(0).integers(0, 10, 300)


def changes(rows: np.ndarray) -> int:
    """How often the class changes from one frame to the next."""
    return int(np.sum(np.diff(LABELS[rows]) != 0))


@pytest.mark.parametrize("order", PLAIN)
def test_the_seed_decides(order: str) -> None:
    one, same = streams(order, LABELS, 3), streams(order, LABELS, 3)
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))


def test_all_images_come_once_where_the_order_is_of_all_images() -> None:
    for order in ("iid", "runs", "sorted", "one-class"):
        rows = np.concatenate(streams(order, LABELS, 0))
        assert np.array_equal(np.sort(rows), np.arange(300)), order
    (iid,), (runs,), (by_class,) = (streams(order, LABELS, 0) for order in ("iid", "runs", "sorted"))
    assert changes(by_class) == 9 < changes(runs) < changes(iid) / 2
    assert not np.array_equal(streams("iid", LABELS, 1)[0], iid)


def test_one_class_and_two_classes() -> None:
    alone = streams("one-class", LABELS, 0)
    assert [set(LABELS[rows].tolist()) for rows in alone] == [{label} for label in range(10)]
    pairs = streams("two-classes", LABELS, 0)
    assert len(pairs) == 5 and {label for rows in pairs for label in LABELS[rows].tolist()} == set(range(10))
    for rows in pairs:
        assert changes(rows) == len(rows) - 1 and len(set(LABELS[rows].tolist())) == 2


def test_still_holds_twelve_scenes() -> None:
    (rows,) = streams("still", LABELS, 0)
    assert len(rows) == 480 and len(set(rows.tolist())) == 12 and np.count_nonzero(np.diff(rows)) == 11


def test_starts_share_no_image() -> None:
    found = starts(300, 0, 64, 4)
    rows = np.concatenate(found)
    assert [len(part) for part in found] == [64] * 4 and len(set(rows.tolist())) == 256
    assert [len(part) for part in starts(80, 0, 64, 4)] == [64, 16]


def test_degenerate_frames() -> None:
    clean = np.random.default_rng(1).integers(0, 256, (300, 4, 4, 3), np.uint8)
    frames = {order: degenerate(order, clean, LABELS, 0, 50) for order in AFTER}
    assert all(found.shape == (50, 4, 4, 3) and found.dtype == np.uint8 for found in frames.values())
    assert not frames["after-black"].any()
    assert (frames["after-still"] == frames["after-still"][0]).all()
    assert len(np.unique(frames["after-noise"].reshape(50, -1), axis=0)) == 50
    shown = [int(np.flatnonzero((clean == image).all((1, 2, 3)))[0]) for image in frames["after-one-class"]]
    assert len(set(LABELS[shown].tolist())) == 1 and len(set(shown)) > 10


def test_unknown_orders() -> None:
    with pytest.raises(UsageError, match="unknown order 'backwards'"):
        streams("backwards", LABELS, 0)
    with pytest.raises(UsageError, match="after-black"):
        degenerate("iid", np.zeros((1, 4, 4, 3), np.uint8), LABELS, 0)
