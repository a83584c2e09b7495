"""Keeping a budget: it steps down before what would not fit, undoes what failed, climbs back, and tells of it once."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgetta.adaptation.adapter import Adapter
from edgetta.adaptation.config import AdaptConfig
from edgetta.adaptation.step_plan import KEEP, StepPlan
from edgetta.errors import EdgettaError
from edgetta.memory import keep
from edgetta.memory.choice import Choice
from edgetta.memory.keep import PATIENCE, Keeper, ladder_without_costs, new_images, rehearsing
from edgetta.memory.room import Room
from tests.memory.small_engine import CONFIG, adapter, assert_same, engine, images, programs, state_of

LADDER = (
    Choice("torch", 16),
    Choice("torch", 16, StepPlan(slice=4)),
    Choice("torch", 16, StepPlan(False, slice=4, predict=8)),
    Choice("torch", 8, StepPlan(False, learn=4, slice=1, predict=4)),
    Choice("torch", 16, adapts=False),
    Choice("torch", 16, StepPlan(predict=1), adapts=False),
)
NEEDS = dict(zip(LADDER, (800, 500, 300, 200, 100, 10), strict=True))


class Machine:
    """A machine whose room is what the test says."""

    def __init__(self, available: int = 10_000) -> None:
        self.available = available

    def room(self) -> Room:
        return Room(self.available, "/sys/fs/cgroup/test")


def needs(choice: Choice, count: int) -> int:
    return round(NEEDS[choice] * min(count, choice.batch) / choice.batch)


def keeper(machine: Machine, of: Adapter | None = None) -> Keeper:
    return Keeper(of or adapter(), LADDER, needs=needs, room=machine.room)


def test_with_room_it_does_what_was_planned() -> None:
    kept = keeper(Machine())
    for seed in range(3):
        assert kept.step(images(16, seed)).kept_bytes > 0
    assert kept.choice == LADDER[0] and kept.record.steps == 3 and not kept.record.changes


@pytest.mark.parametrize(
    ("available", "rung"), [(900, 0), (839, 1), (600, 1), (400, 2), (250, 3), (200, 4), (50, 5), (0, 5)]
)
def test_it_takes_the_first_rung_that_fits(available: int, rung: int) -> None:
    kept = keeper(Machine(available))
    result = kept.step(images(16))
    assert kept.choice == LADDER[rung]
    assert result.logits.shape == (16, 5) and np.isfinite(result.logits).all()
    assert result.adapted == LADDER[rung].adapts == (result.reason == "adapted")
    assert (result.kept_bytes > 0) == (rung < 2)
    assert kept.record.split == (LADDER[rung].batch < 16) and kept.record.predicted == (rung > 3)


@pytest.mark.parametrize("rung", range(4))
def test_every_way_to_learn_leads_to_the_same_weights_but_for_slices(rung: int) -> None:
    """Slices take the gradient through the statistics of their own images; keeping or not makes no difference."""
    plan = LADDER[rung].plan
    ways = [replace(plan, keep=kept) for kept in (True, False)]
    found = []
    for way in ways:
        one = adapter()
        one.step(images(16), way)
        found.append(one.state)
    np.testing.assert_allclose(found[0].parameters, found[1].parameters, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[0].stream.average.mean, found[1].stream.average.mean, rtol=1e-4, atol=1e-6)
    assert not np.allclose(found[0].parameters, programs().shipped, atol=1e-4), "and it did learn"


def test_down_at_once_and_up_when_there_has_been_room_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    kept = keeper(machine)
    kept.step(images(16))
    machine.available = 400
    with caplog.at_level(logging.WARNING, logger="edgetta.memory.keep"):
        for _ in range(5):
            kept.step(images(16))
        assert kept.choice == LADDER[2] and len(caplog.records) == 1, "one change, told once"
        told = caplog.records[0].getMessage()
        assert "step 1: down to learns from as many as configured in slices of 4, nothing kept" in told
        assert "because it needs 800 B, and /sys/fs/cgroup/test leaves 400 B" in told
        machine.available = 10_000
        choices = []
        for _ in range(PATIENCE + 1):
            choices.append(kept.choice)
            kept.step(images(16))
        assert choices == [LADDER[2]] * PATIENCE + [LADDER[0]]
        assert len(caplog.records) == 2 and "there is room again" in caplog.records[1].getMessage()
    assert (kept.record.down, kept.record.up) == (1, 1)
    assert [change.direction for change in kept.record.changes] == ["down", "up"]


def test_room_that_comes_and_goes_does_not_make_it_swing() -> None:
    machine = Machine()
    kept = keeper(machine)
    for step in range(6 * PATIENCE):
        machine.available = 400 if step % (PATIENCE - 1) == 0 else 10_000
        kept.step(images(16))
    assert kept.record.down == 1 and kept.record.up == 0


def test_it_climbs_only_with_something_to_spare() -> None:
    machine = Machine(400)
    kept = keeper(machine)
    kept.step(images(16))
    machine.available = round(500 * (1 + keep.MARGIN)) + 1  # fits, but only just
    for _ in range(3 * PATIENCE):
        kept.step(images(16))
    assert kept.choice == LADDER[2]
    machine.available = round(500 * (1 + keep.MARGIN + keep.SPARE)) + 1
    for _ in range(PATIENCE):
        kept.step(images(16))
    assert kept.choice == LADDER[1]


def test_small_batches_need_less() -> None:
    kept = keeper(Machine(500))
    kept.step(images(8))
    assert kept.choice == LADDER[0], "half of the batch fits where the whole would not"
    kept.step(images(16))
    assert kept.choice == LADDER[2]


def test_the_system_keeps_a_reserve() -> None:
    kept = Keeper(adapter(), LADDER, needs=needs, room=lambda: Room(keep.RESERVE + 400, "MemAvailable"))
    kept.step(images(16))
    assert kept.choice == LADDER[2]


def test_a_larger_batch_than_planned_is_split_evenly_and_comes_back_in_order() -> None:
    frozen = replace(CONFIG, learning_rate=0.0)
    kept, whole = keeper(Machine(), adapter(frozen)), adapter(frozen)
    result = kept.step(images(40))
    assert result.logits.shape == (40, 5) and kept.record.split == 1
    pieces = [whole.step(images(40)[start:stop]) for start, stop in ((0, 14), (14, 27), (27, 40))]
    np.testing.assert_allclose(result.logits, np.concatenate([p.logits for p in pieces]), rtol=1e-5, atol=1e-6)
    weighted = sum(piece.objective * piece.kept for piece in pieces) / sum(piece.kept for piece in pieces)
    assert result.objective == pytest.approx(weighted)
    assert kept.record.steps == 1 and kept.adapter.state.updates == 3


def failing(of: Any, monkeypatch: pytest.MonkeyPatch, program: str, times: int = 1, after: int = 0) -> list[int]:
    """Have a program of an engine run out of memory a few times, after so many calls that it survives."""
    sound, calls = getattr(of, program), [0]

    def broken(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if after < calls[0] <= after + times:
            raise MemoryError("injected")
        return sound(*arguments, **options)

    monkeypatch.setattr(of, program, broken)
    return calls


@pytest.mark.parametrize("program", ["measure", "forward", "backward", "recompute", "predict"])
def test_a_step_that_fails_is_undone_and_its_images_are_predicted(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever memory runs out: weights, statistics, momentum, window as before, and logits all the same."""
    plan = {"recompute": StepPlan(False), "predict": StepPlan(predict=8)}.get(program, KEEP)
    kept, other = (Keeper(adapter(), ladder_without_costs("torch", plan)) for _ in range(2))
    for seed in range(2):
        kept.step(images(16, seed))
        other.step(images(16, seed))
    before = state_of(kept.adapter)
    with monkeypatch.context() as patched:
        failing(kept.adapter.engine, patched, program)
        result = kept.step(images(16, 2))
    assert_same(before, state_of(kept.adapter))
    assert result.reason == "no memory" and not result.adapted and math.isnan(result.objective)
    expected = other.adapter.predict(images(16, 2), track=False)
    np.testing.assert_allclose(result.logits, expected.logits, rtol=1e-4, atol=1e-5)
    record = kept.record
    assert (record.failures, record.predicted, record.down, record.steps) == (1, 1, 1, 3)
    assert "memory ran out in it (injected)" in record.changes[0].told()
    assert kept.step(images(16, 3)).adapted, "and the stream goes on, one rung lower"


