"""The adapter: normalise, predict, then learn if an update is due. One `step` per batch of the stream."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgetta.adaptation.comparison import Comparison
from edgetta.adaptation.config import AdaptConfig
from edgetta.adaptation.content import ContentModel
from edgetta.adaptation.learner import Learner, Learnt
from edgetta.adaptation.normaliser import FRESH, Gathered, Normaliser, StreamState, fixed
from edgetta.adaptation.objective import entropy, mirrored
from edgetta.adaptation.schedule import schedule
from edgetta.adaptation.state import AdaptationState
from edgetta.adaptation.step_plan import KEEP, StepPlan
from edgetta.engines.contract import Engine, Mixing, Moments, Statistics
from edgetta.rate_law import RateLaw

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

Reason = Literal["adapted", "off", "waiting", "nothing new", "held back", "non-finite", "no memory"]

NEW = 0.05
"""Images of less novelty than this are those before them once more: nothing is learnt from them."""
EVERY = 3
"""Once the average reaches back as far as it may, every so many batches that are only predicted are measured."""
COMPARED = 32
"""One image of so many is predicted by the shipped network as well; all are in the first ones after a change."""


@dataclass(frozen=True)
class StepResult:
    """Predictions made before the update, and what the update did."""

    logits: Array  # (N, classes)
    entropy: Array  # (N,) in nats
    adapted: bool
    reason: Reason
    objective: float  # value of the entropy objective over the images that count, nan without an update
    regulariser: float  # sum over parts of mean |x~_k - x_k|, nan without an update
    kept: int  # images that counted in the update
    kept_bytes: int = 0  # held between the forward and the backward of the update


def merged(results: Sequence[StepResult]) -> StepResult:
    """The results of the pieces of a batch as that of the batch."""
    if len(results) == 1:
        return results[0]
    updates = [result for result in results if result.adapted]
    kept = sum(result.kept for result in updates)
    counted = [result for result in updates if result.kept]
    return StepResult(
        np.concatenate([result.logits for result in results]),
        np.concatenate([result.entropy for result in results]),
        bool(updates),
        (updates or results)[0].reason,
        sum(result.objective * result.kept for result in counted) / kept if counted else math.nan,
        sum(result.regulariser for result in updates) / len(updates) if updates else math.nan,
        kept,
        max(result.kept_bytes for result in results),
    )


class Adapter:
    """Adapts a network to a stream, batch by batch. `state` is all that changes.

    A step that raises, for want of memory above all, leaves the state as it was.

    Args:
        engine: runs the network's programs.
        content: what content explains of the network's moments; None where it was not measured.
        rate_law: gives the learning rate, where none was configured.
    """

    def __init__(
        self,
        engine: Engine,
        config: AdaptConfig | None = None,
        content: ContentModel | None = None,
        rate_law: RateLaw | None = None,
    ) -> None:
        self.engine = engine
        self.config = config or AdaptConfig()
        programs = engine.programs
        self.normaliser = Normaliser(
            programs.statistics,
            programs.source,
            content,
            programs.classes,
            programs.input_shape[0],
            limit=self.config.statistics_images,
            change=self.config.change,
        )
        self.learner = Learner(engine, self.config, rate_law, programs.shipped)
        self._due = schedule(self.config.when)
        self.state = self.begin()

    def begin(self) -> AdaptationState:
        """The state of the network as shipped."""
        programs = self.engine.programs
        return AdaptationState(
            programs.shipped,
            np.zeros_like(programs.shipped),
            self.normaliser.begin(),
            np.zeros((0, *programs.input_shape), np.float32),
        )

    @property
    def settled(self) -> bool:
        """Whether the stream has not changed for so many images that the average reaches back as far as it may."""
        return self.state.stream.average.count >= self.normaliser.limit

    def gathers(self, batch: int) -> bool:
        """Whether batches of so many images are gathered before an update."""
        return self.config.gathers(batch)

    def update_images(self, batch: int) -> int:
        """Images that an update learns from where the stream brings so many at a time."""
        return self.config.update_images(batch)

    def step(self, images: Array, plan: StepPlan = KEEP, gather: bool | None = None) -> StepResult:
        """Predict images (N, C, H, W), float32 in [0, 1], then learn if an update is due.

        plan     what the step may use of memory
        gather   whether the images are gathered with others for an update; by default small batches are
        """
        start = time.perf_counter()
        state, count = replace(self.state, steps=self.state.steps + 1), len(images)
        due = self._due(self.state.steps, self.settled, state.spent)
        small = self.gathers(count) if gather is None else gather
        usable = np.isfinite(images.sum((1, 2, 3)))
        if usable.all():
            after, result = self._step(state, images, plan, due, small)
        else:
            after, result = self._step_of_usable(state, images, usable, plan, due, small)
        if self.config.when.startswith("budgeted"):  # for which alone the clock is asked
            updated = after.updates > state.updates
            after = replace(after, spent=state.spent.after(time.perf_counter() - start, count, updated))
        self.state = after
        return result

    def predict(self, images: Array, track: bool = True, plan: StepPlan = KEEP) -> StepResult:
        """Only predict; statistics move along unless `track` is False."""
        state, logits = self._predicted(self.state, images, plan, track)
        self.state = state
        return _prediction(logits, "no memory")

    def _step(
        self, state: AdaptationState, images: Array, plan: StepPlan, due: bool, small: bool
    ) -> tuple[AdaptationState, StepResult]:
        off = self.config.when == "off"
        if small and not off:
            return self._small_step(state, images, plan, due)
        if not due:
            state, logits = self._predicted(state, images, plan)
            return state, _prediction(logits, "off" if off else "waiting")
        return self._learning_step(state, images, plan)

    def _step_of_usable(
        self, state: AdaptationState, images: Array, usable: Array, plan: StepPlan, due: bool, small: bool
    ) -> tuple[AdaptationState, StepResult]:
        """A step on the images that are finite; of the others there is no prediction, and nothing is taken."""
        state = replace(state, unusable=state.unusable + int(np.logical_not(usable).sum()))
        logits = np.full((len(images), self.engine.programs.classes), np.nan, np.float32)
        if not usable.any():
            return state, _prediction(logits, "non-finite")
        after, result = self._step(state, images[usable], plan, due, small)
        logits[usable] = result.logits
        return after, replace(result, logits=logits, entropy=entropy(logits))

    def _learning_step(
        self, state: AdaptationState, images: Array, plan: StepPlan
    ) -> tuple[AdaptationState, StepResult]:
        """Predict all images, learn from some: what these show of the stream is taken from the same forward."""
        stream, novelty = self._seen(state.stream, images)
        count = min(len(images), plan.learn or self.config.learn_images, self.config.learn_images)
        chosen = np.argsort(-novelty, kind="stable")[:count] if novelty.min() < NEW else np.arange(count)
        chosen = np.sort(chosen[novelty[chosen] >= NEW])
        if not len(chosen) or stream.comparison.held:
            moved, logits = self._predicted(state, images, plan)
            held = moved.stream.comparison.held
            return moved, _prediction(logits, "held back" if held or len(chosen) else "nothing new")
        if self._fresh(stream, len(images)):
            return self._settled_learning(state, stream, images, novelty, chosen, plan)
        statistics = self._statistics(stream)
        moved, learnt = self.learner.update(replace(state, stream=stream), images[chosen], statistics, None, plan)
        followed, changed = self._followed(stream, float(novelty[chosen].sum()), learnt)
        if changed:  # nothing is kept that was learnt with the statistics of another domain
            return self._settled_learning(state, followed, images, novelty, chosen, plan)
        logits = np.empty((len(images), self.engine.programs.classes), np.float32)
        logits[chosen] = learnt.logits
        rest = np.setdiff1d(np.arange(len(images)), chosen)
        if len(rest):
            logits[rest] = self._run(images[rest], state.parameters, statistics, plan)
        if learnt.adapted:
            moved = replace(moved, stream=self._compared(followed, state.steps, images, logits))
        return moved, _update(self._with_mirror(images, logits, state.parameters, statistics, plan), learnt)

    def _settled_learning(
        self,
        state: AdaptationState,
        stream: StreamState,
        images: Array,
        novelty: Array,
        chosen: Array,
        plan: StepPlan,
    ) -> tuple[AdaptationState, StepResult]:
        """As `_learning_step`, where the batch's own moments count in its statistics."""
        after, statistics, logits = self._settled(state, stream, images, novelty, plan)
        if after.comparison.held:
            return replace(state, stream=after), _prediction(logits, "held back")
        moved, learnt = self.learner.update(replace(state, stream=after), images[chosen], statistics, None, plan)
        if not (np.isfinite(logits).all() and _finite(after.average)):
            moved = replace(moved, stream=stream)
        return moved, _update(self._with_mirror(images, logits, state.parameters, statistics, plan), learnt)

    def _small_step(
        self, state: AdaptationState, images: Array, plan: StepPlan, due: bool
    ) -> tuple[AdaptationState, StepResult]:
        """Predict at once, gather what is new, and learn when there is a window of it."""
        novelty = self.normaliser.novelty(state.stream, images)[0]
        state, logits = self._predicted(state, images, plan)
        result = _prediction(logits, "waiting")
        new = images[(novelty >= NEW) & np.isfinite(logits).all(1)]
        if not len(new):
            return state, replace(result, reason="nothing new" if np.isfinite(logits).all() else "non-finite")
        window = np.concatenate([state.window, new])[-self.config.window :]
        state = replace(state, window=window, fresh=state.fresh + len(new))
        if not due or state.fresh < min(self.config.window, plan.learn or self.config.window):
            return state, result
        latest = window[-min(plan.learn or self.config.learn_images, self.config.learn_images) :]
        moved, learnt = self.learner.update(state, latest, self._statistics(state.stream), None, plan)
        done = _update(logits, learnt)
        return replace(moved, fresh=0.0), replace(done, entropy=result.entropy)

    def _predicted(
        self, state: AdaptationState, images: Array, plan: StepPlan, track: bool = True
    ) -> tuple[AdaptationState, Array]:
        """The state behind a batch that is only predicted, and its logits (N, classes)."""
        parameters = state.parameters
        if not track or self.config.batch_norm == "source" or not self.engine.programs.statistics.size:
            statistics = self._statistics(state.stream)
            logits = self._run(images, parameters, statistics, plan)
            return state, self._with_mirror(images, logits, parameters, statistics, plan)
        stream, novelty = self._seen(state.stream, images)
        if self._fresh(stream, len(images)):
            stream, statistics, logits = self._settled(state, stream, images, novelty, plan)
        elif self.settled and state.steps % EVERY and not stream.comparison.held:
            statistics = self._statistics(stream)
            logits = self._run(images, parameters, statistics, plan)
            stream = self._compared(stream, state.steps, images, logits)
        else:
            statistics = self._statistics(stream)
            count = min(len(images), self.config.measure_images, plan.predict or len(images))
            first, own = self.engine.measure(images[:count], parameters, fixed(statistics))
            stream, changed = self.normaliser.follow(stream, float(novelty[:count].sum()), own, first)
            if changed:
                stream, statistics, logits = self._settled(state, stream, images, novelty, plan)
            elif stream.comparison.held:
                logits = self._shipped(images, plan)
                stream = replace(stream, comparison=self._joined(stream, logits[:count], first))
            else:
                rest = [self._run(images[count:], parameters, statistics, plan)] if count < len(images) else []
                logits = np.concatenate([first, *rest])
                stream = self._compared(stream, state.steps, images, logits)
        if not (np.isfinite(logits).all() and _finite(stream.average)):
            stream = state.stream
        return replace(state, stream=stream), self._with_mirror(images, logits, parameters, statistics, plan)

    def _compared(self, stream: StreamState, step: int, images: Array, logits: Array) -> StreamState:
        """With some images predicted by the shipped network, too: all of the first ones, later one of `COMPARED`."""
        if self.config.batch_norm != "stream":
            return stream
        if stream.average.count < FRESH:
            some = images
        elif len(images) >= COMPARED:
            some = images[: len(images) // COMPARED]
        else:
            period = COMPARED // len(images)
            some = images[:1] if step % period == 0 else images[:0]
        if not len(some):
            return stream
        shipped = self._shipped(some, KEEP)
        return replace(stream, comparison=self._joined(stream, shipped, logits[: len(some)]))

    def _joined(self, stream: StreamState, shipped: Array, adapted: Array) -> Comparison:
        return stream.comparison.joined(shipped, adapted, self.config.hold_back)

    def _shipped(self, images: Array, plan: StepPlan) -> Array:
        """Logits of the network as it was shipped."""
        programs = self.engine.programs
        return self._run(images, programs.shipped, programs.source, plan)

    def _seen(self, stream: StreamState, images: Array) -> tuple[StreamState, Array]:
        """The stream with these images as its latest, and how new each of them is (N,)."""
        novelty, last = self.normaliser.novelty(stream, images)
        return replace(stream, last=last), novelty

    def _fresh(self, stream: StreamState, images: int) -> bool:
        return self.config.batch_norm == "batch" or (
            self.config.batch_norm == "stream"
            and self.engine.programs.statistics.size > 0
            and self.normaliser.is_fresh(stream, images)
        )

    def _settled(
        self, state: AdaptationState, stream: StreamState, images: Array, novelty: Array, plan: StepPlan
    ) -> tuple[StreamState, Statistics, Array]:
        """Stream, statistics and logits where a batch's own moments count in its statistics.

        The moments are those of as many images as may go at a time.
        """
        count = min(len(images), plan.predict or len(images))

        def measure(mixing: Mixing) -> tuple[Array, Moments]:
            return self.engine.measure(images[:count], state.parameters, mixing)

        if self.config.batch_norm == "batch":
            source = self.engine.programs.source
            logits, own = measure(Mixing.plain(Moments(source.mean, source.variance), 1.0))
            statistics = Statistics(own.mean, own.variance)
        else:
            weight = float(novelty[:count].sum())
            logits, statistics, stream = self.normaliser.settle(stream, weight, measure)
        if count < len(images):
            logits = np.concatenate([logits, self._run(images[count:], state.parameters, statistics, plan)])
        if self.config.batch_norm == "stream":
            shipped = self._shipped(images, plan)
            comparison = self._joined(stream, shipped, logits)
            stream, logits = replace(stream, comparison=comparison), shipped if comparison.held else logits
        return stream, statistics, logits

    def _followed(self, stream: StreamState, weight: float, learnt: Learnt) -> tuple[StreamState, bool]:
        if self.config.batch_norm != "stream" or learnt.moments is None or not learnt.adapted:
            return stream, False
        return self.normaliser.follow(stream, weight, learnt.moments, learnt.logits)

    def _statistics(self, stream: StreamState) -> Statistics:
        if self.config.batch_norm != "stream":
            return self.engine.programs.source
        return self.normaliser.statistics(stream)

    def _run(self, images: Array, parameters: Array, statistics: Statistics, plan: StepPlan) -> Array:
        size = plan.predict or len(images)
        pieces = [
            self.engine.predict(images[start : start + size], parameters, statistics)
            for start in range(0, len(images), size)
        ]
        return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]

    def _with_mirror(
        self, images: Array, logits: Array, parameters: Array, statistics: Statistics, plan: StepPlan
    ) -> Array:
        """The mean with the mirror images' predictions, where that is asked for."""
        if not self.config.mirrored:
            return logits
        return mirrored(logits, self._run(np.ascontiguousarray(images[..., ::-1]), parameters, statistics, plan))


def _prediction(logits: Array, reason: Reason) -> StepResult:
    return StepResult(logits, entropy(logits), False, reason, math.nan, math.nan, 0)


def _update(logits: Array, learnt: Learnt) -> StepResult:
    return StepResult(
        logits,
        entropy(logits),
        learnt.adapted,
        "adapted" if learnt.adapted else "non-finite",
        learnt.objective,
        learnt.distance,
        learnt.kept,
        learnt.kept_bytes,
    )


def _finite(gathered: Gathered) -> bool:
    return bool(np.isfinite(gathered.mean).all() and np.isfinite(gathered.variance).all())
