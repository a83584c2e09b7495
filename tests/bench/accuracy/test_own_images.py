"""Orders of somebody's own images, with methods whose errors are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgetta.bench.accuracy.own_images import COLUMNS, SHOWN, SINGLE, own_orders
from tests.bench.accuracy.test_camera import Counting, Pool


def test_adapted_and_shipped_stand_beside_each_other() -> None:
    pool = Pool(100)
    images = pool.images("clean", 1)
    found = {
        entry.order: entry
        for entry in own_orders(Counting(8), Counting(0), {"clean": images, "fog": images[::-1]}, pool.labels, 4)
    }
    assert tuple(found) == (*SHOWN, SINGLE)
    wrong_way_round = 100 * float(np.mean(pool.labels != pool.labels[::-1]))
    for order in SHOWN[:3]:
        assert found[order].clean_source == 0
        assert found[order].shifted_source == pytest.approx(wrong_way_round)
    assert found["sorted"].clean == 0 < found["iid"].clean <= 8  # class 0 comes first
    assert found[SINGLE].clean == found["iid"].clean
    assert found["one-class"].clean > 40  # all of the frames of patience, in every stream
    assert len(found["iid"].row()) == len(COLUMNS) and found["iid"].row()[0] == "iid"


def test_without_corruptions_there_is_no_shift() -> None:
    pool = Pool(60)
    entry = own_orders(Counting(0), Counting(0), {"clean": pool.images("clean", 1)}, pool.labels)[0]
    assert math.isnan(entry.shifted) and entry.row() == ("iid", "0.0", "0.0", "", "")
