"""One update: the objective of some images, its gradients through the engine, and SGD with an anchor (EcoTTA, 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetta.adaptation.config import AdaptConfig
from edgetta.adaptation.normaliser import fixed
from edgetta.adaptation.objective import Objective, divergence, filtered_entropy
from edgetta.adaptation.state import AdaptationState
from edgetta.adaptation.step_plan import KEEP, StepPlan
from edgetta.adaptation.step_rate import StepRate
from edgetta.engines.contract import Engine, Moments, Passed, Statistics
from edgetta.rate_law import RateLaw

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Learnt:
    """What an update saw and did. Predictions are those before it."""

    logits: Array  # (N, classes)
    moments: Moments | None  # the images' own
    adapted: bool  # False: something was not finite, and nothing has changed
    objective: float  # nan where no image counted, or nothing was learnt
    distance: float  # sum over parts of mean |x~_k - x_k|; nan where nothing was learnt
    kept: int  # images that counted
    kept_bytes: int  # between forward and backward


class Learner:
    """Updates the parameters of a network on an engine.

    shipped   (P,) parameters that the anchor goes back to
    """

    def __init__(self, engine: Engine, config: AdaptConfig, law: RateLaw | None, shipped: Array) -> None:
        self.engine, self.config, self.shipped = engine, config, shipped
        self.rate = StepRate(config.learning_rate, law, config.momentum, config.watched)
        self._fixed = None if config.adapt_affine else _inside_frozen_parts(engine)

    def update(
        self,
        state: AdaptationState,
        images: Array,
        statistics: Statistics,
        weights: Array | None = None,
        plan: StepPlan = KEEP,
    ) -> tuple[AdaptationState, Learnt]:
        """One update on images (N, C, H, W): the state behind it, and what it did.

        weights   (N,) how much each image counts in the objective
        plan      what is kept between forward and backward
        """
        gradients, objective, learnt = self._gradients(state, images, statistics, weights, plan)
        if not (np.isfinite(learnt.logits).all() and np.isfinite(gradients).all() and math.isfinite(learnt.distance)):
            refused = replace(learnt, adapted=False, objective=math.nan, distance=math.nan, kept=0)
            return replace(state, skipped=state.skipped + 1), refused
        rate = self.rate.choice(len(images), state.damping).rate
        momentum = self.config.momentum * state.momentum + gradients
        parameters = state.parameters - np.float32(rate) * momentum
        parameters += np.float32(self.config.anchor) * (self.shipped - parameters)
        if not np.isfinite(parameters).all():
            refused = replace(learnt, adapted=False, objective=math.nan, distance=math.nan, kept=0)
            return replace(state, skipped=state.skipped + 1), refused
        damping = state.damping
        if self.rate.watches(damping):
            after = self.engine.predict(images, parameters, statistics)
            damping = self.rate.watch(damping, divergence(learnt.logits, after), len(images))
        moved = replace(
            state,
            parameters=parameters,
            momentum=momentum,
            updates=state.updates + 1,
            empty=state.empty + (objective.kept == 0),
            damping=damping,
        )
        return moved, learnt

    def _gradients(
        self,
        state: AdaptationState,
        images: Array,
        statistics: Statistics,
        weights: Array | None,
        plan: StepPlan,
    ) -> tuple[Array, Objective, Learnt]:
        """Gradients (P,) of the objective and of `regulariser * sum_k mean |x~_k - x_k|`."""
        engine, config, count = self.engine, self.config, len(images)
        slices = _slices(count, plan.slice)
        held, distance = 0, 0.0
        passes: list[Passed] = []
        if plan.keep:
            passes = [engine.forward(images[part], state.parameters, statistics) for part in slices]
            logits = np.concatenate([passed.logits for passed in passes])
            moments = _joined([passed.moments for passed in passes], slices)
            distance = sum(passed.distance * _share(part, count) for passed, part in zip(passes, slices, strict=True))
            held = sum(passed.residuals.nbytes for passed in passes)
        else:
            pieces = _slices(count, plan.predict)
            mixing = fixed(statistics)
            measured = [engine.measure(images[part], state.parameters, mixing) for part in pieces]
            logits = np.concatenate([found for found, _ in measured])
            moments = _joined([own for _, own in measured], pieces)
        objective = filtered_entropy(logits, config.entropy_margin, weights)
        gradients = np.zeros_like(state.parameters)
        for number, part in enumerate(slices):
            pull, by_logits = config.regulariser * _share(part, count), objective.gradient[part]
            if plan.keep:
                gradients += engine.backward(passes[number].residuals, by_logits, pull, state.parameters)
            else:
                gradients += engine.recompute(images[part], by_logits, pull, state.parameters, statistics)
        if self._fixed is not None:
            gradients = np.where(self._fixed, np.float32(0), gradients)
        return gradients, objective, Learnt(logits, moments, True, objective.value, distance, objective.kept, held)


def _slices(count: int, size: int) -> list[slice]:
    """The images, `size` at a time; 0: all."""
    return [slice(start, min(start + (size or count), count)) for start in range(0, count, size or count)]


def _share(part: slice, count: int) -> float:
    return float(part.stop - part.start) / count


def _joined(moments: Sequence[Moments | None], parts: Sequence[slice]) -> Moments | None:
    """The moments of all images, of those of their parts."""
    own = [found for found in moments if found is not None]
    if len(own) < len(moments):
        return None
    counts = np.array([part.stop - part.start for part in parts], np.float32)[:, None]
    shares = counts / counts.sum()
    means = np.stack([found.mean for found in own])
    mean = (shares * means).sum(0)
    variances = np.stack([found.variance for found in own]) + np.square(means - mean)
    return Moments(mean, (shares * variances).sum(0))


def _inside_frozen_parts(engine: Engine) -> Array:
    """(P,) whether a parameter belongs to a frozen part, not to a meta-network."""
    layout = engine.programs.parameters
    fixed = np.zeros(layout.size, bool)
    for name in layout.shapes:
        fixed[layout.slice(name)] = not name.startswith("meta")
    return fixed
