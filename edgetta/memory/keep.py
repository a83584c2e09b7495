"""Keep a budget while a stream runs: before each step, choose what fits now; undo what failed; climb back.

A ladder of choices leads from what was planned down to prediction alone (see `Plan.ladder`). Before a step the first
rung is taken that fits both the budget and the room that the system leaves at this moment. It goes down at once, and
up only when the better rung has fitted, with something to spare, for several steps. A step that fails for want of
memory, in any engine, has changed nothing; its images are predicted, and the next step begins one rung lower. What
steps really take is measured, and corrects the predictions where they are too low.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgetta.adaptation.adapter import StepResult, merged
from edgetta.adaptation.step_plan import StepPlan
from edgetta.errors import EdgettaError, one_line
from edgetta.memory.allocation_failure import is_allocation_failure
from edgetta.memory.allocator import returns_freed_memory
from edgetta.memory.choice import UNLIMITED, Choice
from edgetta.memory.peak import high_water, reset_high_water, resident
from edgetta.memory.plan import LEARN, MARGIN, SLICES
from edgetta.memory.room import Room
from edgetta.memory.sizes import size_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgetta.adaptation.adapter import Adapter
    from edgetta.adaptation.config import AdaptConfig

    Array = NDArray[np.floating[Any]]

logger = logging.getLogger(__name__)

SPARE = 0.10
"""A rung is climbed to when the room is larger than what it needs by this share."""

PATIENCE = 8
"""Steps in a row for which a better rung must have fitted before it is climbed to."""

LONGEST = 1024
"""Steps without a failure until a rung that failed is tried again: at first `PATIENCE`, twice as many each time."""

REMEMBERED = 16
"""Steps whose measured peaks correct the predictions."""

SIGNIFICANT = 16 << 20
"""Peaks of rehearsals below this say too little: what the process itself moves is part of them."""

RESERVE = 32 << 20
"""Bytes of the machine's memory that are left alone: a system without any stands still."""

MAX_CHANGES = 100
"""So many changes are kept for the report; all are counted."""

Direction = Literal["down", "up"]


@dataclass(frozen=True)
class Change:
    """The runtime went from one rung to another."""

    step: int  # steps done before
    direction: Direction
    before: Choice
    after: Choice
    reason: str

    def told(self) -> str:
        return f"step {self.step:,}: {self.direction} to {self.after.told()}, because {self.reason}"


@dataclass
class Record:
    """What keeping the budget came to so far."""

    steps: int = 0
    peak: int = 0  # highest that one step took, in bytes; 0 where nothing is measured
    over: int = 0  # steps that took more than the budget
    failures: int = 0  # steps undone because an allocation failed
    predicted: int = 0  # steps that only predicted for want of memory
    split: int = 0  # batches that were split
    down: int = 0
    up: int = 0
    doubts: tuple[str, ...] = ()  # why the budget may not be kept on this system, in words
    changes: list[Change] = field(default_factory=list)  # the first `MAX_CHANGES`


