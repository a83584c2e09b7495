"""Plan a budget: of all ways to do a step, the one that costs least accuracy, then least time, and fits.

    plan = plan_step(bundle, parse_size("256MiB"), Wishes(batch=64))
    plan.choice, plan.cost.components(), plan.given_up, plan.rate

What a choice costs in accuracy is as `edgetta prepare` measured it (`accuracy_costs.py`). Of choices that cost the
same, `local` comes last, since its drift shows only where a stream recurs, and the quickest of the others first. Where
the bundle says nothing of accuracy, the order is this, and what was given up is called unmeasured:

1. a batch as large as asked for, and statistics of the batch where such a batch has them;
2. gradients through the frozen parts, rather than `local`;
3. how exact the gradients are: full and recompute (to rounding), then half, then int8 and recompute-int8.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgetta.errors import UsageError
from edgetta.memory.accuracy_costs import NOTHING, AccuracyCost, AccuracyCosts
from edgetta.memory.choice import Choice
from edgetta.memory.cost_model import Cost, CostModel
from edgetta.memory.sizes import size_text

if TYPE_CHECKING:
    from edgetta.bundle import Bundle
    from edgetta.segmented.adapter import AdaptConfig
    from edgetta.segmented.step_rate import RateChoice

MARGIN = 0.05
"""By how much a step may exceed its prediction: a budget keeps so much free."""

GRADIENT_ERRORS = {"full": 1e-5, "recompute": 1e-5, "half": 1e-2, "int8": 5e-2, "recompute-int8": 5e-2}
"""Largest relative error of the gradients by storage, as the tests bound it."""


class BudgetError(UsageError):
    """A budget in which nothing fits that was asked for. `needed` is the smallest that would do, in bytes."""

    def __init__(self, message: str, needed: int) -> None:
        super().__init__(message)
        self.needed = needed


@dataclass(frozen=True)
class Wishes:
    """What a plan must respect; names and values as in `edgetta.load`. "auto" and None leave a matter to the plan.

    batch   images per step; larger numbers than fit are split
    """

    batch: int = 64
    engine: str = "auto"
    gradient: str = "auto"
    storage: str | None = None
    slice: int | None = None
    batch_norm: str | None = None
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

    ladder          the choice and what to step down to, in order of preference; the last only predicts
    rate            learning rate of an update of this batch, and why
    """

    budget: int
    choice: Choice
    cost: Cost
    batch_norm: str
    rate: RateChoice
    given_up: tuple[GivenUp, ...]
    ladder: tuple[Choice, ...]
    costs: CostModel = field(repr=False)
    held: int = 0  # images that are in memory beside those of an update
    window: int | None = None  # that small batches are gathered in; None where they are not
    accuracy: AccuracyCosts | None = field(default=None, repr=False)  # None where it was not measured

    def at(self, choice: Choice, batch: int) -> int:
        """Bytes that a choice takes for a batch of this size."""
        return self.costs.cost(choice, batch, self.held).peak

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
    from edgetta.segmented.adapter import law_for
    from edgetta.segmented.step_rate import choose_rate

    wishes = wishes or Wishes()
    search = _Search.of(bundle, wishes)
    candidates = sorted(search.candidates(), key=search.preference)
    if not candidates:
        raise UsageError(
            f"bundle {bundle.path} was not measured for what was asked for ({_told(wishes)}); it was on "
            f"{', '.join(search.costs.engines())}: ask for less, or export it again"
        )
    fitting = (choice for choice in candidates if search.peak(choice) * (1 + MARGIN) <= budget)
    choice = next(fitting, None)
    if choice is None:
        raise _too_small(bundle, budget, wishes, search, candidates)
    config = search.config
    return Plan(
        budget=budget,
        choice=choice,
        cost=search.cost(choice),
        batch_norm=search.policy,
        rate=choose_rate(config.learning_rate, law_for(config, bundle.rate_law), config.momentum, choice.batch),
        given_up=tuple(search.given_up(choice)),
        ladder=tuple(search.ladder(choice, candidates)),
        costs=search.costs,
        held=search.held(choice.batch),
        window=choice.batch if search.gathers else None,
        accuracy=search.accuracy,
    )


