"""A learning rate, and on request a momentum, that follow the curvature during training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from edgetta.errors import UsageError
from edgetta.offline.curvature import (
    DataSetTooSmallError,
    HessianOperator,
    LinearOperator,
    LossSurface,
    NotFiniteError,
    PreconditionedOperator,
    Processes,
    Spectrum,
    Tridiagonal,
    as_samples,
    run_lanczos,
)
from edgetta.offline.learning_rate.ladder import draw_batches
from edgetta.offline.learning_rate.preconditioner import coupled_decay, divisor, threshold_rate


@dataclass(frozen=True)
class LearnerConfig:
    """How a `LearningRateLearner` measures and what it sets; the defaults are ours, `PUBLISHED` holds the others."""

    rule: str = "quantile"  # a key of RULES
    every_epochs: int = 20  # epochs between refreshes
    first_epoch: int = 0  # of the first refresh
    iterations: int = 20  # of Lanczos
    batches: int = 8  # batches measured per refresh, one start vector each
    batch_size: int | None = None  # samples per batch; None: the training batch size
    quantile: float = 0.5  # of the spectrum's weight on |eigenvalues| outside the null bulk, for mu
    null: float = 1e-3  # |eigenvalues| below this share of the largest are the null bulk
    fraction: float = 0.25  # of the largest stable rate, in the rule "quantile"
    # Steps, at most a quarter of the training, over which the rate rises to what the first refresh says. Curvature of
    # untrained weights differs tenfold and more from seed to seed, and soon after from step to step: the rate that
    # counts follows from its mean over the warm-up, one batch at a time.
    warm_up: int = 40
    learn_momentum: bool = False  # also set momentum (or Adam's first beta), in the rule "quantile"
    largest_momentum: float = 0.99  # cap of a learned momentum
    largest_change: float = 10.0  # factor by which a refresh may change the rate, after the first
    # How far a rate may rise above the first one behind the warm-up. A large rate flattens the loss, and flatness asks
    # for a larger rate: followed upwards, curvature runs away with the training.
    largest_rise: float = 1.0
    seed: int = 5  # of batches and start vectors

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UsageError: names the field.
        """
        checks = {
            "rule": self.rule in RULES,
            "every_epochs": self.every_epochs >= 1,
            "first_epoch": self.first_epoch >= 0,
            "iterations": self.iterations >= 1,
            "batches": self.batches >= 1,
            "batch_size": self.batch_size is None or self.batch_size >= 1,
            "quantile": 0 <= self.quantile <= 1,
            "null": 0 <= self.null < 1,
            "fraction": self.fraction > 0,
            "warm_up": self.warm_up >= 0,
            "largest_momentum": 0 <= self.largest_momentum < 1,
            "largest_change": self.largest_change > 1,
            "largest_rise": self.largest_rise >= 1,
        }
        for name, fine in checks.items():
            if not fine:
                raise UsageError(f"{name} = {getattr(self, name)!r} cannot be used in a learning-rate learner")


@dataclass(frozen=True)
class Refresh:
    """What one refresh measured and set."""

    epoch: int
    step: int  # steps of the optimizer before it
    rate: float
    momentum: float | None  # None where it was left alone
    largest: float  # L, mean over batches of the largest |Ritz value|
    lower: float  # mu
    seconds: float


@dataclass(frozen=True)
class Choice:
    """What a rule says."""

    rate: float
    momentum: float | None
    lower: float


Rule = Callable[[Sequence[Tridiagonal], float, torch.optim.Optimizer, LearnerConfig], Choice]


def _quantile(runs: Sequence[Tridiagonal], largest: float, optimizer: Any, config: LearnerConfig) -> Choice:
    """Ours: a fraction of the optimizer's own threshold at L + mu, mu a quantile of the spectrum's weight."""
    lower = Spectrum(tuple(runs), 0).quantile(config.quantile, magnitude=True, above=config.null * largest)
    momentum = min(_polyak(largest, lower), config.largest_momentum) if config.learn_momentum else None
    return Choice(config.fraction * threshold_rate(optimizer, largest + lower), momentum, lower)


def _descent(runs: Sequence[Tridiagonal], largest: float, optimizer: Any, config: LearnerConfig) -> Choice:
    lower = _median(runs)
    return Choice(2 / (largest + lower), None, lower)


def _heavy_ball_median(runs: Sequence[Tridiagonal], largest: float, optimizer: Any, config: LearnerConfig) -> Choice:
    return _heavy_ball(largest, _median(runs))


