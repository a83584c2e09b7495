"""The adapter: predict, then update. One `step` per batch of the stream."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from edgetta.adaptation.network import AdaptiveNetwork, Tape
from edgetta.errors import UsageError
from edgetta.rate_law import RateLaw
from edgetta.segmented.blend import States, before_images, stream_alone
from edgetta.segmented.objective import Objective, entropy, filtered_entropy
from edgetta.segmented.schedule import ON_DRIFT, schedule
from edgetta.segmented.step_rate import DEFAULT_RATE, StepRate
from edgetta.segmented.stream_statistics import RUNS_SHARE, Domain, StreamStatistics

_OPTIMIZER_STATE = {
    "sgd": {"momentum": "momentum_buffer"},
    "adam": {"mean": "exp_avg", "square": "exp_avg_sq", "step": "step"},
}
"""What an optimizer remembers of a parameter: our name and torch's."""

Reason = Literal["adapted", "off", "waiting", "non-finite", "no memory"]


@dataclass(frozen=True)
class AdaptConfig:
    """How the stream is adapted to. The same names stand in TOML files and on the command line."""

    optimizer: Literal["sgd", "adam"] = "sgd"  # the rate law is one of SGD
    learning_rate: float | None = None  # None: by the rate law for the images of an update, else 5e-3
    momentum: float = 0.9  # of SGD, and Adam's first beta; the second is 0.999
    regulariser: float = 0.5  # lambda: weight of the self-distilled regularisation
    anchor: float = 0.02  # after each update, weights go back by this share of the way to those that were shipped
    entropy_margin: float = 0.4  # samples with entropy above this share of ln(classes) do not count
    passes: int = 1  # 2: the published order, a regulariser step and then an entropy step on a second forward
    when: str = (
        "always"  # "always", "off", "every N" (batches), "on-drift": until a change is settled, "budgeted P%" of time
    )
    window: int = 64  # batches smaller than `small_batch` are gathered: one update per this many images
    small_batch: int = 16
    adapt_affine: bool = (
        True  # biases and weights of frozen segments adapt too, in a bundle exported with them (--adapt)
    )
    mirrored: bool = False  # predict the mean of an image's and its mirror image's prediction: a second inference
    watched: int = 4  # first updates whose effect on the predictions may damp a rate of the law; 0: none
    statistics: Literal["stream", "batch"] = "stream"  # BatchNorm: of all images since a change, or of each batch
    statistics_images: int = 512  # "stream": images that the average reaches back, at most
    source_share: float | None = None  # "stream": of training's in the average; None: what predicts most surely
    change: float = 4.0  # "stream": so many times the usual departure from the average is a change

    def __post_init__(self) -> None:
        checks = {
            "learning_rate": self.learning_rate is None or 0 <= self.learning_rate < math.inf,
            "optimizer": self.optimizer in _OPTIMIZER_STATE,
            "momentum": 0 <= self.momentum < 1,
            "regulariser": self.regulariser >= 0 and math.isfinite(self.regulariser),
            "anchor": 0 <= self.anchor <= 1,
            "entropy_margin": 0 < self.entropy_margin <= 1,
            "passes": self.passes in (1, 2),
            "window": self.window >= 1,
            "small_batch": self.small_batch >= 1,
            "watched": self.watched >= 0,
            "statistics": self.statistics in ("stream", "batch"),
            "statistics_images": self.statistics_images >= 1,
            "source_share": self.source_share is None or 0 <= self.source_share < 1,
            "change": self.change > 0,
        }
        ranges = {
            "learning_rate": "a number of at least 0",
            "optimizer": "sgd or adam",
            "momentum": "between 0 and 1 (1 excluded)",
            "regulariser": "a number of at least 0",
            "anchor": "between 0 and 1",
            "entropy_margin": "above 0 and at most 1",
            "passes": "1 or 2",
            "window": "at least 1",
            "small_batch": "at least 1",
            "watched": "at least 0",
            "statistics": "stream or batch",
            "statistics_images": "at least 1",
            "source_share": "at least 0 and below 1",
            "change": "above 0",
        }
        for name, good in checks.items():
            if not good:
                raise UsageError(f"{name} must be {ranges[name]}, not {getattr(self, name)!r}")
        schedule(self.when)
        if self.when == ON_DRIFT and self.statistics != "stream":
            raise UsageError(f"when {ON_DRIFT!r} needs the statistics of the stream, which tell a change")

    @staticmethod
    def from_json(data: dict[str, Any]) -> AdaptConfig:
        """Settings by name; raises `UsageError` for a name that is not a setting."""
        known = {field.name for field in fields(AdaptConfig)}
        odd = sorted(set(data) - known)
        if odd:
            raise UsageError(f"unknown setting {odd[0]!r}; the settings are {', '.join(sorted(known))}")
        return AdaptConfig(**data)


