"""The plan: of all that fits, what costs least accuracy, then time; and what is said where nothing fits."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from edgetta.adaptation.config import AdaptConfig
from edgetta.adaptation.step_plan import StepPlan
from edgetta.errors import UsageError
from edgetta.memory.accuracy_costs import AccuracyCost
from edgetta.memory.choice import Choice
from edgetta.memory.cost_model import Load
from edgetta.memory.plan import MARGIN, BudgetError, Plan, Wishes, plan_step
from edgetta.memory.sizes import parse_size
from edgetta.rate_law import RateLaw
from tests.memory.costs import FAST, IMAGE, LEAN, MB, cost_model, planned_bundle
from tests.memory.test_accuracy_costs import costs

BUDGETS = [round(MB * size) for size in (400, 140, 110, 90, 70, 50, 40, 30, 20, 15, 12, 8)]
SIZES = (0, 16, 8, 4, 1)


def plan(budget: float, bundle: Any = None, **wishes: Any) -> Plan:
    return plan_step(bundle or planned_bundle(), round(budget * MB), Wishes(**wishes))


def lost(choice: Choice, wanted: int) -> tuple[Any, ...]:
    """The order that the documentation promises, written down once more."""
    learnt = min(choice.plan.learn or wanted, wanted)
    return (-learnt, -min(choice.plan.slice or learnt, learnt))


def test_with_plenty_nothing_is_given_up() -> None:
    found = plan(1000)
    assert found.choice == Choice("onnxruntime", 64) and found.given_up == ()
    assert found.cost.slowdown == pytest.approx(2.2, abs=0.05) and found.batch_norm == "stream"


@pytest.mark.parametrize("batch", [16, 20, 64, 100])
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_best_that_fits_is_found(budget: int, batch: int) -> None:
    """Against all choices, one by one, by a check of its own."""
    model, load = cost_model(), Load(batch)
    try:
        found = plan_step(planned_bundle(), budget, Wishes(batch=batch))
    except BudgetError as error:
        assert error.needed > budget
        return
    wanted = min(32, batch)
    ways = [
        Choice(engine, batch, StepPlan(keep, learn, size, predict))
        for engine, keep, learn, size, predict in itertools.product(
            ("onnxruntime", "torch"), (True, False), (0, 16, 8), SIZES, (0, 32, 16, 8, 4, 2, 1)
        )
    ]
    fitting = [way for way in ways if model.cost(way, load).peak * (1 + MARGIN) <= budget]
    best = min(lost(way, wanted) for way in fitting)
    fastest = min(model.cost(way, load).seconds_per_image for way in fitting if lost(way, wanted) == best)
    assert lost(found.choice, wanted) == best
    assert found.cost.peak * (1 + MARGIN) <= budget
    assert found.cost.seconds_per_image == pytest.approx(fastest)


def test_less_memory_never_buys_more() -> None:
    found = [plan_step(planned_bundle(), budget).choice for budget in BUDGETS[:-1]]
    keys = [lost(choice, 32) for choice in found]
    assert keys == sorted(keys) and len(set(found)) > 6, "and these budgets tell many choices apart"


def test_the_ladder_leads_down_to_a_single_image() -> None:
    found = plan(1000)
    adapting = [choice for choice in found.ladder if choice.adapts]
    assert found.ladder[0] == found.choice == adapting[0]
    peaks = [found.at(choice, 64) for choice in adapting]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == len(peaks)
    assert [lost(choice, 32) for choice in adapting] == sorted(lost(choice, 32) for choice in adapting)
    assert adapting[-1].plan.slice == 1
    alone = [c.plan.predict for c in found.ladder if not c.adapts]
    assert alone == sorted(alone, reverse=True) and alone[-1] == 1
    assert [found.at(choice, 64) for choice in found.ladder] == sorted(
        (found.at(choice, 64) for choice in found.ladder), reverse=True
    )
    assert {choice.engine for choice in found.ladder} == {"onnxruntime"}, "an engine is not changed while it runs"
    tight = plan(30)
    assert all(tight.at(choice, 64) <= tight.cost.peak for choice in tight.ladder)


def test_measured_costs_decide_before_time() -> None:
    """Slices that cost nothing that can be told are a matter of time; those that cost come after those that do not."""
    free = planned_bundle(accuracy_costs=costs())
    sliced = planned_bundle(accuracy_costs=costs(slice_8=AccuracyCost(3.0, 0.1), slice_1=AccuracyCost(3.0, 0.1)))
    assert plan(1000, free).choice == plan(1000, sliced).choice == Choice("onnxruntime", 64)
    many, whole = plan(60, free).choice.plan, plan(60, sliced).choice.plan
    assert (many.learn, many.slice) == (0, 8) and (whole.learn, whole.slice) == (16, 0)
    told = plan(15, sliced).given_up
    assert any(entry.cost is not None and entry.cost.points == 3.0 for entry in told)
    for budget in BUDGETS[:8]:
        found = plan_step(sliced, budget)
        learnt = found.load.learnt(found.choice, 64)
        assert sliced.accuracy_costs.counted(found.choice, learnt, 32) in (0, 3.0)


def test_given_up_is_named_and_called_unmeasured() -> None:
    found = [entry.told() for entry in plan(1000, memory=StepPlan(learn=16, slice=4)).given_up]
    assert found == [
        "updates that learn from 16 images instead of 32: not measured",
        "gradients through the statistics of all images at once, for slices of 4: not measured",
    ]
    assert plan(1000, memory=StepPlan(slice=64, learn=64, keep=False)).given_up == ()


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        ({"engine": "torch"}, Choice("torch", 64)),
        ({"memory": StepPlan(False, slice=8)}, Choice("onnxruntime", 64, StepPlan(False, slice=8))),
        ({"memory": StepPlan(False)}, Choice("onnxruntime", 64, StepPlan(False))),
        ({"memory": StepPlan(predict=5, slice=5)}, Choice("onnxruntime", 64, StepPlan(predict=5, slice=5))),
        ({"batch": 32}, Choice("onnxruntime", 32)),
    ],
)
def test_wishes_are_respected(wishes: dict[str, Any], expected: Choice) -> None:
    found = plan(1000, **wishes)
    assert found.choice == expected
    assert found.ladder[0] == expected and len(found.ladder) > 5, "and there is a way down from them"


def test_few_frames_at_a_time_are_planned_by_their_window() -> None:
    config = AdaptConfig(window=48, small_batch=16)
    found = plan(1000, batch=1, config=config)
    assert found.window == 48 and found.load.learnt(found.choice, 1) == 32
    assert found.cost.images == (1 + 48 + 48 + 1) * IMAGE
    assert plan(1000, batch=16, config=config).window is None


def test_with_adaptation_off_only_prediction_is_planned() -> None:
    config = AdaptConfig(when="off")
    found = plan(1000, config=config)
    assert found.choice == Choice("onnxruntime", 64, adapts=False) and found.given_up == ()
    assert all(not choice.adapts for choice in found.ladder)
    assert 0 < plan(20, config=config).choice.plan.predict < 64


def test_the_rate_is_that_of_the_law_for_the_images_that_learn() -> None:
    law = RateLaw("momentum", "measured", (8, 64), (1e-3, 8e-3), (9e-4, 7e-3), (2e-3, 9e-3), momentum=0.9)
    with_law = planned_bundle(rate_law=law, config=AdaptConfig())
    assert plan(1000, with_law).rate.rate == pytest.approx(law.rate(32))
    assert plan(1000, with_law, memory=StepPlan(learn=8)).rate.rate == pytest.approx(law.rate(8))
    assert plan(1000, with_law, config=AdaptConfig(learning_rate=0.5)).rate.rate == 0.5
    assert plan(1000).rate.rate == 3e-3


def test_a_budget_that_is_too_small_names_the_one_that_would_do() -> None:
    with pytest.raises(BudgetError, match=r"a budget of 976.6 KiB is too small to adapt small: the smallest") as error:
        plan(1)
    line = str(error.value)
    assert "\n" not in line and error.value.exit_code == 2
    assert "with adaptation off" in line and "export --input-size" in line and "torch, learns from 8 images" in line
    named = line.split("the smallest that does is ")[1].split(" (")[0]
    assert parse_size(named) == error.value.needed
    assert plan_step(planned_bundle(), parse_size(named)).choice.plan.slice == 1, "what it names does"
    with pytest.raises(BudgetError):
        plan_step(planned_bundle(), error.value.needed - (1 << 20) // 9)


def test_what_would_lower_it_are_the_wishes_that_cost_most() -> None:
    with pytest.raises(BudgetError) as error:
        plan(3, engine="onnxruntime", memory=StepPlan(slice=32))
    line = str(error.value)
    assert "with its use of memory left to the plan" in line
    with pytest.raises(BudgetError, match="with --batch 16"):
        plan(3, batch=4096, engine="torch")
    with pytest.raises(BudgetError) as error:
        plan(3, engine="onnxruntime")
    assert "without --engine onnxruntime" in str(error.value)


def test_a_bundle_without_a_cost_model() -> None:
    with pytest.raises(UsageError, match="has no cost model, without which nothing can be planned; export it again"):
        plan(100, planned_bundle(cost_model=None))


def test_what_was_not_measured() -> None:
    with pytest.raises(UsageError, match=r"was not measured for what was asked for \(engine tensorrt\); it was on"):
        plan(100, engine="tensorrt")


def test_engines_are_searched_by_time() -> None:
    """The faster one while it fits; the leaner one where it gives up less in the same memory."""
    assert plan(1000).choice.engine == "onnxruntime"
    slow = planned_bundle(replace(FAST, seconds=0.01), LEAN)
    assert plan(1000, slow).choice.engine == "torch"
    both, lean = plan(100).choice, plan(100, engine="torch").choice
    assert lost(both, 32) <= lost(lean, 32)


def test_as_json() -> None:
    data = plan(60).to_json()
    assert data["budget_bytes"] == 60 * MB and sum(data["components"].values()) == data["predicted_bytes"]
    assert Choice.from_json(data["choice"]) == plan(60).choice and data["times_inference"] > 1
    assert data["given_up"] == [] or data["given_up"][0]["points"] is None
