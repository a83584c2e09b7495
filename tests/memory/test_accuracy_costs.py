"""Costs in accuracy: what counts, what lies between measured sizes, what adds up, and what a file may hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from edgetta.adaptation.step_plan import StepPlan
from edgetta.errors import BundleError
from edgetta.memory.accuracy_costs import AccuracyCost, AccuracyCosts, MeasuredCost
from edgetta.memory.choice import Choice


def costs(**changed: AccuracyCost) -> AccuracyCosts:
    """Small costs that cannot be told from none, but for those given, by kind and value."""
    found = {name: AccuracyCost(0.1, 0.1) for name in ("adaptation off", "learn 16", "learn 8", "slice 8", "slice 1")}
    found |= {name.replace("_", " "): cost for name, cost in changed.items()}
    measured = (MeasuredCost(*name.split(" "), cost) for name, cost in found.items())
    return AccuracyCosts(21.5, 64, 32, tuple(measured), {"corruptions": "spatter", "images": "1024"})


def counted(of: AccuracyCosts, images: int, instead_of: int = 32, **plan: Any) -> float:
    return of.counted(Choice("torch", 64, StepPlan(**plan)), images, instead_of)


def test_noise_and_gains_count_as_none() -> None:
    assert AccuracyCost(0.5, 0.2).counted == 0.5
    assert AccuracyCost(0.4, 0.2).counted == AccuracyCost(-3.0, 0.1).counted == 0.0
    assert AccuracyCost(-0.25, 0.125).told() == "-0.25 ± 0.12 points of error"


def test_sizes_between_and_beyond_those_measured() -> None:
    found = costs(learn_16=AccuracyCost(3.0, 0.3), learn_8=AccuracyCost(7.0, 0.5), slice_1=AccuracyCost(2.0, 0.1))
    assert found.of_learn(32, 32) == found.of_learn(20, 20) == found.of_learn(20, 16) == AccuracyCost(0.0, 0.0)
    assert found.of_learn(32, 64).points == 0
    assert found.of_learn(8, 32) == found.of_learn(1, 32) == AccuracyCost(7.0, 0.5)
    assert found.of_learn(11, 32).points == pytest.approx(5.0, abs=0.2), "halfway by the logarithm"
    assert found.of_learn(8, 16) == AccuracyCost(4.0, pytest.approx(0.583, abs=1e-3))
    assert found.of_slice(0) == found.of_slice(32) == AccuracyCost(0.0, 0.0)
    assert found.of_slice(1).points == 2.0 and found.of_slice(8).points == 0.1 < found.of_slice(3).points < 2.0


def test_costs_add_up() -> None:
    found = costs(learn_16=AccuracyCost(3.0, 0.1), slice_8=AccuracyCost(0.5, 0.1), adaptation_off=AccuracyCost(9, 0.1))
    assert counted(found, 32) == counted(found, 32, slice=32) == 0
    assert counted(found, 16, slice=16) == 3.0, "a slice of all"
    assert counted(found, 32, slice=8) == counted(found, 32, slice=8, keep=False) == 0.5
    assert counted(found, 32, slice=1) == 0.5, "no less than a larger slice, whatever the noise says"
    assert counted(found, 16, slice=8) == 3.5
    assert counted(found, 16, 16) == 0, "of what was asked for"
    assert counted(found, 8) == 3, "no less than more images, whatever the noise says"
    assert found.counted(Choice("torch", 64, adapts=False), 0, 32) == 9


def test_it_comes_back_from_json() -> None:
    assert AccuracyCosts.from_json(costs().to_json()) == costs()
    told = replace(costs(), doubt=12.5)
    assert AccuracyCosts.from_json(told.to_json()) == told and told.errors_per_doubt == told.error / 12.5
    before = {name: value for name, value in told.to_json().items() if name != "doubt"}
    assert AccuracyCosts.from_json(before).errors_per_doubt is None, "where it was not measured"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(version=1), "have version 1, and this edgetta reads 2; prepare and export again"),
        (lambda data: data.update(error=101), "no number from 0 to 100"),
        (lambda data: data.update(doubt=-1), "no number from 0 to 100"),
        (lambda data: data.update(batch=0), "batch of '0'"),
        (lambda data: data.update(learn="32"), "learn of '32'"),
        (lambda data: data["measured"].pop(0), "adaptation is missing"),
        (lambda data: data.update(measured=data["measured"][:3]), "slice is missing"),
        (lambda data: data["measured"][0].update(points="1"), "'1' is no number"),
        (lambda data: data["measured"][0].update(points=float("nan")), "'nan' is no number"),
        (lambda data: data["measured"][2].update(value="-16"), "a cost of 'learn' '-16'"),
        (lambda data: data["measured"][0].update(value="tiny"), "a cost of 'adaptation' 'tiny'"),
        (lambda data: data["measured"][0].update(kind="storage"), "a cost of 'storage' 'off'"),
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