def test_an_update_of_a_window_that_fails_keeps_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Keeper(adapter(), ladder_without_costs("torch", KEEP))
    for seed in range(3):
        kept.step(images(2, seed))
    before = state_of(kept.adapter)
    with monkeypatch.context() as patched:
        failing(kept.adapter.engine, patched, "backward")
        assert kept.step(images(2, 3)).reason == "no memory"
    assert_same(before, state_of(kept.adapter))
    assert kept.step(images(2, 3)).adapted, "the same images complete it"


def test_other_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = keeper(Machine())

    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(kept.adapter.engine, "backward", broken)
    before = state_of(kept.adapter)
    with pytest.raises(RuntimeError, match="shapes differ"):
        kept.step(images(16))
    assert_same(before, state_of(kept.adapter))
    assert kept.record.failures == 0


def scarce(of: Any, monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """An engine whose programs fail for more images than there is memory for; the numbers that were tried."""
    seen: list[int] = []

    def limited(sound: Callable[..., Any]) -> Callable[..., Any]:
        def run(images: Any, *arguments: Any, **options: Any) -> Any:
            seen.append(len(images))
            if len(images) > most:
                raise MemoryError(f"{len(images)} images")
            return sound(images, *arguments, **options)

        return run

    for program in ("predict", "measure", "forward", "recompute"):
        monkeypatch.setattr(of, program, limited(getattr(of, program)))
    return seen


@pytest.mark.parametrize("most", [1, 3, 8])
def test_predictions_are_split_until_they_fit(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Keeper(adapter(), ladder_without_costs("torch", KEEP))
    seen = scarce(kept.adapter.engine, monkeypatch, most)
    before = state_of(kept.adapter)
    result = kept.step(images(16))
    assert result.logits.shape == (16, 5) and result.reason == "no memory"
    assert_same(before, state_of(kept.adapter))
    assert 16 in seen
    for seed in range(8):  # every rung that cannot do fails once, then there is one that can
        assert kept.step(images(16, seed)).logits.shape == (16, 5)
    failures = kept.record.failures
    result = kept.step(images(16))
    assert kept.record.failures == failures and (kept.choice.plan.predict or 16) <= most
    assert result.adapted == (most > 1), "and it learns still, in slices"


def test_no_memory_for_a_single_image_is_an_error_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = keeper(Machine())
    scarce(kept.adapter.engine, monkeypatch, 0)
    with pytest.raises(EdgettaError, match="no memory to predict a single image; close other programs"):
        kept.step(images(4))


def test_what_failed_is_tried_again_later_and_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep, "PATIENCE", 2)
    monkeypatch.setattr(keep, "LONGEST", 16)
    kept = keeper(Machine())
    of: Any = kept.adapter.engine
    backward, fail = of.backward, [True]

    def scarce_backward(residuals: Any, *arguments: Any) -> Any:
        if fail[0] and residuals.batch > 4:
            raise MemoryError
        return backward(residuals, *arguments)

    monkeypatch.setattr(of, "backward", scarce_backward)
    trials = []
    for step in range(60):
        failures = kept.record.failures
        kept.step(images(16))
        if kept.record.failures > failures:
            trials.append(step)
    waits = [later - earlier for earlier, later in itertools.pairwise(trials)]
    assert len(waits) >= 3 and waits == sorted(waits) and waits[1] > 1.4 * waits[0], waits
    fail[0] = False
    for _ in range(2 * keep.LONGEST + 4):
        kept.step(images(16))
    assert kept.choice == LADDER[0]


def test_without_costs_only_failures_lead_down() -> None:
    ladder = ladder_without_costs("torch", KEEP)
    assert ladder[0].plan == KEEP and ladder[-1].plan.predict == 1 and not ladder[-1].adapts
    adapting = [choice.plan for choice in ladder if choice.adapts]
    assert [not plan.keep for plan in adapting] == sorted(not plan.keep for plan in adapting), "kept while it can be"
    assert adapting[-1] == StepPlan(False, slice=1, predict=2)
    assert len(set(ladder)) == len(ladder)
    asked = StepPlan(False, learn=16, slice=8, predict=4)
    below = [choice.plan for choice in ladder_without_costs("torch", asked)]
    assert below[0] == asked and all(not p.predict or p.predict <= 4 for p in below) and below[-1].predict == 1
    assert all(not plan.keep for plan, c in zip(below, ladder_without_costs("torch", asked), strict=True) if c.adapts)
    assert all(not c.adapts for c in ladder_without_costs("torch", KEEP, adapts=False))


def test_a_rung_that_does_the_same_is_passed_over_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 4 images that learn, slices of 16 and of 8 would do the same as the one that failed."""
    config = replace(CONFIG, learn_images=4)
    kept = Keeper(adapter(config), ladder_without_costs("torch", KEEP))
    scarce(kept.adapter.engine, monkeypatch, 3)
    tried = [kept.choice]
    for _ in range(8):
        kept.step(images(4))
        tried.append(kept.choice)
    assert kept.record.failures < len(kept.ladder) - 4, [choice.told() for choice in tried]


def test_what_steps_really_take_corrects_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which everything takes half as much again as predicted."""
    MB = 1_000_000

    def needs_mb(choice: Choice, count: int) -> int:
        return MB * needs(choice, count)

    kept = Keeper(adapter(), LADDER, needs=needs_mb, budget=900 * MB)
    monkeypatch.setattr(keep, "resident", lambda: 0x1000)
    monkeypatch.setattr(keep, "reset_high_water", lambda: True)
    monkeypatch.setattr(
        keep, "high_water", lambda: round(0x1000 + 1.5 * needs_mb(kept.choice, 16) - images(16).nbytes)
    )
    kept.step(images(16))
    assert kept.record.peak == 1200 * MB and kept.record.over == 1
    assert kept.correction == pytest.approx(1.5)
    kept.step(images(16))
    assert kept.choice == LADDER[1] and kept.record.over == 1, "750 MB fit, 1200 did not"
    assert "it takes 1.12 GiB here, more than the budget of 858.3 MiB" in kept.record.changes[0].told()


def test_a_stream_that_has_settled_does_not_make_predictions_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps leave out what a change brings back: to count on that would break the budget at the change."""
    kept = Keeper(adapter(), LADDER, needs=lambda choice, count: 1 << 30, budget=1 << 40)
    monkeypatch.setattr(keep, "resident", lambda: 0x1000)
    monkeypatch.setattr(keep, "reset_high_water", lambda: True)
    monkeypatch.setattr(keep, "high_water", lambda: 0x1000)
    for seed in range(3):
        kept.step(images(16, seed))
    assert kept.correction == 1.0


def test_steps_that_learn_nothing_correct_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Keeper(adapter(replace(CONFIG, when="every 2")), LADDER, needs=needs, budget=1 << 40)
    monkeypatch.setattr(keep, "resident", lambda: 0x1000)
    monkeypatch.setattr(keep, "reset_high_water", lambda: True)
    monkeypatch.setattr(keep, "high_water", lambda: 1 << 30)
    assert kept.step(images(16)).adapted and kept.correction > 1
    kept._ratios.clear()
    assert not kept.step(images(16)).adapted and kept.correction == 1.0


@pytest.mark.parametrize("when", ["always", "every 100", "budgeted 1%", "on-drift"])
def test_a_rehearsal_learns_whatever_the_schedule(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step that is measured is an update of all its images, and not a prediction that the schedule let through."""
    of = engine()
    calls = failing(of, monkeypatch, "backward", times=0)
    config = AdaptConfig(when=when, learn_images=8, entropy_margin=0.01)
    kept = Keeper(adapter(config, of), LADDER, needs=lambda choice, count: 1 << 20, budget=1 << 40)
    learnt: list[int] = []
    forward = of.forward
    monkeypatch.setattr(of, "forward", lambda x, *rest, **o: (learnt.append(len(x)), forward(x, *rest, **o))[1])
    monkeypatch.setattr(keep, "high_water", lambda: 1 << 40)
    kept.rehearse(adapter(rehearsing(config), of), new_images(16, programs().input_shape))
    assert calls == [2] and learnt == [8, 8]
    assert kept.correction > 1 and kept.record.steps == 0 and kept.adapter.state.steps == 0


def test_a_rehearsal_that_did_not_learn_corrects_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    of = engine()
    kept = Keeper(adapter(CONFIG, of), LADDER, needs=lambda choice, count: 1 << 20, budget=1 << 40)
    monkeypatch.setattr(keep, "high_water", lambda: 1 << 40)
    kept.rehearse(adapter(replace(CONFIG, when="every 100"), of), images(16))
    assert kept.correction == 1.0


def test_rehearsing_with_adaptation_off_is_predicting() -> None:
    assert rehearsing(AdaptConfig(when="off")).when == "off"


def test_images_of_a_rehearsal_are_all_new() -> None:
    novelty, _ = adapter().normaliser.novelty(adapter().state.stream, images(16))
    assert (novelty > 0.5).all() and images(16).min() >= 0 and images(16).max() <= 1


def test_a_budget_that_cannot_be_kept_here_is_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keep, "returns_freed_memory", lambda: False)
    monkeypatch.setattr(keep, "reset_high_water", lambda: False)
    with caplog.at_level(logging.WARNING, logger="edgetta.memory.keep"):
        kept = Keeper(adapter(), LADDER, needs=needs, budget=1 << 40)
    assert len(kept.record.doubts) == 2 == len(caplog.records)
    assert "does not give freed memory back" in kept.record.doubts[0]
    assert "does not tell what a step takes" in kept.record.doubts[1]
    kept.step(images(16))
    assert kept.record.peak == 0 and kept.correction == 1.0
    assert Keeper(adapter(), LADDER, needs=needs).record.doubts == (), "without a budget there is nothing to doubt"


def test_gathered_frames_are_learnt_from_when_there_are_enough() -> None:
    kept = keeper(Machine(400), adapter(replace(CONFIG, window=16)))
    results = [kept.step(images(2, seed)) for seed in range(8)]
    assert kept.choice == LADDER[0], "two frames at a time are all that a step was asked for"
    assert [result.adapted for result in results] == [False] * 7 + [True]


def test_with_adaptation_off_nothing_is_called_for_want_of_memory() -> None:
    kept = Keeper(adapter(replace(CONFIG, when="off")), LADDER[4:], needs=needs)
    result = kept.step(images(16))
    assert result.reason == "off" and kept.record.predicted == 0
