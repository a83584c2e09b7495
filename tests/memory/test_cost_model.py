"""The cost model: from points to what a step takes, and back from JSON, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from edgetta.adaptation.config import AdaptConfig
from edgetta.adaptation.step_plan import StepPlan
from edgetta.errors import BundleError
from edgetta.memory.choice import Choice
from edgetta.memory.cost_model import SUMMED_COPIES, UPDATE_COPIES, Cost, CostModel, Load, ProgramPoint
from tests.memory.costs import FAST, IMAGE, KEPT, LEAN, MB, PARAMETERS, Formula, cost_model


def cost(formula: Formula, load: Load, **plan: Any) -> Cost:
    return cost_model().cost(Choice(formula.engine, 1 << 20, StepPlan(**plan)), load)


@pytest.mark.parametrize("formula", [FAST, LEAN])
@pytest.mark.parametrize("batch", [1, 8, 17, 64, 256])
@pytest.mark.parametrize("size", [0, 4])
def test_what_is_kept_is_that_of_all_images_and_what_works_that_of_a_slice(
    formula: Formula, batch: int, size: int
) -> None:
    learnt = min(batch, 32)
    slice_ = min(size or learnt, learnt)
    found = cost(formula, Load(batch), slice=size)
    beside = MB * KEPT * (learnt - slice_) + IMAGE * learnt + SUMMED_COPIES * PARAMETERS
    assert found.kept == pytest.approx(MB * KEPT * learnt, abs=2)
    for program in ("forward", "backward"):
        assert found.phases[program] == pytest.approx(formula.peak(program, slice_) + beside, rel=1e-6)
    assert found.images == IMAGE * batch
    assert found.peak == max(found.phases.values()) + found.images == sum(found.components().values())
    assert found.phases["update"] == UPDATE_COPIES * PARAMETERS


def test_a_backward_that_keeps_nothing_takes_a_slice() -> None:
    found = cost(FAST, Load(64), keep=False, slice=4, predict=8)
    beside = IMAGE * 32 + SUMMED_COPIES * PARAMETERS
    assert found.kept == 0 and "forward" not in found.phases
    assert found.phases["recomputation"] == pytest.approx(FAST.peak("recompute", 4) + beside, rel=1e-6)
    assert found.phases["learning's prediction"] == pytest.approx(FAST.peak("measure", 8) + beside, rel=1e-6)
    assert found.phases["measurement"] == pytest.approx(FAST.peak("measure", 8), rel=1e-6)
    assert "working memory of the recomputation" in found.components()


def test_fewer_images_take_less() -> None:
    assert cost(FAST, Load(64), learn=8).kept == pytest.approx(MB * KEPT * 8, abs=2)
    assert cost(FAST, Load(64), learn=50).kept == pytest.approx(MB * KEPT * 32, abs=2), "never more than configured"
    whole, few = cost(FAST, Load(64)), cost(FAST, Load(64), predict=8)
    assert few.phases["prediction"] < whole.phases["prediction"]
    assert cost(FAST, Load(64, measures=False)).phases.keys() == whole.phases.keys() - {"measurement"}
    choice = Choice("torch", 48)
    peaks = [cost_model().cost(choice, Load(batch)).peak for batch in (1, 8, 24, 48, 1000)]
    assert peaks == sorted(peaks) and peaks[-1] == peaks[-2], "never more than the choice's own batch"


def test_small_batches_are_gathered_beside_an_update() -> None:
    load = Load.of(AdaptConfig(window=48, learn_images=32), 1)
    assert load == Load(1, 32, 48)
    found = cost(FAST, load)
    assert found.kept == pytest.approx(MB * KEPT * 32, abs=2)
    assert found.images == IMAGE * (1 + 48 + 48 + 1), "the image, the window, and the new window while it is made"
    often = cost(FAST, load, learn=8)
    assert often.seconds_per_image > found.seconds_per_image / 2 and often.kept < found.kept
    per_image = FAST.time("predict", 1) + (FAST.time("forward", 32) + FAST.time("backward", 32)) / 48
    assert found.seconds_per_image == pytest.approx(per_image)
    assert Load.of(AdaptConfig(when="off"), 1).window == 0 == Load.of(AdaptConfig(), 16).window
    assert not Load.of(AdaptConfig(batch_norm="source"), 64).measures


def test_an_update_of_many_parameters_counts() -> None:
    model = replace(cost_model(LEAN), parameter_bytes=20 * MB)
    few = model.cost(Choice("torch", 1, StepPlan(False, slice=1)), Load(1))
    assert few.peak == 100 * MB + IMAGE and "working memory of the update" in few.components()


def test_prediction_alone() -> None:
    choice = Choice("onnxruntime", 10, StepPlan(predict=4), adapts=False)
    found = cost_model().cost(choice, Load(10))
    assert found.phases == {
        "prediction": pytest.approx(FAST.peak("predict", 4)),
        "measurement": pytest.approx(FAST.peak("measure", 4)),
    }
    assert found.kept == 0
    calls = 2 * FAST.time("predict", 4) + FAST.time("predict", 2)
    assert found.slowdown == pytest.approx(calls / FAST.time("predict", 10))


def test_times_are_those_of_prediction_alone() -> None:
    step = FAST.time("forward", 32) + FAST.time("backward", 32) + FAST.time("predict", 32)
    found = cost(FAST, Load(64))
    assert found.seconds_per_image == pytest.approx(step / 64)
    assert found.slowdown == pytest.approx(step / FAST.time("predict", 64))
    again = FAST.time("measure", 32) + 8 * FAST.time("recompute", 4) + FAST.time("predict", 32)
    assert cost(FAST, Load(64), keep=False, slice=4).seconds_per_image == pytest.approx(again / 64)


@pytest.mark.parametrize(("small", "large", "expected"), [(5000, 4000, [5000] * 3), (1000, 8000, [250, 4000, 16000])])
def test_noise_makes_nothing_fall_or_negative(small: int, large: int, expected: list[int]) -> None:
    others = tuple(p for p in cost_model(LEAN).points if p.program != "predict")
    points = tuple(ProgramPoint("torch", "predict", n, size, 0, 1.0) for n, size in ((8, small), (32, large)))
    model = replace(cost_model(LEAN), points=(*others, *points))
    loads = [Load(n, measures=False) for n in (1, 16, 56)]
    found = [model.cost(Choice("torch", 64, adapts=False), load).phases["prediction"] for load in loads]
    assert [f >= e * 0.8 for f, e in zip(found, expected, strict=True)] == [True] * 3, found
    assert found == sorted(found)


def test_an_engine_that_was_not_measured() -> None:
    with pytest.raises(KeyError):
        cost_model(LEAN).cost(Choice("onnxruntime", 8), Load(8))


def test_it_comes_back_from_json() -> None:
    model = cost_model()
    again = CostModel.from_json(json.loads(json.dumps(model.to_json())))
    assert again == model
    assert again.engines() == ["onnxruntime", "torch"]


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
        (_set("version", 2), "memory model has version 2, and this edgetta reads 3; export the bundle again"),
        (_set("points", []), "no list of points"),
        (_set("points", {}), "no list of points"),
        (_set("points", [None]), "other fields"),
        (_set("points", 0, "more", 1), "other fields"),
        (_set("points", 0, "images", 0), "'0' is no whole number of at least 1"),
        (_set("points", 0, "peak_bytes", -1), "'-1' is no whole number"),
        (_set("points", 0, "peak_bytes", 1.5), "'1.5' is no whole number"),
        (_set("points", 0, "kept_bytes", 1 << 60), "no whole number"),
        (_set("points", 0, "seconds", float("nan")), "seconds of nan"),
        (_set("points", 0, "seconds", True), "seconds of True"),
        (_set("points", 0, "engine", 3), "a point of 'predict' on '3'"),
        (_set("points", 0, "program", "dream"), "a point of 'dream' on 'onnxruntime'"),
        (lambda data: data.update(points=data["points"][:8]), "recompute on onnxruntime is missing"),
        (_set("image_bytes", 0), "'0' is no whole number"),
        (_set("parameter_bytes", "many"), "'many' is no whole number"),
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
