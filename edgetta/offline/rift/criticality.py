"""Module robust criticality (Zhu et al. 2023, Definition 3.1): what a model's robustness loses when one module moves.

Two schedules by name. "published" is the released code's: plain SGD ascent on all images, for every module. "fast"
begins with one gradient of all modules on all images, takes few large steps on few images from there, and looks
closely only at the modules that may be least critical, in rounds of ever fewer modules on ever more images. Networks
with very many modules may be screened first, by gradient and curvature.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgetta.errors import EdgettaError, UsageError
from edgetta.offline.attack import Attack, adversarial_images, evaluation_mode
from edgetta.offline.curvature.basis import free_bytes
from edgetta.offline.rift.ascent import Rise, normalised_ascent, published_ascent
from edgetta.offline.rift.robust_loss import AdversarialSet, RobustLoss, sample_losses, whole_gradient
from edgetta.offline.rift.screening import quadratic_rise
from edgetta.offline.rift.weight_groups import WeightGroup

Schedule = Literal["fast", "published"]
Progress = Callable[[int, int, str], None]  # modules done, modules in all, a note

PUBLISHED_BATCH = 512
"""Images per step of the published ascent."""


@dataclass(frozen=True)
class CriticalityConfig:
    """How criticality is measured.

    Raises:
        UsageError: a number out of its range.
    """

    schedule: Schedule = "fast"
    epsilon: float = 0.1  # radius of a tensor's ball, as a share of its norm
    # Of the ascent in the first round, behind the step that all modules share; half in the last. Late modules, whose
    # passes take less, get up to four times as many.
    steps: int = 5
    step_images: int = 64  # for each step of the ascent, and for the screening; the first round has four times these
    screening: float = 1.0  # share of the modules that a screening lets through; 1: no screening, which pays below 0.5
    products: int = 1  # with the block of the Hessian, in the screening; 0: by the gradient alone
    finalists: int = 3  # modules that are measured on all images
    re_attack: bool = False  # attack the finalists anew at their perturbed weights, instead of fixed images
    batch: int = 250  # images at a time where nothing but the accuracy is wanted
    seed: int = 0

    def __post_init__(self) -> None:
        if self.schedule not in ("fast", "published"):
            raise UsageError(f"schedule {self.schedule!r} is unknown; choose fast or published")
        if not 0 < self.epsilon < math.inf:
            raise UsageError(f"epsilon {self.epsilon} of the weights' balls is not positive")
        if min(self.steps, self.step_images, self.finalists, self.batch) < 1 or self.products < 0:
            raise UsageError("steps, step images, finalists and batch must be 1 or more, products 0 or more")
        if not 0 < self.screening <= 1:
            raise UsageError(f"screening is a share above 0 and at most 1, not {self.screening}")


@dataclass(frozen=True)
class Score:
    """What was found out about one module."""

    name: str
    parameters: tuple[str, ...]
    rise: float  # of the robust loss; infinite where the ascent diverged
    accuracy_loss: float | None  # robust accuracy lost, 0 to 1; None where only the quadratic model was asked
    images: int  # that the rise was measured on
    screened: float | None = None  # rise by the quadratic model
    diverged: bool = False
    final: bool = True  # measured on all images: only such modules are chosen


@dataclass(frozen=True)
class Criticality:
    """Modules from the least to the most critical.

    Rises of different rounds are rises on different images, the screening's those of a quadratic model: they are
    compared within a round, and rounds among each other by who went on.
    """

    scores: tuple[Score, ...]
    skipped: tuple[str, ...]  # modules without a gradient: no forward pass uses them
    loss: float  # robust loss at the trained weights
    accuracy: float  # robust accuracy there
    images: int
    seconds: float

    @property
    def least(self) -> Score:
        """The least critical module; raises as `least_critical`."""
        return self.least_critical(1)[0]

    def least_critical(self, count: int) -> list[Score]:
        """The least critical modules of those that were measured on all images, at most `count`.

        Raises:
            EdgettaError: every ascent diverged.
        """
        good = [score for score in self.scores if score.final and not score.diverged]
        if not good:
            raise EdgettaError("the ascent diverged for every module; check the weights, or lower epsilon")
        return sorted(good, key=lambda score: score.rise)[:count]

    @property
    def most(self) -> Score:
        """The most critical module whose ascent did not diverge."""
        return next(score for score in reversed(self.scores) if not score.diverged)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers; a rise that is not finite is null."""
        rows = [asdict(s) | {"rise": s.rise if math.isfinite(s.rise) else None} for s in self.scores]
        return asdict(self) | {"scores": rows, "skipped": list(self.skipped)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Criticality:
        """Read what `to_json` wrote."""
        scores = []
        for row in data["scores"]:
            rise = math.inf if row["rise"] is None else row["rise"]
            scores.append(Score(**{**row, "rise": rise, "parameters": tuple(row["parameters"])}))
        return Criticality(**{**data, "scores": tuple(scores), "skipped": tuple(data["skipped"])})


def measure_criticality(
    model: nn.Module,
    groups: Sequence[WeightGroup],
    data: AdversarialSet,
    config: CriticalityConfig | None = None,
    *,
    attack: Attack | None = None,
    progress: Progress | None = None,
) -> Criticality:
    """How much the robust loss can rise while each group moves inside its ball, the others as trained.

    Args:
        model: in evaluation mode for as long as this takes; its weights are not touched.
        groups: from `weight_groups`; each alone. For joint criticality give one group of several modules.
        data: from `AdversarialSet.make`, in random order.
        config: the schedule.
        attack: for `re_attack`.
        progress: told of every module that is measured.

    Raises:
        UsageError: `re_attack` without an attack, or weights without any gradient.
    """
    config = config or CriticalityConfig()
    if config.re_attack and attack is None:
        raise UsageError("re_attack needs the attack that the images were made with")
    begun = time.perf_counter()
    limit = free_bytes(next(model.parameters()).device) // 2
    with evaluation_mode(model):
        loss, accuracy, gradient = whole_gradient(model, groups, data, config.batch)
        live = [group for group in groups if any(gradient[name] is not None for name in group.parameters)]
        skipped = tuple(group.name for group in groups if group not in live)
        measurement = _Measurement(model, data, config, limit, progress)
        if config.schedule == "published":
            scores = measurement.published(live, (loss, accuracy))
        else:
            screened = (
                {}
                if config.screening == 1
                else {
                    group.name: quadratic_rise(
                        model,
                        group,
                        gradient,
                        data.first(config.step_images),
                        config.epsilon,
                        products=config.products,
                        limit=limit,
                    )
                    for group in live
                }
            )
            scores = measurement.halving(live, screened, gradient, (loss, accuracy))
        if config.re_attack:
            assert attack is not None
            scores = measurement.re_attacked(scores, attack, (loss, accuracy))
    # A module that was left behind in a round is more critical than those that went on, whatever its rise there.
    order = sorted(scores, key=lambda score: (score.diverged, -score.images, score.rise, score.name))
    return Criticality(tuple(order), skipped, loss, accuracy, len(data), time.perf_counter() - begun)


class _Measurement:
    """One run over the modules of a model."""

    def __init__(
        self,
        model: nn.Module,
        data: AdversarialSet,
        config: CriticalityConfig,
        limit: int,
        progress: Progress | None,
    ) -> None:
        self.model, self.data, self.config, self.limit, self.progress = model, data, config, limit, progress
        self.found: dict[str, Rise] = {}  # of the last round that a module took part in

    def published(self, groups: Sequence[WeightGroup], base: tuple[float, float]) -> list[Score]:
        generator = torch.Generator().manual_seed(self.config.seed)
        scores = []
        for number, group in enumerate(groups):
            robust = RobustLoss(self.model, group, self.data, PUBLISHED_BATCH, limit=0)
            rise = published_ascent(robust, self.config.epsilon, base, generator)
            self.found[group.name] = rise
            scores.append(_score(group, rise, len(self.data), None, final=True))
            self._tell(number + 1, len(groups), group.name)
        return scores

    def halving(
        self,
        groups: Sequence[WeightGroup],
        screened: dict[str, float],
        gradient: Mapping[str, Tensor | None],
        base: tuple[float, float],
    ) -> list[Score]:
        """Rounds of ever fewer modules on ever more images; the last one takes all images.

        Args:
            screened: rises by the quadratic model, where they were asked for.
            gradient, base: on all images, at the trained weights.
        """
        few = min(self.config.step_images, len(self.data))
        scores = {
            group.name: Score(
                group.name, group.parameters, screened[group.name], None, few, screened[group.name], final=False
            )
            for group in groups
            if group.name in screened
        }
        rounds = _rounds(len(groups), len(self.data), self.config)
        total, done = sum(count for count, *_ in rounds), 0
        remaining = sorted(groups, key=lambda group: screened.get(group.name, 0.0))
        for count, images, final in rounds:
            some = self.data.first(images)
            reference = base if final else self.base(some)
            remaining = remaining[:count]
            for group in remaining:
                earlier = self.found.get(group.name)
                start = None if earlier is None or earlier.diverged else earlier.weights
                steps, batch = self.config.steps, self.config.step_images
                if start is not None:
                    steps, batch = max(1, steps // 2), 2 * batch
                robust = RobustLoss(self.model, group, some, batch, self.limit)
                rise = normalised_ascent(robust, self.config.epsilon, steps, reference, start, gradient)
                self.found[group.name] = rise
                scores[group.name] = _score(group, rise, len(some), screened.get(group.name), final)
                done += 1
                self._tell(done, total, group.name)
            remaining = sorted(remaining, key=lambda group: scores[group.name].rise)
        return list(scores.values())

    def re_attacked(self, scores: Sequence[Score], attack: Attack, base: tuple[float, float]) -> list[Score]:
        """The finalists' rise when the attacker knows the perturbed weights, not only the trained ones."""
        renewed = []
        for score in scores:
            if not score.final or score.diverged:
                renewed.append(score)
                continue
            rise = self._attacked_anew(self.found[score.name], attack, base)
            group = WeightGroup(score.name, score.parameters)
            renewed.append(_score(group, rise, len(self.data), score.screened, final=True))
        return renewed

    def base(self, data: AdversarialSet) -> tuple[float, float]:
        """Loss and accuracy at the trained weights."""
        name = next(iter(dict(self.model.named_parameters())))
        return RobustLoss(self.model, WeightGroup("", (name,)), data, self.config.batch, limit=0).at({})

    def _attacked_anew(self, rise: Rise, attack: Attack, base: tuple[float, float]) -> Rise:
        parameters = dict(self.model.named_parameters())
        trained = {name: parameters[name].detach().clone() for name in rise.weights}
        try:
            with torch.no_grad():
                for name, value in rise.weights.items():
                    parameters[name].copy_(value)
            found = adversarial_images(
                self.model, self.data.clean, self.data.labels, attack, batch=self.config.batch, seed=self.config.seed
            )
            # Each image counts with the worse of both points: that for the trained weights is still in reach.
            told = [
                sample_losses(self.model, some, self.data.labels, self.config.batch)
                for some in (found, self.data.images)
            ]
            loss = float(torch.maximum(told[0][0], told[1][0]).mean())
            accuracy = float((told[0][1] & told[1][1]).float().mean())
        finally:
            with torch.no_grad():
                for name, value in trained.items():
                    parameters[name].copy_(value)
        return Rise(loss - base[0], base[1] - accuracy, rise.weights, not math.isfinite(loss))

    def _tell(self, done: int, total: int, note: str) -> None:
        if self.progress is not None:
            self.progress(done, total, note)


def _rounds(modules: int, images: int, config: CriticalityConfig) -> list[tuple[int, int, bool]]:
    """Modules and images of each round, and whether it is the last."""
    finalists = min(config.finalists, modules)
    count = max(finalists, math.ceil(config.screening * modules))
    some = 4 * config.step_images
    return [*([(count, some, False)] if some < images else []), (finalists if some < images else count, images, True)]


def _score(group: WeightGroup, rise: Rise, images: int, screened: float | None, final: bool) -> Score:
    lost = None if rise.diverged else rise.accuracy
    return Score(group.name, group.parameters, rise.loss, lost, images, screened, rise.diverged, final)
