"""Costs in accuracy: what counts, what lies between measured batches, what adds up, and what a file may hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from edgetta.errors import BundleError
from edgetta.memory.accuracy_costs import AccuracyCost, AccuracyCosts, MeasuredCost
from edgetta.memory.choice import Choice


def costs(**changed: AccuracyCost) -> AccuracyCosts:
    """Small costs that cannot be told from none, but for those given, by kind and value."""
    names = ("adaptation off", "gradient local", "storage half", "storage int8", "storage recompute-int8")
    found = {name: AccuracyCost(0.1, 0.1) for name in (*names, "batch 32", "batch 16", "batch 8")}
    found |= {name.replace("_", " "): cost for name, cost in changed.items()}
    measured = (MeasuredCost(*name.split(" "), cost) for name, cost in found.items())
    return AccuracyCosts(21.5, 64, tuple(measured), {"corruptions": "spatter", "images": "1024"})


def test_noise_and_gains_count_as_none() -> None:
    assert AccuracyCost(0.5, 0.2).counted == 0.5
    assert AccuracyCost(0.4, 0.2).counted == AccuracyCost(-3.0, 0.1).counted == 0.0
    assert AccuracyCost(-0.25, 0.125).told() == "-0.25 ± 0.12 points of error"


def test_batches_between_and_beyond_those_measured() -> None:
    found = costs(batch_32=AccuracyCost(1.0, 0.1), batch_16=AccuracyCost(3.0, 0.3), batch_8=AccuracyCost(7.0, 0.5))
    assert found.of_batch(64, 64) == found.of_batch(20, 20) == AccuracyCost(0.0, 0.0)
    assert found.of_batch(128, 64).points == 0 and found.of_batch(32, 256).points == 1
    assert found.of_batch(8, 64) == found.of_batch(1, 64) == AccuracyCost(7.0, 0.5)
    assert found.of_batch(23, 64).points == pytest.approx(2.0, abs=0.1), "halfway by the logarithm"
    assert found.of_batch(16, 32) == AccuracyCost(2.0, pytest.approx(0.316, abs=1e-3))


def test_costs_add_up() -> None:
    found = costs(
        gradient_local=AccuracyCost(2.0, 0.1), storage_int8=AccuracyCost(0.5, 0.1), batch_16=AccuracyCost(3.0, 0.1)
    )
    assert found.counted(Choice("torch", 64, storage="recompute"), 64) == 0
    assert found.counted(Choice("torch", 64, storage="half"), 64) == 0, "noise"
    assert found.counted(Choice("torch", 16, gradient="local", storage="int8"), 64) == pytest.approx(5.5)
    assert found.counted(Choice("torch", 16, gradient="recompute"), 16) == 0, "of what was asked for"
    assert found.counted(Choice("torch", 8), 64) == 3, "no less than a larger batch, whatever the noise says"


def test_it_comes_back_from_json() -> None:
    assert AccuracyCosts.from_json(costs().to_json()) == costs()
    told = replace(costs(), doubt=12.5)
    assert AccuracyCosts.from_json(told.to_json()) == told and told.errors_per_doubt == told.error / 12.5
    before = {name: value for name, value in told.to_json().items() if name != "doubt"}
    assert AccuracyCosts.from_json(before).errors_per_doubt is None, "bundles from before it was measured"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(version=2), "have version 2"),
        (lambda data: data.update(error=101), "no number from 0 to 100"),
        (lambda data: data.update(doubt=-1), "no number from 0 to 100"),
        (lambda data: data.update(batch=0), "batch of '0'"),
        (lambda data: data["measured"].pop(1), "gradient local is missing"),
        (lambda data: data["measured"][0].update(points="1"), "'1' is no number"),
        (lambda data: data["measured"][0].update(points=float("nan")), "'nan' is no number"),
        (lambda data: data["measured"][6].update(value="-16"), "a cost of 'batch' '-16'"),
        (lambda data: data["measured"][2].update(value="tiny"), "a cost of 'storage' 'tiny'"),
        (lambda data: data.update(measured=3), "cannot be used"),
        (lambda data: data.pop("source"), "'source'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(change: Callable[[dict[str, Any]], None], message: str) -> None:
    data = costs().to_json()
    change(data)
    with pytest.raises(BundleError, match=message) as error:
        AccuracyCosts.from_json(data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [None, [], "1", 3])
def test_what_is_none_at_all(data: Any) -> None:
    with pytest.raises(BundleError, match="version None"):
        AccuracyCosts.from_json(data)
