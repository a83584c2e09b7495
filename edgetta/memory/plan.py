"""Plan a budget: of all ways to do a step, the one that costs least accuracy, then least time, and fits.

    plan = plan_step(bundle, parse_size("256MiB"), Wishes(batch=64))
    plan.choice, plan.cost.components(), plan.given_up, plan.rate

What a choice costs in accuracy is as `edgetta prepare` measured it (`accuracy_costs.py`). Of choices that cost the
same an update learns from as many images as it can, then the quickest comes first. Where the bundle says nothing of
accuracy, its slices are as large as they can be before that, and what was given up is called unmeasured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgetta.adaptation.step_plan import KEEP, StepPlan
from edgetta.adaptation.step_rate import choose_rate
from edgetta.errors import UsageError
from edgetta.memory.accuracy_costs import AccuracyCost, AccuracyCosts
from edgetta.memory.choice import Choice
from edgetta.memory.cost_model import Cost, CostModel, Load
from edgetta.memory.sizes import size_text

if TYPE_CHECKING:
    from edgetta.adaptation.config import AdaptConfig
    from edgetta.adaptation.step_rate import RateChoice
    from edgetta.bundle import Bundle

MARGIN = 0.05
"""By how much a step may exceed its prediction: a budget keeps so much free."""

LEARN = (16, 8)
"""Images that an update may learn from instead of as many as configured."""

SLICES = (16, 8, 4, 1)
"""Images that forward and backward of an update may take at a time."""

PREDICT = (32, 16, 8, 4, 2, 1)
"""Images that are predicted at a time instead of all."""


class BudgetError(UsageError):
    """A budget in which nothing fits that was asked for. `needed` is the smallest that would do, in bytes."""

    def __init__(self, message: str, needed: int) -> None:
        super().__init__(message)
        self.needed = needed


@dataclass(frozen=True)
class Wishes:
    """What a plan must respect; names and values as in `edgetta.load`. "auto" and None leave a matter to the plan.

    batch   images per step; larger batches are split
    memory  only ways with these numbers of images, where they are not 0; `keep` False: only ways that keep nothing
    """

    batch: int = 64
    engine: str = "auto"
    memory: StepPlan | None = None
    config: AdaptConfig | None = None


@dataclass(frozen=True)
class GivenUp:
    """One thing that a plan does without, and what that costs; None: not measured."""

    what: str
    cost: AccuracyCost | None

    def told(self) -> str:
        return f"{self.what}: {'not measured' if self.cost is None else self.cost.told()}"

    def to_json(self) -> dict[str, Any]:
        points, deviation = (None, None) if self.cost is None else (self.cost.points, self.cost.deviation)
        return {"what": self.what, "points": points, "standard_error": deviation}


@dataclass(frozen=True)
class Plan:
    """A choice, what it takes, and what it gives up.

    batch_norm  the policy of the statistics
    rate        learning rate of an update of so many images, and why
    ladder      the choice and what to step down to, in order of preference; the last only predict
    """

    budget: int
    choice: Choice
    cost: Cost
    batch_norm: str
    rate: RateChoice
    given_up: tuple[GivenUp, ...]
    ladder: tuple[Choice, ...]
    load: Load
    costs: CostModel = field(repr=False)
    accuracy: AccuracyCosts | None = field(default=None, repr=False)  # None where it was not measured

    @property
    def window(self) -> int | None:
        """Images that small batches are gathered in; None where they are not."""
        return self.load.window or None

    def at(self, choice: Choice, batch: int) -> int:
        """Bytes that a choice takes for a batch of this size."""
        return self.costs.cost(choice, replace(self.load, batch=batch)).peak

    def told(self) -> str:
        """The plan in one line."""
        times = "" if self.cost.slowdown is None else f", {self.cost.slowdown:.1f} times plain inference"
        sizes = f"{size_text(self.cost.peak)} of {size_text(self.budget)}"
        return f"{sizes}: {self.choice.told()}, {self.choice.engine}{times}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "budget_bytes": self.budget,
            "choice": self.choice.to_json(),
            "batch_norm": self.batch_norm,
            "predicted_bytes": self.cost.peak,
            "components": self.cost.components(),
            "times_inference": self.cost.slowdown,
            "learning_rate": self.rate.rate,
            "learning_rate_reason": self.rate.reason,
            "given_up": [entry.to_json() for entry in self.given_up],
            "measured_on": dict(self.costs.measured_on),
        }


def plan_step(bundle: Bundle, budget: int, wishes: Wishes | None = None) -> Plan:
    """The best way to do a step within `budget` bytes above the loaded, warmed-up model.

    Raises:
        BudgetError: nothing fits; it names the smallest budget that would do, and what would lower it.
        UsageError: the bundle has no cost model, or not of what was asked for.
    """
    wishes = wishes or Wishes()
    search = _Search.of(bundle, wishes)
    candidates = sorted(search.candidates(), key=search.preference)
    if not candidates:
        raise UsageError(
            f"bundle {bundle.path} was not measured for what was asked for (engine {wishes.engine}); it was on "
            f"{', '.join(search.costs.engines())}: ask for less, or export it again"
        )
    choice = next((choice for choice in candidates if search.peak(choice) * (1 + MARGIN) <= budget), None)
    if choice is None:
        raise _too_small(bundle, budget, wishes, search, candidates)
    config = search.config
    images = search.load.learnt(choice, choice.batch)
    return Plan(
        budget=budget,
        choice=choice,
        cost=search.cost(choice),
        batch_norm=config.batch_norm,
        rate=choose_rate(config.learning_rate, bundle.rate_law, config.momentum, images),
        given_up=tuple(search.given_up(choice)),
        ladder=tuple(search.ladder(choice, candidates)),
        load=search.load,
        costs=search.costs,
        accuracy=search.accuracy,
    )


@dataclass(frozen=True)
class _Search:
    """The ways there are, and their order."""

    costs: CostModel
    wishes: Wishes
    config: AdaptConfig
    engines: tuple[str, ...]
    load: Load
    accuracy: AccuracyCosts | None

    @staticmethod
    def of(bundle: Bundle, wishes: Wishes) -> _Search:
        costs = bundle.cost_model
        if costs is None:
            raise UsageError(
                f"bundle {bundle.path} has no cost model, without which nothing can be planned; export it again "
                "with this edgetta, and without --no-measure"
            )
        config = wishes.config or bundle.config
        engines = tuple(costs.engines()) if wishes.engine == "auto" else (wishes.engine,)
        load = Load.of(config, wishes.batch)
        return _Search(costs, wishes, config, engines, load, bundle.accuracy_costs)

    @property
    def learn(self) -> int:
        """Images that an update learns from where memory is no matter."""
        return self.config.update_images(self.wishes.batch)

    def candidates(self) -> Iterator[Choice]:
        """All choices that the wishes allow."""
        adapts = self.config.when != "off"
        for engine in self.engines:
            if engine in self.costs.engines():
                for plan in self._plans() if adapts else self._predicting():
                    yield Choice(engine, self.wishes.batch, plan, adapts)

    def _plans(self) -> Iterator[StepPlan]:
        asked = self.wishes.memory or KEEP
        for predict in self._at_a_time():
            for learn in (asked.learn,) if asked.learn else (0, *(size for size in LEARN if size < self.learn)):
                sizes = (0, *(size for size in SLICES if size < (learn or self.learn)))
                for size in (asked.slice,) if asked.slice else sizes:
                    for keep in (True, False) if asked.keep else (False,):
                        yield StepPlan(keep, learn, size, predict)

    def _predicting(self) -> Iterator[StepPlan]:
        return (StepPlan(predict=size) for size in self._at_a_time())

    def _at_a_time(self) -> tuple[int, ...]:
        if self.wishes.memory is not None and self.wishes.memory.predict:
            return (self.wishes.memory.predict,)
        return (0, *(size for size in PREDICT if size < self.wishes.batch))

    def cost(self, choice: Choice) -> Cost:
        return self.costs.cost(choice, self.load)

    def peak(self, choice: Choice) -> int:
        return self.cost(choice).peak

    def preference(self, choice: Choice) -> tuple[Any, ...]:
        """The smaller, the better."""
        cost = self.cost(choice)
        if not choice.adapts:
            return True, 0.0, 0, 0, cost.seconds_per_image, cost.peak
        learnt = self.load.learnt(choice, choice.batch)
        size = min(choice.plan.slice or learnt, learnt)
        if self.accuracy is None:
            return False, 0.0, -learnt, -size, cost.seconds_per_image, cost.peak
        counted = self.accuracy.counted(choice, learnt, self.learn)
        return False, counted, -learnt, cost.seconds_per_image, -size, cost.peak

    def ladder(self, choice: Choice, candidates: Sequence[Choice]) -> Iterator[Choice]:
        """The choice, then whatever needs less than all before it on the same engine, at last predictions alone."""
        lowest = self.peak(choice)
        yield choice
        free = replace(self, wishes=replace(self.wishes, memory=None), engines=(choice.engine,))
        lower = candidates if self.wishes.memory is None else sorted(free.candidates(), key=self.preference)
        after = [c for c in lower if c.engine == choice.engine and self.preference(c) > self.preference(choice)]
        for other in after:
            if self.peak(other) < lowest:
                lowest = self.peak(other)
                yield other
        if choice.adapts:
            alone = [Choice(choice.engine, choice.batch, plan, adapts=False) for plan in free._predicting()]
            yield from (other for other in alone[:-1] if self.peak(other) < lowest)
            yield alone[-1]

    def given_up(self, choice: Choice) -> Iterator[GivenUp]:
        if not choice.adapts:
            return
        learnt, costs = self.load.learnt(choice, choice.batch), self.accuracy
        if learnt < self.learn:
            few = None if costs is None else costs.of_learn(learnt, self.learn)
            yield GivenUp(f"updates that learn from {learnt} images instead of {self.learn}", few)
        size = choice.plan.slice
        if 0 < size < learnt:
            sliced = None if costs is None else costs.of_slice(size)
            yield GivenUp(f"gradients through the statistics of all images at once, for slices of {size}", sliced)


def _too_small(
    bundle: Bundle, budget: int, wishes: Wishes, search: _Search, candidates: Sequence[Choice]
) -> BudgetError:
    """The error for a budget in which nothing fits."""
    smallest = min(candidates, key=search.peak)
    needed = _rounded_up(search.peak(smallest) * (1 + MARGIN))
    message = (
        f"a budget of {size_text(budget)} is too small to {'adapt' if smallest.adapts else 'predict with'} "
        f"{bundle.name}: the smallest that does is {size_text(needed)} ({smallest.engine}, {smallest.told()})"
    )
    lower = list(_what_would_lower_it(bundle, wishes, search, needed))
    return BudgetError(f"{message}; it would be {', '.join(lower)}", needed)


def _rounded_up(count: float) -> int:
    """To the tenth of a MiB in which a size is told, so that the size that is named is enough."""
    return math.floor(math.ceil(count * 10 / (1 << 20) + 1e-6) * (1 << 20) / 10)


def _what_would_lower_it(bundle: Bundle, wishes: Wishes, search: _Search, needed: int) -> Iterator[str]:
    freer = {}
    if wishes.engine != "auto":
        freer[f"without --engine {wishes.engine}"] = replace(wishes, engine="auto")
    if wishes.memory is not None:
        freer["with its use of memory left to the plan"] = replace(wishes, memory=None)
    if wishes.batch > search.config.small_batch:
        freer[f"with --batch {search.config.small_batch}"] = replace(wishes, batch=search.config.small_batch)
    for how, other in freer.items():
        free = _Search.of(bundle, other)
        least = min((free.peak(choice) * (1 + MARGIN) for choice in free.candidates()), default=needed)
        if least < 0.98 * needed:
            yield f"{size_text(least)} {how}"
    if search.config.when != "off":
        only = Choice(search.engines[0], wishes.batch, StepPlan(predict=1), adapts=False)
        yield f"{size_text(search.peak(only) * (1 + MARGIN))} with adaptation off"
    yield "less with smaller images (export --input-size)"