def _heavy_ball_minimum(runs: Sequence[Tridiagonal], largest: float, optimizer: Any, config: LearnerConfig) -> Choice:
    values = np.concatenate([np.abs(run.values) for run in runs])
    weights = np.concatenate([run.weights / len(runs) for run in runs])
    # The bulk at zero takes more than half the weight; Ritz values that stand for it are dropped.
    while len(values) > 1 and weights.max() > 0.5:
        heaviest = weights.argmax()
        values, weights = np.delete(values, heaviest), np.delete(weights, heaviest)
    return _heavy_ball(largest, float(values.min()))


def _nesterov(runs: Sequence[Tridiagonal], largest: float, optimizer: Any, config: LearnerConfig) -> Choice:
    lower = _median(runs)
    momentum = (largest**0.5 - lower**0.5) / (largest**0.5 + lower**0.5)
    return Choice((lower / largest) ** 0.5, momentum, lower)


def _heavy_ball(largest: float, lower: float) -> Choice:
    return Choice((2 / (largest**0.5 + lower**0.5)) ** 2, _polyak(largest, lower), lower)


def _polyak(largest: float, lower: float) -> float:
    return ((largest**0.5 - lower**0.5) / (largest**0.5 + lower**0.5)) ** 2


def _median(runs: Sequence[Tridiagonal]) -> float:
    return float(np.median(np.concatenate([np.abs(run.values) for run in runs])))


RULES: dict[str, Rule] = {
    "quantile": _quantile,
    "ssgd": _descent,
    "ssgdm-median": _heavy_ball_median,
    "ssgdm-minimum": _heavy_ball_minimum,
    "ssgdmn": _nesterov,
}
"""Rules by name. All but "quantile" re-state formulas of the author's public code for training with SGD, momentum, and
Nesterov momentum, from |Ritz values|; which of them the published text reports could not be verified. In one place the
code departs from Polyak's formula by what looks like a slip (mu for its root in a denominator); Polyak's is used here.
Median and minimum of Ritz values depend on the number of iterations and are no property of the spectrum."""

PUBLISHED: dict[str, LearnerConfig] = {
    rule: LearnerConfig(
        rule=rule,
        every_epochs=20,
        iterations=20,
        batches=1,
        batch_size=1024,
        warm_up=0,
        largest_change=float("inf"),
        largest_rise=float("inf"),
        seed=5,
    )
    for rule in RULES
    if rule != "quantile"
}
"""The published setting by name: one batch of 1,024 training images, one start vector, 20 iterations, every 20 epochs.
The author's public code runs it for PreResNet-110 on CIFAR-100 with batch statistics (`batch_norm="batch"` in the
`LossSurface`), training batch 128, 300 epochs. Nothing is claimed here about what it reaches."""


