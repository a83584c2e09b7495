"""Keeping a budget: it steps down before what would not fit, undoes what failed, climbs back, and tells of it once."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from edgetta.segmented.adapter import AdaptConfig, Adapter
from edgetta.bundle import read_bundle
from edgetta.errors import EdgettaError
from edgetta.memory import keep
from edgetta.memory.choice import Choice
from edgetta.memory.keep import PATIENCE, Keeper, ladder_without_costs
from edgetta.memory.room import Room
from edgetta.runtime import Runtime
from tests.adaptation.test_undo import SITES, assert_same, everything, images
from tests.small_bundle import ENGINES, whole_bundle

CONFIG = AdaptConfig(learning_rate=0.05, entropy_margin=1.0, small_batch=4, window=8)
LADDER = (
    Choice("torch", 16, "batch", "auto", "full", 0),
    Choice("torch", 16, "batch", "auto", "int8", 4),
    Choice("torch", 8, "ema", "auto", "recompute-int8", 4),
    Choice("torch", 8, "ema", "local", "recompute-int8", 4),
    Choice("torch", 16, "batch", adapts=False),
    Choice("torch", 1, "ema", adapts=False),
)
NEEDS = {choice: size for choice, size in zip(LADDER, (800, 500, 300, 200, 100, 10), strict=True)}


class Machine:
    """A machine whose room is what the test says."""

    def __init__(self, available: int = 10_000) -> None:
        self.available = available

    def room(self) -> Room:
        return Room(self.available, "/sys/fs/cgroup/test")


def adapter(config: AdaptConfig = CONFIG, engine: str = "torch") -> Adapter:
    return Runtime(read_bundle(whole_bundle()), engine, config, check=False).adapter


def needs(choice: Choice, count: int) -> int:
    return round(NEEDS[choice] * min(count, choice.batch) / choice.batch)


def keeper(machine: Machine, of: Adapter | None = None) -> Keeper:
    return Keeper(of or adapter(), LADDER, needs=needs, room=machine.room)


def test_with_room_it_does_what_was_planned() -> None:
    kept = keeper(Machine())
    for seed in range(3):
        assert kept.step(images(16, seed)).adapted
    assert kept.choice == LADDER[0] and kept.record.steps == 3 and not kept.record.changes
    assert kept.adapter.network.memory.storage == "full"


@pytest.mark.parametrize(
    ("available", "rung"), [(900, 0), (839, 1), (600, 1), (400, 2), (250, 3), (200, 4), (50, 5), (0, 5)]
)
def test_it_takes_the_first_rung_that_fits(available: int, rung: int) -> None:
    kept = keeper(Machine(available))
    result = kept.step(images(16))
    assert kept.choice == LADDER[rung]
    assert result.logits.shape == (16, 5) and torch.isfinite(result.logits).all()
    assert result.adapted == LADDER[rung].adapts == (result.reason == "adapted")
    assert kept.record.split == (LADDER[rung].batch < 16)
    memory = kept.adapter.network.memory
    if LADDER[rung].adapts:
        assert (memory.storage, memory.slice) == (LADDER[rung].storage, LADDER[rung].slice)
        assert memory.local == (LADDER[rung].gradient == "local")


def test_down_at_once_and_up_when_there_has_been_room_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    kept = keeper(machine)
    kept.step(images(16))
    machine.available = 400
    with caplog.at_level(logging.WARNING, logger="edgetta.memory.keep"):
        for _ in range(5):
            kept.step(images(16))
        assert kept.choice == LADDER[2] and len(caplog.records) == 1, "one change, told once"
        assert "step 1: down to 8 images per update, gradient auto, storage recompute-int8 in slices of 4, because it "
        told = caplog.records[0].getMessage()
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
    machine = Machine()
    kept = Keeper(adapter(), LADDER, needs=needs, room=lambda: Room(keep.RESERVE + 400, "MemAvailable"))
    kept.step(images(16))
    assert kept.choice == LADDER[2]
    assert keeper(machine).choice == LADDER[0]


def test_a_larger_batch_than_planned_is_split_evenly_and_comes_back_in_order() -> None:
    kept, whole = keeper(Machine()), adapter(replace(CONFIG, learning_rate=0.0))
    kept.attach(adapter(replace(CONFIG, learning_rate=0.0)))
    result = kept.step(images(40))
    assert result.logits.shape == (40, 5) and result.kept == 40 and kept.record.split == 1
    pieces = [whole.step(images(40)[start:stop]) for start, stop in ((0, 14), (14, 27), (27, 40))]
    expected = torch.cat([piece.logits for piece in pieces])
    torch.testing.assert_close(result.logits, expected)
    weighted = sum(piece.objective * piece.kept for piece in pieces) / 40
    assert result.objective == pytest.approx(weighted)
    assert kept.record.steps == 1 and kept.adapter.counters()["updates"] == 3


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_that_fails_is_undone_and_its_images_are_predicted(
    engine: str, site: Callable[[Runtime, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever memory runs out: weights, statistics, momentum as before, and logits all the same."""
    runtime, other = (Runtime(read_bundle(whole_bundle()), engine, CONFIG, check=False) for _ in range(2))
    for seed in range(2):
        runtime.step(images(16, seed))
        other.step(images(16, seed))
    before = everything(runtime)
    with monkeypatch.context() as patched:
        site(runtime, patched)
        failing = ("in_forward", "in_classifier", "in_meta_forward")
        if site.__name__ in failing:  # they fail in every forward: let the one of the prediction pass
            _heal_after_one(runtime, patched, site.__name__)
        result = runtime.step(images(16, 2))
    assert_same(before, everything(runtime))
    assert result.reason == "no memory" and not result.adapted and math.isnan(result.objective)
    expected = other.adapter.predict(images(16, 2), track=False)
    torch.testing.assert_close(result.logits, expected.logits, rtol=1e-4, atol=1e-5)
    record = runtime.keeper.record
    assert (record.failures, record.predicted, record.down, record.steps) == (1, 1, 1, 3)
    assert "memory ran out in it (injected)" in record.changes[0].told()
    assert runtime.step(images(16, 3)).adapted, "and the stream goes on, one rung lower"
    assert runtime.network.memory.storage == "recompute-int8"