@dataclass(frozen=True)
class _Search:
    """The ways there are, and their order."""

    costs: CostModel
    wishes: Wishes
    config: AdaptConfig
    policy: str
    engines: tuple[str, ...]
    gradients: frozenset[str]
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
        policy = wishes.batch_norm or bundle.batch_norm
        if bundle.model.batch_norm == "source":
            policy = "source"
        engines = tuple(costs.engines()) if wishes.engine == "auto" else (wishes.engine,)
        gradient = wishes.gradient
        if gradient == "exact" and "recompute" not in bundle.manifest["memory"]["auto"]["mode_of"].values():
            gradient = "auto"  # which is measured, and means exact in every part of this bundle
        gradients = {gradient} if wishes.gradient != "auto" else {"auto", "recompute", "local"}
        return _Search(costs, wishes, config, policy, engines, frozenset(gradients), bundle.accuracy_costs)

    @property
    def update(self) -> int:
        """Images that an update sees where memory is no matter."""
        return self.config.window if self.gathers else self.wishes.batch

    def candidates(self) -> Iterator[Choice]:
        """All choices that the wishes allow."""
        for engine in self.engines:
            for batch in _halves(self.update):
                statistics = _statistics(self.policy, batch)
                if self.config.when == "off":
                    if engine in self.costs.engines():
                        yield Choice(engine, batch, statistics, adapts=False)
                    continue
                for (gradient, storage), shares in self.costs.shares(engine).items():
                    if gradient not in self.gradients or self.wishes.storage not in (None, storage):
                        continue
                    for size in self._slices(shares, batch):
                        yield Choice(engine, batch, statistics, gradient, storage, size)

    def _slices(self, shares: Sequence[float], batch: int) -> list[int]:
        if self.wishes.slice is not None:
            return [0 if self.wishes.slice >= batch else self.wishes.slice]
        return list(dict.fromkeys(0 if share == 1 else max(1, round(share * batch)) % batch for share in shares))

    def cost(self, choice: Choice) -> Cost:
        return self.costs.cost(choice, held=self.held(choice.batch))

    def peak(self, choice: Choice) -> int:
        return self.cost(choice).peak

    def held(self, batch: int) -> int:
        """Images in memory beside those of an update: the window and this step's, or what waits of this step's."""
        if self.gathers:
            return batch + self.wishes.batch
        return max(0, self.wishes.batch - batch)

    @property
    def gathers(self) -> bool:
        """Whether frames are gathered in a window, because a step brings few."""
        return self.config.when != "off" and self.wishes.batch < min(self.config.small_batch, self.config.window)

    def preference(self, choice: Choice) -> tuple[Any, ...]:
        """The smaller, the better."""
        cost = self.cost(choice)
        if self.accuracy is not None:
            return (
                not choice.adapts,
                self.accuracy.counted(choice, self.update) if choice.adapts else 0.0,
                choice.gradient == "local",
                cost.seconds_per_image,
                -choice.batch,
                cost.peak,
            )
        return (
            not choice.adapts,
            choice.statistics != _statistics(self.policy, self.update),
            choice.gradient == "local",
            -choice.batch,
            GRADIENT_ERRORS.get(choice.storage, 1.0),
            cost.seconds_per_image,
            cost.peak,
        )

    def ladder(self, choice: Choice, candidates: Sequence[Choice]) -> Iterator[Choice]:
        """The choice, then whatever needs less than all before it and can be switched to while the engine runs."""
        lowest = self.peak(choice)
        yield choice
        for lower in candidates[candidates.index(choice) + 1 :]:
            switchable = lower.engine == choice.engine and lower.gradient in (choice.gradient, "local")
            if switchable and lower.adapts and self.peak(lower) < lowest:
                lowest = self.peak(lower)
                yield lower
        for batch in _halves(self.wishes.batch):
            yield Choice(choice.engine, batch, _statistics(self.policy, batch), adapts=False)

    def given_up(self, choice: Choice) -> Iterator[GivenUp]:
        if choice.batch < self.update:
            few = None if self.accuracy is None else self.accuracy.of_batch(choice.batch, self.update)
            yield GivenUp(f"updates of {choice.batch} images instead of {self.update}", few)
        if choice.statistics != _statistics(self.policy, self.update):
            # A batch so small was measured with them.
            also = None if self.accuracy is None else NOTHING
            yield GivenUp("running statistics of the BatchNorms instead of those of each batch", also)
        if choice.gradient == "local":
            local = None if self.accuracy is None else self.accuracy.of_gradient("local")
            yield GivenUp("the gradient through the frozen parts (local)", local)
        if choice.adapts and GRADIENT_ERRORS.get(choice.storage, 1.0) > 1e-4:
            error = GRADIENT_ERRORS[choice.storage]
            kept = None if self.accuracy is None else self.accuracy.of_storage(choice.storage)
            yield GivenUp(f"exact gradients: those of storage {choice.storage} are within {100 * error:.0f} %", kept)


def _halves(batch: int) -> list[int]:
    """The batch, half of it, and so on down to 1."""
    sizes = [batch]
    while sizes[-1] > 1:
        sizes.append(sizes[-1] // 2)
    return sizes


def _statistics(policy: str, batch: int) -> str:
    """What a policy means for a batch of this size."""
    from edgetta.adaptation.network import EMA_BELOW

    if policy == "auto":
        return "batch" if batch >= EMA_BELOW else "ema"
    return policy


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
    from dataclasses import replace

    for name in ("engine", "gradient", "storage", "slice"):
        given, free = getattr(wishes, name), Wishes.__dataclass_fields__[name].default
        if given == free:
            continue
        freed: dict[str, Any] = {name: free}
        other = _Search.of(bundle, replace(wishes, **freed))
        least = min((other.peak(choice) * (1 + MARGIN) for choice in other.candidates()), default=needed)
        if least < 0.98 * needed:
            yield f"{size_text(least)} without --{name} {given}"
    only = Choice(search.engines[0], 1, _statistics(search.policy, 1), adapts=False)
    if search.config.when != "off":
        yield f"{size_text(search.costs.cost(only, held=wishes.batch).peak * (1 + MARGIN))} with adaptation off"
    yield "less with a bundle of fewer parts (export --parts) or smaller images (export --input-size)"


def _told(wishes: Wishes) -> str:
    given = {name: getattr(wishes, name) for name in ("engine", "gradient", "storage", "slice", "batch_norm")}
    return ", ".join(f"{name} {value}" for name, value in given.items() if value not in (None, "auto")) or "anything"
