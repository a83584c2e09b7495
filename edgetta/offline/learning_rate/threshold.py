"""The largest stable value of a knob, measured: trial runs that diverge or not, and bisection between them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from edgetta.errors import UsageError
from edgetta.offline.curvature import CurvatureError, DataOperator, GaussNewtonOperator, NotFiniteError, solve_damped

OptimizerFactory = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]
Step = Callable[[DataOperator], None]
"""One step of training on the batch that the operator holds, changing the parameters of its surface."""


@dataclass(frozen=True)
class Trial:
    """When a run counts as diverged."""

    steps: int = 100  # of the optimizer
    factor: float = 2.0  # diverged where the loss exceeds this times the loss at the start, or is not finite
    check_every: int = 2  # steps between evaluations; rare ones miss a loss that explodes and settles where it is flat
    evaluation_samples: int = 128  # on which the loss is evaluated: the first ones of the data set
    warm_batches: int = 0  # that the optimizer sees before: what it divides by is then what it is in training
    seed: int = 0  # of the batches


@dataclass(frozen=True)
class Threshold:
    """A stable and an unstable value close to each other."""

    stable: float
    unstable: float
    runs: int

    @property
    def value(self) -> float:
        """Their geometric mean."""
        return (self.stable * self.unstable) ** 0.5


def diverges(operator: DataOperator, batch_size: int, step: Step, trial: Trial) -> bool:
    """Whether training the operator's own model diverges; the model is changed.

    The loss is the surface's, its BatchNorm policy included.

    Raises:
        UsageError: the loss at the start is not positive.
        NotFiniteError: the loss at the start is not finite.
    """
    evaluation = operator.on_batch(range(min(trial.evaluation_samples, len(operator.samples))))
    start = evaluation.loss()
    if start <= 0:
        raise UsageError(f"the loss at the start is {start:.4g}; divergence is a multiple of a positive loss")
    batches = independent_batches(len(operator.samples), batch_size, trial.steps, trial.seed)
    try:
        for count, indices in enumerate(batches, 1):
            step(operator.on_batch(indices))
            due = count == trial.steps or count % trial.check_every == 0
            if due and not evaluation.loss() <= trial.factor * start:
                return True
    except NotFiniteError:
        return True
    return False


def independent_batches(samples: int, size: int, count: int, seed: int) -> Iterator[list[int]]:
    """Batches drawn anew each time, as from a large data set.

    Disjoint batches of a small one would sum to zero noise within a few steps, which momentum feels.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + size)
    for _ in range(count):
        yield torch.randperm(samples, generator=generator)[:size].tolist()


def optimizer_step(
    operator: DataOperator, factory: OptimizerFactory, rate: float, warm: Iterable[list[int]] = ()
) -> Step:
    """Steps of a torch optimizer (one that needs no closure) on the surface's parameters.

    The optimizer first sees the batches `warm` (indices) at rate 0, which moves no parameter: Adam then begins with
    the squared gradients of training, not with steps of full rate in every coordinate. Averages of gradients begin
    at 0.
    """
    parameters = list(operator.surface.parameters.values())
    optimizer = factory(parameters, rate)

    def step(batch: DataOperator) -> None:
        for parameter, part in zip(parameters, batch.surface.unflatten(batch.gradient()), strict=True):
            parameter.grad = part.clone()
        optimizer.step()

    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for indices in warm:
        step(operator.on_batch(indices))
    for group, own in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = own
    for state in optimizer.state.values():
        for name in {"momentum_buffer", "exp_avg"} & set(state):
            if state[name] is not None:
                state[name].zero_()
    return step


def gauss_newton_step(rate: float, damping: float, *, iterations: int = 20) -> Step:
    """Steps -rate (G_b + damping)^-1 g_b, with the Gauss-Newton matrix of the same batch, by conjugate gradients."""

    def step(batch: DataOperator) -> None:
        move = solve_damped(batch.as_kind(GaussNewtonOperator), batch.gradient(), damping, iterations=iterations)
        with torch.no_grad():
            for parameter, part in zip(batch.surface.parameters.values(), batch.surface.unflatten(move), strict=True):
                parameter.sub_(part, alpha=rate)

    return step


def stable_rate(
    operator: DataOperator,
    batch_size: int,
    factory: OptimizerFactory,
    *,
    start: float,
    tolerance: float = 0.1,
    trial: Trial | None = None,
) -> Threshold:
    """Measure the largest learning rate that does not diverge, from the model as it is; the model is not changed.

    Args:
        operator: gives model, loss, data and policy.
        factory: `factory(parameters, rate)` makes the optimizer.
        start: where to look first, such as a predicted rate.
        tolerance: the unstable rate is at most this much above the stable one, relatively.

    Raises:
        CurvatureError: no rate within a factor of 10,000 of `start` is a threshold.
    """

    plan = trial or Trial()

    def unstable(rate: float) -> bool:
        trained = operator.with_model(copy.deepcopy(operator.surface.model))
        warm = independent_batches(len(operator.samples), batch_size, plan.warm_batches, plan.seed + 1)
        return diverges(trained, batch_size, optimizer_step(trained, factory, rate, warm), plan)

    return bisect(unstable, start, tolerance=tolerance)


def stable_damping(
    operator: DataOperator,
    batch_size: int,
    make_step: Callable[[DataOperator, float], Step],
    *,
    start: float,
    tolerance: float = 0.1,
    trial: Trial | None = None,
) -> Threshold:
    """Measure the smallest damping that does not diverge; `make_step(operator, damping)` makes the training step.

    For damped Adam the step is `optimizer_step` with a factory that hands the damping on as `eps`; for a Gauss-Newton
    step it is `gauss_newton_step`.
    """

    def unstable(inverse: float) -> bool:
        trained = operator.with_model(copy.deepcopy(operator.surface.model))
        return diverges(trained, batch_size, make_step(trained, 1 / inverse), trial or Trial())

    found = bisect(unstable, 1 / start, tolerance=tolerance)
    return Threshold(1 / found.stable, 1 / found.unstable, found.runs)


def bisect(
    unstable: Callable[[float], bool], start: float, *, tolerance: float = 0.1, largest_factor: float = 1e4
) -> Threshold:
    """Find where `unstable` turns from False to True, by steps of 2 from `start` and then by halving the ratio.

    Args:
        unstable: false for small values, true for large ones.
        start: positive.
        tolerance: relative width at the end.
        largest_factor: how far from `start` to look.

    Raises:
        CurvatureError: nothing changes within that range.
    """
    if not start > 0 or not tolerance > 0:
        raise UsageError(f"start {start} and tolerance {tolerance} must be positive")
    stable = unstable_value = None
    value, runs = start, 0
    while stable is None or unstable_value is None:
        if not start / largest_factor <= value <= start * largest_factor:
            raise CurvatureError(
                f"no change between stable and unstable was found from {start:.3g} to {value:.3g}; start elsewhere, "
                "or check that the model trains at all"
            )
        runs += 1
        if unstable(value):
            unstable_value, value = value, value / 2
        else:
            stable, value = value, value * 2
    while unstable_value / stable > 1 + tolerance:
        middle = (stable * unstable_value) ** 0.5
        runs += 1
        if unstable(middle):
            unstable_value = middle
        else:
            stable = middle
    return Threshold(stable, unstable_value, runs)