class LearningRateLearner:
    """Sets an optimizer's learning rate from curvature, every few epochs.

        surface = LossSurface(model, loss, batch_norm="batch")
        learner = LearningRateLearner(optimizer, surface, data, batch_size=128, steps=epochs * len(loader))
        for epoch in range(epochs):
            learner.start_epoch(epoch)
            ...

    Curvature is measured on batches of the training batch size (the published setting: on one larger batch), with the
    preconditioner where the optimizer has one and SGD's weight decay added. A hook counts the optimizer's steps: the
    rate rises over the warm-up, is set anew behind it, and falls to zero over the training where its length is known.
    Groups keep the ratio of their rates. Under torch.distributed all processes take the first one's choice.

    Args:
        optimizer: of the model; groups need the key "lr".
        surface: the training loss; "batch" as its BatchNorm policy where the model trains with batch statistics.
        data: training samples with test-time transforms, see `as_samples`.
        batch_size: of training.
        config: see `LearnerConfig`; or a published one, `PUBLISHED["ssgd"]`.
        steps: of the whole training, over which the rate falls to zero in a straight line; None: it does not fall.

    Raises:
        DataSetTooSmallError: a batch is larger than the data set.
        UsageError: curvature bounds no rate of this optimizer.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        surface: LossSurface,
        data: Any,
        *,
        batch_size: int,
        config: LearnerConfig | None = None,
        steps: int | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.surface = surface
        self.samples = as_samples(data)
        self.config = config or LearnerConfig()
        self.batch_size = self.config.batch_size or batch_size
        self.steps = steps
        self.done = 0  # steps of the optimizer
        self.warm_up = self.config.warm_up if steps is None else min(self.config.warm_up, steps // 4)
        self.history: list[Refresh] = []
        self._seen: list[Tridiagonal] = []  # of this warm-up; an interruption loses what was measured before it
        self._spent = 0.0  # seconds on these
        if self.batch_size > len(self.samples):
            raise DataSetTooSmallError(
                f"curvature is measured on batches of {self.batch_size} and there are {len(self.samples)} samples; "
                "give more data or a smaller batch_size in the configuration"
            )
        if steps is not None and steps < 1:
            raise UsageError(f"a training of {steps} steps has no learning rate; give 1 or more, or None")
        largest = max(group["lr"] for group in optimizer.param_groups)
        self._shares = [group["lr"] / largest if largest > 0 else 1.0 for group in optimizer.param_groups]
        threshold_rate(optimizer, 1.0)
        optimizer.register_step_pre_hook(self._before_step)

    @property
    def seconds(self) -> float:
        """Time spent on refreshes so far."""
        return sum(refresh.seconds for refresh in self.history)

    def start_epoch(self, epoch: int) -> Refresh | None:
        """Refresh if this epoch is due, else return None."""
        since = epoch - self.config.first_epoch
        return self.refresh(epoch) if since >= 0 and since % self.config.every_epochs == 0 else None

    def refresh(self, epoch: int) -> Refresh:
        """Measure curvature and set the optimizer's rate, and its momentum where the rule gives one.

        Raises:
            NotFiniteError: the loss is not finite, or there is no curvature at all.
        """
        begun = time.perf_counter()
        return self._choose(epoch, self._measure(range(self.config.batches)), begun)

    def _choose(self, epoch: int, runs: Sequence[Tridiagonal], begun: float) -> Refresh:
        """Set what follows from these measurements, which took the time since `begun`; raises as `refresh`."""
        largest = float(np.mean([np.abs(run.values).max() for run in runs]))
        if not largest > 0:
            raise NotFiniteError("the loss has no curvature here, so no rate follows from it; train a few steps first")
        if self.config.rule == "quantile":
            largest += coupled_decay(self.optimizer)
        choice = Processes().first(RULES[self.config.rule](runs, largest, self.optimizer, self.config))
        rate = choice.rate
        settled = [refresh.rate for refresh in self.history if refresh.step >= self._warm_at]
        if settled:
            factor = self.config.largest_change
            rate = min(max(rate, settled[-1] / factor), settled[-1] * factor, settled[0] * self.config.largest_rise)
        for group in self.optimizer.param_groups:
            if choice.momentum is not None and "betas" in group:
                group["betas"] = (choice.momentum, *group["betas"][1:])
            elif choice.momentum is not None and "momentum" in group:
                group["momentum"] = choice.momentum
        seconds = time.perf_counter() - begun
        refresh = Refresh(epoch, self.done, rate, choice.momentum, largest, choice.lower, seconds)
        self.history.append(refresh)
        self._set_rates()
        return refresh

    def state_dict(self) -> dict[str, Any]:
        """What must be kept to go on after an interruption: plain numbers."""
        return {
            "history": [asdict(refresh) for refresh in self.history],
            "shares": list(self._shares),
            "done": self.done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.history = [Refresh(**refresh) for refresh in state["history"]]
        self._shares = list(state["shares"])
        self.done = state["done"]

    def _before_step(self, *_: Any) -> None:
        """The optimizer is about to take a step."""
        if self.history:
            if self.done <= self._warm_at and self.warm_up:
                self._warm()
            self._set_rates()
        self.done += 1

    def _warm(self) -> None:
        """Measure the batches that are due, evenly over the warm-up; at its end choose the rate."""
        begun, count = time.perf_counter(), self.config.batches
        left = self._warm_at - self.done
        due = [k for k in range(count) if left == self.warm_up * (count - 1 - k) // count]
        if due:
            self._seen += self._measure(due)
            self._spent += time.perf_counter() - begun
        if left == 0:
            self._choose(self.history[-1].epoch, self._seen, time.perf_counter() - self._spent)
            self._seen = []

    @property
    def _warm_at(self) -> int:
        """The step before which the warm-up ends."""
        return (self.history[0].step if self.history else self.done) + self.warm_up

    def _set_rates(self) -> None:
        """The rates of the step to come."""
        rate = self.history[-1].rate
        if self.done < self._warm_at:
            rate *= 1 - (self._warm_at - self.done - 1) / self.warm_up
        if self.steps is not None:
            rate *= max(0.0, 1 - self.done / self.steps)
        for group, share in zip(self.optimizer.param_groups, self._shares, strict=True):
            group["lr"] = rate * share

    def _measure(self, numbers: Iterable[int]) -> list[Tridiagonal]:
        """Curvature on some of the batches."""
        config = self.config
        whole = HessianOperator(self.surface, self.samples, distributed=False)
        drawn = draw_batches(len(self.samples), self.batch_size, config.batches, config.seed)
        batches = {number: whole.on_batch(drawn[number]) for number in numbers}
        scale = divisor(self.optimizer, self.surface, list(batches.values()))
        runs = []
        for number, batch in batches.items():
            seen: LinearOperator = batch if scale is None else PreconditionedOperator(batch, scale)
            run = run_lanczos(seen, config.iterations, seed=config.seed + number, keep_basis=False)
            runs.append(run.tridiagonal)
        return runs