class Keeper:
    """Runs the steps of an adapter within a budget.

    ladder   choices in order of preference, each needing less than those before it; the last ones only predict
    needs    what a choice takes for a batch, in bytes; None where nobody knows: then only failures lead down
    budget   in bytes above the loaded model; None for none
    room     what the system leaves now
    """

    def __init__(
        self,
        adapter: Adapter,
        ladder: Sequence[Choice],
        *,
        needs: Callable[[Choice, int], int] | None = None,
        budget: int | None = None,
        room: Callable[[], Room | None] = lambda: None,
    ) -> None:
        self.ladder = tuple(ladder)
        self.adapter = adapter
        self.budget = budget
        self.record = Record(doubts=() if budget is None else tuple(_doubts()))
        self._needs = needs
        self._room = room
        self._ratios: deque[float] = deque(maxlen=REMEMBERED)  # measured over predicted, of the last updates
        self._rung = 0
        self._roomy = 0  # steps in a row for which a better rung would have done
        self._floor = 0  # the best rung that may be taken: the one below what failed
        self._good = 0  # steps since the last failure
        self._until_trial = PATIENCE
        for doubt in self.record.doubts:
            logger.warning("memory, the budget may not be kept: %s", doubt)

    @property
    def choice(self) -> Choice:
        """What the next step does, unless the room changes."""
        return self.ladder[self._rung]

    @property
    def correction(self) -> float:
        """Measured over predicted: the highest of the last updates, and at least 1.

        Where a stream has settled, steps leave out what a change brings back, and take less than predicted.
        """
        return max(1.0, *self._ratios) if self._ratios else 1.0

    def step(self, images: Array) -> StepResult:
        """As `Adapter.step`; the pieces of a batch that had to be split come back as one result.

        Raises:
            EdgettaError: there is no memory to predict a single image.
        """
        count = len(images)
        gather = self.adapter.config.gathers(count)
        results: list[StepResult] = []
        done = 0
        self._settle(count)
        while done < count:
            left = count - done
            size = -(-left // -(-left // self.choice.batch))  # pieces of about the same size
            results.append(self._step(images[done : done + size], gather))
            done += size
        self.record.steps += 1
        self.record.split += len(results) > 1
        return merged(results)

    def rehearse(self, adapter: Adapter, images: Array) -> None:
        """Run steps of another adapter, which do not count, and correct the predictions by what the second one takes.

        adapter  of the same engine, with a configuration as `rehearsing` makes it: every step learns
        images   as `new_images` makes them
        """
        for _ in range(2):
            level = self._begin()
            result = adapter.step(images, self.choice.plan, gather=False)
        if level and self._needs is not None and (result.adapted or not self.choice.adapts):
            peak = high_water() - level + images.nbytes
            if peak >= SIGNIFICANT:
                self._ratios.append(peak / max(1, self._needs(self.choice, len(images))))

    def _step(self, images: Array, gather: bool) -> StepResult:
        level = self._begin()
        adapter, choice = self.adapter, self.choice
        failure = ""
        only_predict = not choice.adapts and adapter.config.when != "off"
        try:
            if only_predict:
                result = adapter.predict(images, plan=choice.plan)
            else:
                result = adapter.step(images, choice.plan, gather)
        except Exception as error:
            if not is_allocation_failure(error):
                raise
            failure = one_line(error)
        if not failure:
            self._good += 1
            self.record.predicted += only_predict
            self._learn(level, images, result)
            return result
        # Outside the handler, because the traceback holds the arrays of the step.
        self.record.failures += 1
        self.record.predicted += 1
        self._step_down(failure, len(images))
        return self._only_predict(images)

    def _only_predict(self, images: Array) -> StepResult:
        """The prediction alone, in as many pieces as it takes; neither weights nor statistics move."""
        try:
            return self.adapter.predict(images, track=False, plan=StepPlan(predict=self.choice.plan.predict))
        except Exception as error:
            if not is_allocation_failure(error):
                raise
            if len(images) == 1:
                raise EdgettaError(
                    "there is no memory to predict a single image; close other programs, or use a smaller model"
                ) from error
        half = len(images) // 2
        return merged([self._only_predict(images[:half]), self._only_predict(images[half:])])

    def _settle(self, count: int) -> None:
        """Take the rung that suits this moment, for a batch of this size. Once per step, not per piece of it."""
        if self._floor and self._good >= self._until_trial:
            self._floor -= 1
            self._good = 0
        room = None if self._needs is None else self._room()
        fits, better = self._first(count, room, 0.0), self._first(count, room, SPARE)
        if fits > self._rung:
            self._change(fits, self._shortage(count, room))
        elif better < self._rung:
            self._roomy += 1
            if self._roomy >= PATIENCE:
                self._change(better, "there is room again")
        else:
            self._roomy = 0

    def _first(self, count: int, room: Room | None, spare: float) -> int:
        """The best rung that fits a batch now; the last where none does."""
        rungs = range(self._floor, len(self.ladder))
        return next((rung for rung in rungs if self._fits(self.ladder[rung], count, room, spare)), rungs[-1])

    def _fits(self, choice: Choice, count: int, room: Room | None, spare: float) -> bool:
        if self._needs is None:
            return True
        need = self._needs(choice, count) * self.correction
        if self.budget is not None and need * (1 if self._ratios else 1 + MARGIN) > self.budget:
            return False
        return room is None or need * (1 + MARGIN + spare) <= _usable(room)

    def _shortage(self, count: int, room: Room | None) -> str:
        """Why the present rung does not fit."""
        assert self._needs is not None
        need = self._needs(self.choice, count) * self.correction
        if room is not None and need * (1 + MARGIN) > _usable(room):
            return f"it needs {size_text(need)}, and {room.bound} leaves {size_text(_usable(room))}"
        return f"it takes {size_text(need)} here, more than the budget of {size_text(self.budget or 0)}"

    def _step_down(self, failure: str, count: int) -> None:
        """After a failure: begin below it, and try it again only after a while, longer each time."""
        self._good = 0
        self._until_trial = min(2 * self._until_trial, LONGEST)
        done = self._does(self.choice, count)
        # A rung that does the same with so many images would fail in the same way.
        other = (r for r in range(self._rung + 1, len(self.ladder)) if self._does(self.ladder[r], count) != done)
        self._floor = next(other, len(self.ladder) - 1)
        if self._floor > self._rung:
            self._change(self._floor, f"memory ran out in it ({failure})")

    def _does(self, choice: Choice, count: int) -> tuple[Any, ...]:
        """What a choice comes to for so many images: equal where two of them do the same."""
        plan, config = choice.plan, self.adapter.config
        size = min(count, choice.batch)
        at_a_time = min(plan.predict or size, size)
        if not choice.adapts:
            return (at_a_time,)
        learn = min(plan.learn or config.learn_images, config.update_images(size))
        return at_a_time, plan.keep, learn, min(plan.slice or learn, learn)

    def _change(self, rung: int, reason: str) -> None:
        before = self.choice
        direction: Direction = "down" if rung > self._rung else "up"
        self._rung, self._roomy = rung, 0
        change = Change(self.record.steps, direction, before, self.choice, reason)
        self.record.down += direction == "down"
        self.record.up += direction == "up"
        if len(self.record.changes) < MAX_CHANGES:
            self.record.changes.append(change)
        logger.warning("memory, %s", change.told())

    def _begin(self) -> int:
        """The resident level before a step, when steps are measured."""
        if self.budget is None:
            return 0
        with suppress(EdgettaError):
            return resident() if reset_high_water() else 0
        return 0

    def _learn(self, level: int, images: Array, result: StepResult) -> None:
        """What the step took, and how that compares with its prediction."""
        if not level or self.budget is None:
            return
        peak = high_water() - level + images.nbytes + self.adapter.state.window.nbytes
        self.record.peak = max(self.record.peak, peak)
        self.record.over += peak > self.budget
        whole = result.adapted or not self.choice.adapts  # a step that learns nothing takes less
        if self._needs is not None and whole:
            self._ratios.append(peak / max(1, self._needs(self.choice, len(images))))


def rehearsing(config: AdaptConfig) -> AdaptConfig:
    """The configuration in which every step does all that a step of `config` ever does."""
    when = "off" if config.when == "off" else "always"
    return replace(config, when=when, entropy_margin=1.0, hold_back=False)


def new_images(count: int, shape: tuple[int, int, int], seed: int = 0) -> Array:
    """Random images (count, C, H, W), each as new as can be beside the one before it: bright after dark.

    A step learns from no image that resembles the one before.
    """
    images = np.random.default_rng(seed).random((count, *shape), np.float32)
    images[::2] *= np.float32(0.2)
    images[1::2] += np.float32(1.0) - images[1::2] * np.float32(0.5) - np.float32(0.5)
    return np.clip(images, 0, 1, out=images)


def ladder_without_costs(engine: str, plan: StepPlan, adapts: bool = True) -> tuple[Choice, ...]:
    """What to step down to where nobody knows what a step takes: only failures lead there."""
    small = (size for size in SLICES if not plan.slice or size < plan.slice)
    adapting = [plan]
    for size in small:
        at_a_time = _lower(plan.predict, 2 * size)
        adapting += [replace(plan, slice=size, predict=at_a_time)] if plan.keep and size > 1 else []
        adapting += [replace(plan, keep=False, slice=size, predict=at_a_time)] if size < LEARN[-1] else []
    predicting = [StepPlan(predict=_lower(plan.predict, size)) for size in (64, 16, 4, 1)]
    chosen = [Choice(engine, UNLIMITED, way) for way in adapting] if adapts else []
    chosen += [Choice(engine, UNLIMITED, StepPlan(predict=plan.predict), False)]
    chosen += [Choice(engine, UNLIMITED, way, False) for way in predicting]
    return tuple(dict.fromkeys(chosen))


def _lower(given: int, other: int) -> int:
    """The lower number of images at a time; 0 stands for all."""
    return min(given or other, other)


def _doubts() -> Iterator[str]:
    """Why a budget may not be kept here."""
    if not returns_freed_memory():
        yield "the C library of this system does not give freed memory back, so steps may take more than planned"
    if not reset_high_water():
        yield "this system does not tell what a step takes (/proc/self/clear_refs), so the plan is not corrected"


def _usable(room: Room) -> int:
    return max(0, room.available - (RESERVE if room.bound == "MemAvailable" else 0))
