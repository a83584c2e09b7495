"""The cost model: from points to what a step takes, and back from JSON, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from edgetta.errors import BundleError
from edgetta.memory.choice import Choice
from edgetta.memory.cost_model import CostModel, StepPoint
from tests.memory.costs import FAST, IMAGE, KEPT, LEAN, MB, cost_model


@pytest.mark.parametrize("formula", [FAST, LEAN])
@pytest.mark.parametrize("batch", [1, 8, 17, 64, 256])
@pytest.mark.parametrize(
    ("gradient", "storage", "slices"),
    [("auto", "full", (1, 3)), ("recompute", "recompute-int8", (3, 12)), ("local", "full", (1,))],
)
def test_what_is_linear_is_predicted_at_every_batch(
    formula: Any, batch: int, gradient: str, storage: str, slices: tuple[int, ...]
) -> None:
    for parts in slices:
        images = 0 if parts == 1 else max(1, round(batch / parts))
        cost = cost_model().cost(Choice(formula.engine, batch, "batch", gradient, storage, images))
        assert cost.forward == pytest.approx(formula.forward_bytes(storage, batch), abs=2)
        assert cost.backward == pytest.approx(formula.backward_bytes(gradient, storage, batch, images), rel=1e-4)
        assert cost.kept == pytest.approx(MB * KEPT[storage] * batch, abs=2)
        assert cost.images == IMAGE * batch
        assert cost.peak == max(cost.forward, cost.backward) + cost.images
        assert sum(cost.components().values()) == cost.peak


def test_shares_between_those_measured_lie_between() -> None:
    model = cost_model()
    peaks = [model.cost(Choice("torch", 48, "batch", "auto", "full", size)).backward for size in (16, 24, 32, 40, 0)]
    assert peaks == sorted(peaks)
    expected = [LEAN.backward_bytes("auto", "full", 48, size) for size in (16, 24, 32, 40, 0)]
    assert peaks == pytest.approx(expected, rel=1e-6), "linear in the slice, so exact"


def test_smaller_batches_of_the_same_choice() -> None:
    model = cost_model()
    choice = Choice("torch", 48, "batch", "auto", "recompute-int8", 4)
    costs = [model.cost(choice, batch).peak for batch in (1, 8, 24, 48, 1000)]
    assert costs == sorted(costs) and costs[-1] == costs[-2], "never more than the choice's own batch"
    assert model.cost(choice, 48, held=10).peak == costs[-1] + 10 * IMAGE


def test_an_update_takes_the_same_whatever_the_batch() -> None:
    points = tuple(replace(point, update_bytes=20 * MB) for point in cost_model(LEAN).steps)
    model = replace(cost_model(LEAN), steps=points)
    few, many = (model.cost(Choice("torch", batch, "ema", "auto", "recompute-int8", 1)) for batch in (1, 64))
    assert few.update == many.update == 20 * MB and few.peak == 20 * MB + IMAGE
    assert few.components() == {
        "kept between forward and backward": 0,
        "working memory of the update": 20 * MB,
        "images": IMAGE,
    }
    assert many.peak > 20 * MB + many.images and "working memory of the forward" in many.components()


def test_prediction_alone() -> None:
    cost = cost_model().cost(Choice("onnxruntime", 10, adapts=False))
    assert cost.forward == 10 * 0.9 * MB and cost.backward == cost.kept == 0
    assert cost.slowdown == pytest.approx(1.3)


def test_times_are_those_of_plain_inference() -> None:
    model = cost_model()
    assert model.cost(Choice("torch", 64, "batch", "auto", "full", 0)).slowdown == pytest.approx(2.0)
    assert model.cost(Choice("torch", 64, "batch", "auto", "int8", 21)).slowdown == pytest.approx(2.86)
    alone = replace(model, predictions=tuple(p for p in model.predictions if p.network != "source"))
    assert alone.cost(Choice("torch", 64, "batch", "auto", "full", 0)).slowdown is None


def test_noise_of_a_measurement_does_not_make_a_peak_fall_with_the_batch() -> None:
    points = [
        StepPoint("torch", "auto", "full", 0, batch, size, size, 0, 0, 1.0) for batch, size in ((24, 5000), (48, 4000))
    ]
    model = replace(cost_model(), steps=tuple(points))
    assert [model.cost(Choice("torch", batch)).forward for batch in (1, 30, 100)] == [5000] * 3


def test_a_way_that_was_not_measured() -> None:
    with pytest.raises(KeyError):
        cost_model(LEAN).cost(Choice("onnxruntime", 8))


def test_it_comes_back_from_json() -> None:
    model = cost_model()
    again = CostModel.from_json(json.loads(json.dumps(model.to_json())))
    assert again == model
    assert again.engines() == ["onnxruntime", "torch"]
    assert again.shares("torch")["auto", "full"] == [1.0, pytest.approx(1 / 3)]


def _set(*path: Any) -> Callable[[dict[str, Any]], None]:
    *way, last, value = path

    def change(data: dict[str, Any]) -> None:
        inner: Any = data
        for key in way:
            inner = inner[key]
        inner[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("version", 1), "memory model has version 1, and this edgetta reads 2"),
        (_set("steps", []), "no list of points"),
        (_set("steps", {}), "no list of points"),
        (_set("steps", [None]), "other fields"),
        (_set("steps", 0, "more", 1), "other fields"),
        (_set("steps", 0, "batch", 0), "'0' is no whole number of at least 1"),
        (_set("steps", 0, "forward_bytes", -1), "'-1' is no whole number"),
        (_set("steps", 0, "forward_bytes", 1.5), "'1.5' is no whole number"),
        (_set("steps", 0, "kept_bytes", 1 << 60), "no whole number"),
        (_set("steps", 0, "seconds", float("nan")), "seconds of nan"),
        (_set("steps", 0, "seconds", True), "seconds of True"),
        (_set("steps", 0, "engine", 3), "engine is no text"),
        (_set("predictions", 0, "peak_bytes", "many"), "'many' is no whole number"),
        (_set("image_bytes", 0), "'0' is no whole number"),
        (_set("measured_on", 3), "cannot be used"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(change: Callable[[dict[str, Any]], None], message: str) -> None:
    data = json.loads(json.dumps(cost_model().to_json()))
    change(data)
    with pytest.raises(BundleError, match=message) as error:
        CostModel.from_json(data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [None, [], {}, "1"])
def test_what_is_no_model_at_all(data: Any) -> None:
    with pytest.raises(BundleError, match="memory model has version None"):
        CostModel.from_json(data)