def law_for(config: AdaptConfig, law: RateLaw | None) -> RateLaw | None:
    """The law, where it is one of the optimizer that is configured."""
    return law if config.optimizer == "sgd" else None


@dataclass(frozen=True)
class StepResult:
    """Predictions made before the update, and what the update did."""

    logits: Tensor  # (N, classes)
    entropy: Tensor  # (N,) in nats
    adapted: bool
    reason: Reason
    objective: float  # value of the entropy objective over the samples that count, nan without an update
    regulariser: float  # sum over parts of mean |x~_k - x_k|, nan without an update
    kept: int  # samples that counted in the update


def merged(results: Sequence[StepResult]) -> StepResult:
    """The results of the pieces of a batch as that of the batch."""
    if len(results) == 1:
        return results[0]
    updates = [result for result in results if result.adapted]
    kept = sum(result.kept for result in updates)
    return StepResult(
        torch.cat([result.logits for result in results]),
        torch.cat([result.entropy for result in results]),
        bool(updates),
        (updates or results)[0].reason,
        sum(result.objective * result.kept for result in updates) / max(1, kept) if updates else math.nan,
        sum(result.regulariser for result in updates) / len(updates) if updates else math.nan,
        kept,
    )


class Adapter:
    """Adapts a network to a stream, batch by batch.

    Counters: `steps` batches seen, `updates` made, `skipped` updates refused because something was not finite,
    `empty` updates in which no sample passed the entropy filter (only the regulariser acted). `kept_bytes` is the most
    that lay between the forward and the backward of an update.

    shipped   the values that `network.parameters()` had when it was shipped, where it is not as shipped now
    source    the network's running statistics when it was shipped, likewise
    """

    def __init__(
        self,
        network: AdaptiveNetwork,
        config: AdaptConfig | None = None,
        rate_law: RateLaw | None = None,
        shipped: Sequence[Tensor] | None = None,
        source: States | None = None,
    ) -> None:
        self.network = network
        self.config = config or AdaptConfig()
        law = law_for(self.config, rate_law)
        self.rate = StepRate(self.config.learning_rate, law, self.config.momentum, self.config.watched)
        network.adapt_affine = self.config.adapt_affine
        self._parameters = list(network.parameters())
        if self.config.anchor:
            self._shipped = [value.detach().clone() for value in shipped or self._parameters]
        self._source = source or network.statistics_snapshot()
        self.optimizer = self._make_optimizer()
        self.schedule = schedule(self.config.when)
        self.stream = StreamStatistics(self.config.statistics_images, self.config.change)
        self._recent: deque[Tensor] = deque(maxlen=self.config.window)
        self._fresh = 0
        self.steps = self.updates = self.skipped = self.empty = 0
        self.kept_bytes = 0
        self.largest_update: int | None = None  # images; set where memory is short

    @property
    def window(self) -> int:
        """Images that an update sees when batches are small: as configured, fewer where memory is short."""
        return min(self.config.window, self.largest_update or self.config.window)

    def update_images(self, batch: int) -> int:
        """Images that an update sees where the stream brings so many at a time."""
        return self.window if batch < min(self.config.small_batch, self.window) else batch

    @property
    def gathered_bytes(self) -> int:
        """Bytes of the frames in the window."""
        return sum(frame.numel() * frame.element_size() for frame in self._recent)

    def step(self, images: Tensor, gather: bool = True) -> StepResult:
        """Predict (N, C, H, W) images in [0, 1], then update.

        Small batches are predicted at once and gathered in a sliding window, which is what the update sees, unless
        `gather` is False: then the update sees the batch, however small. Where anything is raised, for want of memory
        above all, the step is undone: weights, statistics, momentum, window and counters are as before it.
        """
        statistics, counters = self._statistics(), self.counters()
        recent, fresh = list(self._recent), self._fresh
        start = time.perf_counter()
        try:
            result = self._step(images, gather)
            self.schedule.record(time.perf_counter() - start, images.shape[0], self.updates > counters["updates"])
            return result
        except BaseException:
            self._restore_statistics(statistics)
            self.optimizer.zero_grad(set_to_none=True)
            self._recent.clear()
            self._recent.extend(recent)
            self._fresh = fresh
            for name, count in counters.items():
                setattr(self, name, count)
            raise

    def predict(self, images: Tensor, track: bool = True) -> StepResult:
        """Only predict; running statistics move along unless `track` is False. Undone like `step` where it raises."""
        statistics = self._statistics()
        try:
            return self._predict(images, "no memory", track)[0]
        except BaseException:
            self._restore_statistics(statistics)
            raise

    def counters(self) -> dict[str, int]:
        return {"steps": self.steps, "updates": self.updates, "skipped": self.skipped, "empty": self.empty}

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """What the optimizer remembers, as `kind.number of the parameter`: momentum; of Adam mean, square and step."""
        return {f"{kind}.{i}": t for i, held in enumerate(self._optimizer_state()) for kind, t in held.items()}

    def restore(self, tensors: dict[str, Tensor], counters: dict[str, int]) -> None:
        """Continue where `optimizer_tensors` and `counters` were taken.

        Raises `ValueError` for a tensor that belongs to no parameter or has another shape; nothing changes then.
        """
        found: dict[int, dict[str, Tensor]] = {}
        keys = _OPTIMIZER_STATE[self.config.optimizer]
        for name, tensor in tensors.items():
            kind, _, number = name.partition(".")
            known = kind in {kind for names in _OPTIMIZER_STATE.values() for kind in names} and number.isdecimal()
            if not known or int(number) >= len(self._parameters):
                raise ValueError(f"it holds {name!r}, which belongs to no parameter of this network")
            if tensor.shape != (self._parameters[int(number)].shape if kind != "step" else ()):
                raise ValueError(f"{name!r} has another shape than its parameter")
            if kind in keys:
                found.setdefault(int(number), {})[keys[kind]] = tensor
        for i, state in found.items():
            if len(state) == len(keys):  # those of another optimizer are of no use
                parameter = self._parameters[i]
                copies = {key: t.clone() if key == "step" else t.to(parameter).clone() for key, t in state.items()}
                self.optimizer.state[parameter].update(copies)
        for name in self.counters():
            setattr(self, name, int(counters.get(name, 0)))

    def _make_optimizer(self) -> torch.optim.Optimizer:
        """Its rate is set at each update."""
        if self.config.optimizer == "adam":
            return torch.optim.Adam(self._parameters, DEFAULT_RATE, (self.config.momentum, 0.999))
        return torch.optim.SGD(self._parameters, DEFAULT_RATE, self.config.momentum)

    def _optimizer_state(self) -> list[dict[str, Tensor]]:
        """What the optimizer remembers of each parameter, by our names."""
        keys = _OPTIMIZER_STATE[self.config.optimizer]
        states = [self.optimizer.state.get(parameter, {}) for parameter in self._parameters]
        return [{kind: state[key] for kind, key in keys.items() if state.get(key) is not None} for state in states]

    def _step(self, images: Tensor, gather: bool) -> StepResult:
        small = gather and images.shape[0] < min(self.config.small_batch, self.window)
        due = self.schedule.due(self.steps, self.stream.settled)
        self.steps += 1
        if small and self.config.when != "off":
            return self._small_step(images, due)
        if not due:
            return self._predict(images, "off" if self.config.when == "off" else "waiting")[0]
        logits, objective, distance = self._update(images)
        return self._result(logits, objective, distance)

    def _small_step(self, images: Tensor, due: bool) -> StepResult:
        result, sound = self._predict(images, "waiting")
        if sound:  # a frame that is not finite would cost the window its update
            self._recent.extend(images.clone())  # the caller may fill the same buffer again
            self._fresh += images.shape[0]
        if not due or self._fresh < self.window:
            return result
        self._fresh = 0
        _, objective, distance = self._update(torch.stack(list(self._recent)[-self.window :]), track=False)
        done = self._result(result.logits, objective, distance)
        return replace(done, entropy=result.entropy)

    def _predict(self, images: Tensor, reason: Reason, track: bool = True) -> tuple[StepResult, bool]:
        """The prediction, and whether everything in it was finite; otherwise statistics are as before."""
        snapshot = self._statistics()
        logits, _ = self.forward(images, keep=False, track=track)
        sound = bool(torch.isfinite(logits).all()) and self.network.statistics_finite()
        if not sound:
            self._restore_statistics(snapshot)
        predicted = self._with_mirror(images, logits)
        return StepResult(predicted, entropy(predicted), False, reason, math.nan, math.nan, 0), sound

    def _update(self, images: Tensor, track: bool = True) -> tuple[Tensor, Objective | None, float]:
        """One update; the objective is None when it was refused, and then nothing has changed."""
        statistics = self._statistics()
        watching = self.rate.watching
        # A single pass moves weights last, when all is checked.
        learnt = self._learnt() if self.config.passes == 2 or watching else []
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate.choice(images.shape[0]).rate
        try:
            logits, objective, distance = self._try_update(images, track)
            if watching and objective is not None:
                self.rate.watch(logits, self._with_mirror(images, self.again(images, keep=False)[0]))
        except BaseException:
            self._restore_learnt(learnt)
            raise
        self.optimizer.zero_grad(set_to_none=True)
        if objective is None:
            self._restore_statistics(statistics)
            self._restore_learnt(learnt)
            self.skipped += 1
        else:
            self.updates += 1
            self.empty += objective.kept == 0
        return logits, objective, distance

    def _try_update(self, images: Tensor, track: bool) -> tuple[Tensor, Objective | None, float]:
        """As `_update`, but where the objective is None, statistics and the first of two passes may have moved."""
        predicted, tape = self.forward(images, track=track)
        self.kept_bytes = max(self.kept_bytes, sum(tape.kept_bytes().values()))
        logits, regulariser = predicted, self.config.regulariser
        if self.config.passes == 2:
            if not self._sound(logits, tape):
                return predicted, None, math.nan
            self.network.backward(tape, None, regulariser)
            predicted = self._with_mirror(images, predicted)
            if not self._apply():
                return predicted, None, math.nan
            logits, tape = self.again(images)
            regulariser = 0.0
        if not self._sound(logits, tape):
            return predicted, None, math.nan
        objective = filtered_entropy(logits, self.config.entropy_margin)
        distance = float(torch.stack(tape.distances).sum())
        self.network.backward(tape, objective.gradient, regulariser)
        if self.config.passes == 1:  # once activations are free, and before weights move
            predicted = self._with_mirror(images, predicted)
        return predicted, objective if self._apply() else None, distance

    def _with_mirror(self, images: Tensor, logits: Tensor) -> Tensor:
        """The logarithm of the mean probabilities of images and of their mirror images, where that is asked for."""
        if not self.config.mirrored:
            return logits
        other = self.again(images.flip(3), keep=False)[0]
        return torch.logaddexp(logits.log_softmax(1), other.log_softmax(1)).sub_(math.log(2))

    def forward(self, images: Tensor, keep: bool = True, track: bool = True) -> tuple[Tensor, Tape]:
        """The first forward of images, which statistics follow unless `track` is False: logits, and the tape.

        Where the statistics of the images depart from the average, it is done once more with their own.
        """
        if self.config.statistics == "batch" or (self.stream.domain is None and not track):
            return self.network.forward(images, keep=keep, track=track)
        if not track:
            return self.again(images, keep)
        before = self.stream.source
        follows = self.network.batch_norm == "auto"
        segments = [segment for _, segment in self.network.segments()]
        has_statistics = follows and any(name.endswith("running_mean") for s in segments for name in s.state)
        share = self.stream.share(images, signals_tell=not has_statistics)
        if not follows:
            return self.network.forward(images, keep=keep)
        stream = stream_alone(self.network.statistics_snapshot(), self._source, before)
        logits, tape = self._blended(images, keep, stream, share)
        if has_statistics and share < 1:
            now = [segment.state for segment in segments]
            alone = stream_alone(now, self._source[: len(now)], self.stream.source)
            if self.stream.departs(images, share, stream[: len(now)], alone):
                del logits, tape  # before another takes their place
                logits, tape = self._blended(images, keep, stream, 1.0)
        self.stream.saw(logits)
        return logits, tape

    def _blended(
        self, images: Tensor, keep: bool, stream: list[dict[str, Tensor]], share: float
    ) -> tuple[Tensor, Tape]:
        """A forward of images that have that share in the stream's statistics, blended with the source's."""

        def forward(source: float, keep: bool) -> tuple[Tensor, Tape]:
            states, momentum = before_images(stream, self._source, source, share)
            self.network.restore_statistics(states)
            return self.network.forward(images, keep=keep, share=momentum)

        source = self.config.source_share
        if source is None:
            source = self.stream.source
            if self.stream.compares:
                source = self.stream.choose_source(lambda candidate: entropy(forward(candidate, False)[0]))
            if self.stream.in_runs:
                source = max(source, RUNS_SHARE)
        self.stream.blend(source)
        return forward(source, keep)

    def again(self, images: Tensor, keep: bool = True) -> tuple[Tensor, Tape]:
        """A further forward of images that were taken in already."""
        averaged = self.config.statistics == "stream" and self.stream.domain is not None
        return self.network.forward(images, keep=keep, track=False, share=0.0 if averaged else None)

    def _statistics(self) -> tuple[list[dict[str, Tensor]], Domain | None, int]:
        """Everything that moves without learning, for `_restore_statistics`."""
        return self.network.statistics_snapshot(), self.stream.domain, self.stream.changes

    def _restore_statistics(self, snapshot: tuple[list[dict[str, Tensor]], Domain | None, int]) -> None:
        self.network.restore_statistics(snapshot[0])
        self.stream.domain, self.stream.changes = snapshot[1:]

    def _sound(self, logits: Tensor, tape: Tape) -> bool:
        """Whether everything that a forward made is finite."""
        made = torch.cat([logits.flatten(), torch.stack(tape.distances)])
        return bool(torch.isfinite(made).all()) and self.network.statistics_finite()

    def _apply(self) -> bool:
        """Move the parameters by their gradients, unless one is not finite: then nothing moves."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if gradients and not bool(torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all()):
            return False
        learnt = self._learnt()  # the activations are gone by now, so these copies raise no peak
        try:
            self.optimizer.step()
            if self.config.anchor:
                with torch.no_grad():
                    for parameter, value in zip(self._parameters, self._shipped, strict=True):
                        parameter.lerp_(value, self.config.anchor)
        except BaseException:
            self._restore_learnt(learnt)
            raise
        self.optimizer.zero_grad(set_to_none=True)
        return True

    def _learnt(self) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """Copies of every parameter and of what the optimizer remembers of it."""
        return [
            (parameter.detach().clone(), {kind: tensor.clone() for kind, tensor in state.items()})
            for parameter, state in zip(self._parameters, self._optimizer_state(), strict=True)
        ]

    @torch.no_grad()
    def _restore_learnt(self, learnt: list[tuple[Tensor, dict[str, Tensor]]]) -> None:
        keys = _OPTIMIZER_STATE[self.config.optimizer]
        for parameter, (value, state) in zip(self._parameters, learnt, strict=False):
            parameter.copy_(value)
            self.optimizer.state.pop(parameter, None)
            if state:
                self.optimizer.state[parameter].update({keys[kind]: tensor for kind, tensor in state.items()})

    def _result(self, logits: Tensor, objective: Objective | None, distance: float) -> StepResult:
        if objective is None:
            return StepResult(logits, entropy(logits), False, "non-finite", math.nan, math.nan, 0)
        kept, value = objective.kept, objective.value
        return StepResult(logits, entropy(logits), True, "adapted", value, distance, kept)
