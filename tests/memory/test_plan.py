"""The plan: of all that fits, what costs least accuracy, then time; and what is said where nothing fits."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from typing import Any

import pytest

from edgetta.adaptation.config import AdaptConfig
from edgetta.bundle import Bundle
from edgetta.errors import UsageError
from edgetta.memory.accuracy_costs import AccuracyCost
from edgetta.memory.choice import Choice
from edgetta.memory.plan import GRADIENT_ERRORS, MARGIN, BudgetError, Plan, Wishes, plan_step
from edgetta.memory.sizes import parse_size
from edgetta.rate_law import RateLaw
from tests.memory.costs import FAST, IMAGE, LEAN, MB, planned_bundle
from tests.memory.test_accuracy_costs import costs

BUDGETS = [round(MB * size) for size in (400, 250, 180, 140, 110, 90, 70, 50, 40, 30, 20, 12, 8)]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return planned_bundle()


def plan(bundle: Bundle, budget: float, **wishes: Any) -> Plan:
    return plan_step(bundle, round(budget * MB), Wishes(**wishes))


def accuracy(choice: Choice, wanted: int) -> tuple[Any, ...]:
    """The order that the documentation promises, written down once more."""
    by_batch = choice.batch >= 16 or wanted < 16
    return (not by_batch, choice.gradient == "local", -choice.batch, GRADIENT_ERRORS[choice.storage])


def test_with_plenty_nothing_is_given_up(bundle: Bundle) -> None:
    found = plan(bundle, 1000)
    assert found.choice == Choice("onnxruntime", 64, "batch", "auto", "full", 0)
    assert found.given_up == () and found.batch_norm == "auto"
    assert found.cost.slowdown == pytest.approx(2.0)


@pytest.mark.parametrize("batch", [1, 8, 16, 20, 64, 100])
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_best_that_fits_is_found(bundle: Bundle, budget: int, batch: int) -> None:
    """Against all choices, one by one, by a check of its own."""
    config = AdaptConfig(small_batch=1)
    try:
        found = plan_step(bundle, budget, Wishes(batch=batch, config=config))
    except BudgetError as error:
        assert error.needed > budget
        return
    costs = bundle.cost_model
    assert costs is not None
    assert found.cost.peak * (1 + MARGIN) <= budget
    sizes = [batch]
    while sizes[-1] > 1:
        sizes.append(sizes[-1] // 2)
    ways = [
        Choice(engine, size, "batch" if size >= 16 else "ema", gradient, storage, images)
        for engine, size in itertools.product(("onnxruntime", "torch"), sizes)
        for (gradient, storage), shares in costs.shares(engine).items()
        for images in {0 if share == 1 else max(1, round(share * size)) % size for share in shares}
    ]
    held = {size: batch - size for size in sizes}
    fitting = [way for way in ways if costs.cost(way, held=held[way.batch]).peak * (1 + MARGIN) <= budget]
    best = min(accuracy(way, batch) for way in fitting)
    as_accurate = [way for way in fitting if accuracy(way, batch) == best]
    fastest = min(costs.cost(way).seconds_per_image for way in as_accurate)
    assert accuracy(found.choice, batch) == best
    assert found.cost.seconds_per_image == pytest.approx(fastest)


def test_less_memory_never_buys_more_accuracy(bundle: Bundle) -> None:
    found = [plan_step(bundle, budget, Wishes(config=AdaptConfig(small_batch=1))).choice for budget in BUDGETS[:-2]]
    keys = [accuracy(choice, 64) for choice in found]
    assert keys == sorted(keys) and len(set(found)) > 6, "and these budgets tell many choices apart"


def test_storage_goes_before_batch_and_batch_before_the_gradient_through_frozen_parts(bundle: Bundle) -> None:
    steep = planned_bundle(replace(LEAN, forward=0.1, backward=12.0))  # what `local` leaves out is most of it
    found = plan(steep, 10_000)
    adapting = [choice for choice in found.ladder if choice.adapts]
    ladder = found.ladder
    keys = [accuracy(choice, 64) for choice in adapting]
    assert keys == sorted(keys)
    peaks = [found.at(choice, 64) for choice in adapting]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == len(peaks)
    assert [choice.batch for choice in ladder if not choice.adapts] == [64, 32, 16, 8, 4, 2, 1]
    assert ladder[0].storage == "full" and adapting[-1].batch == 1
    gradients = [choice.gradient for choice in adapting]
    assert gradients.index("local") > 3
    assert gradients.count("recompute") == 0, "segments that keep bits cannot recompute without being made anew"


def test_measured_costs_decide_before_time(bundle: Bundle) -> None:
    """Where 8 bits cost nothing that can be told, they go before anything that costs; and the plan says what it is."""
    expensive = replace(
        bundle, accuracy_costs=costs(**{f"batch_{size}": AccuracyCost(64 / size, 0.1) for size in (32, 16, 8)})
    )
    bytes_cost = replace(bundle, accuracy_costs=costs(storage_int8=AccuracyCost(3.0, 0.1)))
    tight = plan(expensive, 60).choice
    assert tight.batch == 64 and tight.gradient != "local"
    found = plan(expensive, 12)
    assert found.choice.batch < 64
    told = found.given_up[0]
    assert told.cost is not None and told.cost.points > 2 and "points of error" in told.told()
    assert next(choice.batch for choice in found.ladder if choice.adapts) == found.choice.batch
    assert all(way.storage != "int8" for way in plan(bytes_cost, 1000).ladder[:3])
    # What costs the same is chosen by time: everything kept in floats is quicker than 8 bits, whole is than slices.
    assert plan(expensive, 1000).choice == plan(bundle, 1000).choice
    for budget in BUDGETS[:9]:
        choice = plan_step(expensive, budget).choice
        asked = expensive.accuracy_costs
        assert asked is not None and expensive.cost_model is not None
        least = asked.counted(choice, 64)
        for storage in GRADIENT_ERRORS:
            with contextlib.suppress(BudgetError):
                other = plan_step(expensive, budget, Wishes(storage=storage)).choice
                assert least <= asked.counted(other, 64)
                if least == asked.counted(other, 64) and other.gradient != "local":
                    quicker = expensive.cost_model.cost(choice).seconds_per_image
                    assert quicker <= expensive.cost_model.cost(other).seconds_per_image


def test_the_ladder_begins_at_the_choice(bundle: Bundle) -> None:
    found = plan(bundle, 60)
    assert found.ladder[0] == found.choice and found.choice.storage != "full"
    assert all(found.at(choice, 64) <= found.cost.peak for choice in found.ladder)


def test_given_up_is_named_and_called_unmeasured(bundle: Bundle) -> None:
    assert [entry.told() for entry in plan(bundle, 90, storage="int8").given_up] == [
        "exact gradients: those of storage int8 are within 5 %: not measured"
    ]
    told = " | ".join(entry.told() for entry in plan(bundle, 12).given_up)
    assert "instead of 64: not measured" in told
    local = plan(bundle, 200, gradient="local").given_up
    assert [entry.what for entry in local] == ["the gradient through the frozen parts (local)"]
    few = plan(bundle, 11, engine="torch", gradient="recompute", config=AdaptConfig(small_batch=1))
    assert few.choice.statistics == "ema" and few.choice.batch < 16
    assert "running statistics of the BatchNorms instead of those of each batch" in [e.what for e in few.given_up]


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [
        ({"engine": "torch"}, {"engine": "torch"}),
        ({"gradient": "recompute"}, {"gradient": "recompute"}),
        ({"gradient": "local"}, {"gradient": "local"}),
        ({"gradient": "exact"}, {"gradient": "auto"}),  # in this bundle auto is exact in every part
        ({"storage": "int8"}, {"storage": "int8"}),
        ({"slice": 8}, {"slice": 8}),
        ({"slice": 64}, {"slice": 0}),
        ({"batch": 32}, {"batch": 32}),
    ],
)
def test_wishes_are_respected(bundle: Bundle, wishes: dict[str, Any], expected: dict[str, Any]) -> None:
    choice = plan(bundle, 1000, **wishes).choice.to_json()
    assert {name: choice[name] for name in expected} == expected


def test_few_frames_at_a_time_are_planned_by_their_window(bundle: Bundle) -> None:
    config = AdaptConfig(window=48, small_batch=16)
    found = plan(bundle, 1000, batch=1, config=config)
    assert found.choice.batch == 48 and found.window == 48
    assert found.cost.images == (48 + 48 + 1) * IMAGE, "the window, its copy for the update, and the frame"
    tight = plan(bundle, 20, batch=1, config=config)
    assert tight.window == tight.choice.batch < 48
    assert plan(bundle, 1000, batch=16, config=config).window is None


def test_with_adaptation_off_only_prediction_is_planned(bundle: Bundle) -> None:
    found = plan(bundle, 1000, config=AdaptConfig(when="off"))
    assert found.choice == Choice("onnxruntime", 64, "batch", adapts=False)
    assert all(not choice.adapts for choice in found.ladder) and found.given_up == ()
    assert plan(bundle, 20, config=AdaptConfig(when="off")).choice.batch < 64


def test_the_rate_is_that_of_the_law_for_the_batch(bundle: Bundle) -> None:
    law = RateLaw("momentum", "measured", (8, 64), (1e-3, 8e-3), (9e-4, 7e-3), (2e-3, 9e-3), momentum=0.9)
    with_law = replace(bundle, rate_law=law)
    free = replace(bundle.config, learning_rate=None)
    assert plan(with_law, 1000, config=free).rate.rate == pytest.approx(law.rate(64))
    tight = plan(with_law, 25, config=free)
    assert tight.choice.batch < 64 and tight.rate.rate == pytest.approx(law.rate(tight.choice.batch))
    assert plan(with_law, 1000, config=replace(free, learning_rate=0.5)).rate.rate == 0.5
    assert plan(bundle, 1000).rate.rate == bundle.config.learning_rate == 3e-3


def test_a_budget_that_is_too_small_names_the_one_that_would_do(bundle: Bundle) -> None:
    with pytest.raises(BudgetError, match=r"a budget of 976.6 KiB is too small to adapt small: the smallest") as error:
        plan(bundle, 1)
    line = str(error.value)
    assert "\n" not in line and error.value.exit_code == 2
    assert "with adaptation off" in line and "export --parts" in line and "torch, 1 image per update" in line
    named = line.split("the smallest that does is ")[1].split(" (")[0]
    assert parse_size(named) == error.value.needed
    assert plan_step(bundle, parse_size(named), Wishes()).choice.batch == 1, "what it names does"
    with pytest.raises(BudgetError):
        plan_step(bundle, error.value.needed - (1 << 20) // 9, Wishes())


def test_what_would_lower_it_are_the_wishes_that_cost_most(bundle: Bundle) -> None:
    with pytest.raises(BudgetError) as error:
        plan(bundle, 3, engine="onnxruntime", storage="full", gradient="auto")
    line = str(error.value)
    assert "without --engine onnxruntime" in line and "without --storage full" in line
    assert "--gradient" not in line, "it was free anyway"


def test_a_bundle_without_a_cost_model(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="has no cost model, without which nothing can be planned; export it again"):
        plan(replace(bundle, cost_model=None), 100)


def test_what_was_not_measured(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"was not measured for what was asked for \(engine tensorrt\); it was on"):
        plan(bundle, 100, engine="tensorrt")
    with pytest.raises(UsageError, match=r"\(gradient recompute, storage half\)"):
        plan(bundle, 100, gradient="recompute", storage="half")


def test_engines_are_searched_by_time(bundle: Bundle) -> None:
    """The faster one while it fits; the leaner one where it gives more accuracy in the same memory."""
    assert plan(bundle, 1000).choice.engine == "onnxruntime"
    slow = planned_bundle(replace(FAST, seconds=0.01), LEAN)
    assert plan(slow, 1000).choice.engine == "torch"
    both, lean = plan(bundle, 100).choice, plan(bundle, 100, engine="torch").choice
    assert accuracy(both, 64) <= accuracy(lean, 64)


def test_as_json(bundle: Bundle) -> None:
    data = plan(bundle, 60).to_json()
    assert data["budget_bytes"] == 60 * MB and sum(data["components"].values()) == data["predicted_bytes"]
    assert data["choice"]["storage"] in GRADIENT_ERRORS and data["times_inference"] > 1
    assert data["given_up"] == [] or data["given_up"][0]["points"] is None