def _heal_after_one(runtime: Runtime, patched: pytest.MonkeyPatch, site: str) -> None:
    """The forward that was made to fail works from the second call on."""
    owner: Any = {
        "in_forward": runtime.network.parts[1],
        "in_classifier": runtime.network.classifier,
        "in_meta_forward": runtime.network.metas[1],
    }[site]
    broken, sound, calls = owner.forward, type(owner).forward, [0]

    def forward(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        return broken(*arguments, **options) if calls[0] == 1 else sound(owner, *arguments, **options)

    patched.setattr(owner, "forward", forward)


def test_other_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = keeper(Machine())

    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(kept.adapter.network, "backward", broken)
    before = everything_of(kept.adapter)
    with pytest.raises(RuntimeError, match="shapes differ"):
        kept.step(images(16))
    assert_same(before, everything_of(kept.adapter))
    assert kept.record.failures == 0


def everything_of(of: Adapter) -> dict[str, Tensor]:
    momentum = {name: t.clone() for name, t in of.optimizer_tensors().items()}
    return {**{name: tensor.clone() for name, tensor in of.network.state_dict().items()}, **momentum}


class Scarce:
    """A network whose forward fails for more images than there is memory for."""

    def __init__(self, kept: Keeper, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.most = most
        self.seen: list[int] = []
        self._forward = kept.adapter.network.forward
        monkeypatch.setattr(kept.adapter.network, "forward", self.forward)

    def forward(self, x: Tensor, keep: bool = True, track: bool = True, share: float | None = None) -> Any:
        self.seen.append(len(x))
        if len(x) > self.most:
            raise MemoryError(f"{len(x)} images")
        return self._forward(x, keep, track, share)


@pytest.mark.parametrize("most", [1, 3, 8])
def test_predictions_are_split_until_they_fit(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = keeper(Machine())
    scarce = Scarce(kept, monkeypatch, most)
    before = everything_of(kept.adapter)
    result = kept.step(images(16))
    assert result.logits.shape == (16, 5) and result.reason == "no memory"
    assert_same(before, everything_of(kept.adapter))
    assert max(size for size in scarce.seen if size <= most) <= most and 16 in scarce.seen
    for seed in range(6):  # every rung that cannot do fails once, then there is one that can
        assert kept.step(images(16, seed)).logits.shape == (16, 5)
    assert kept.choice.batch <= most
    failures = kept.record.failures
    kept.step(images(16))
    assert kept.record.failures == failures


def test_no_memory_for_a_single_image_is_an_error_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = keeper(Machine())
    Scarce(kept, monkeypatch, 0)
    with pytest.raises(EdgettaError, match="no memory to predict a single image; close other programs"):
        kept.step(images(4))


def test_what_failed_is_tried_again_later_and_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep, "PATIENCE", 2)
    monkeypatch.setattr(keep, "LONGEST", 16)
    kept = keeper(Machine())
    scarce = Scarce(kept, monkeypatch, 100)
    backward, fail = kept.adapter.network.backward, [True]

    def scarce_backward(*arguments: Any, **options: Any) -> None:
        if fail[0] and kept.adapter.network.memory.storage == "full":
            raise MemoryError
        backward(*arguments, **options)

    monkeypatch.setattr(kept.adapter.network, "backward", scarce_backward)
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
    assert kept.choice == LADDER[0] and scarce.seen


def test_without_costs_only_failures_lead_down() -> None:
    choice = Choice("torch", 1 << 20, "", "auto", "full", 0)
    ladder = ladder_without_costs(choice)
    assert ladder[0] == choice and not ladder[-1].adapts and ladder[-1].batch == 1
    order = [(not c.adapts, c.gradient == "local") for c in ladder]
    assert order == sorted(order), "adapting first, then locally, then not at all"
    assert {c.storage for c in ladder[1:] if c.adapts} == {"recompute-int8"}
    off = ladder_without_costs(replace(choice, adapts=False))
    assert all(not c.adapts for c in off)


def test_a_rung_for_larger_batches_is_passed_over_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 16 images it would do the same as the one that failed."""
    ladder = ladder_without_costs(Choice("torch", 1 << 20, "", "auto", "full", 0))
    kept = Keeper(adapter(), ladder)
    Scarce(kept, monkeypatch, 15)
    tried = [kept.choice]
    while kept.record.failures == len(tried) - 1:
        kept.step(images(16))
        tried.append(kept.choice)
    done = [replace(choice, batch=min(16, choice.batch)) for choice in tried[:-1]]
    assert len(set(done)) == len(done) < len(ladder) - 2


def test_what_steps_really_take_corrects_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which everything takes half as much again as predicted."""
    MB = 1_000_000

    def needs_mb(choice: Choice, count: int) -> int:
        return MB * needs(choice, count)

    kept = Keeper(adapter(), LADDER, needs=needs_mb, budget=900 * MB)
    taken = {"factor": 1.5}
    monkeypatch.setattr(keep, "resident", lambda: 0x1000)
    monkeypatch.setattr(keep, "reset_high_water", lambda: True)
    monkeypatch.setattr(
        keep, "high_water", lambda: round(0x1000 + taken["factor"] * needs_mb(kept.choice, 16) - images(16).nbytes)
    )
    kept.step(images(16))
    assert kept.record.peak == 1200 * MB and kept.record.over == 1
    assert kept.correction == pytest.approx(1.5)
    kept.step(images(16))
    assert kept.choice == LADDER[1] and kept.record.over == 1, "750 MB fit, 1200 did not"
    assert "it takes 1.12 GiB here, more than the budget of 858.3 MiB" in kept.record.changes[0].told()


def test_steps_without_anything_to_learn_from_correct_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Keeper(adapter(replace(CONFIG, entropy_margin=1e-9)), LADDER, needs=needs, budget=1 << 40)
    monkeypatch.setattr(keep, "high_water", lambda: 0)
    assert kept.step(images(16)).kept == 0
    assert kept.correction == 1.0


def test_gathered_frames_are_learnt_from_in_smaller_windows_where_memory_is_short() -> None:
    machine = Machine(400)
    kept = keeper(machine, adapter(replace(CONFIG, window=16)))
    results = [kept.step(images(2, seed)) for seed in range(8)]
    assert kept.choice == LADDER[0], "two frames at a time are all that a step was asked for"
    assert [result.adapted for result in results] == [False] * 7 + [True]


def test_with_adaptation_off_nothing_is_called_for_want_of_memory() -> None:
    kept = Keeper(adapter(replace(CONFIG, when="off")), LADDER[4:], needs=needs)
    result = kept.step(images(16))
    assert result.reason == "off" and kept.record.predicted == 0
