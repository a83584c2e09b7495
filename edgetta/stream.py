"""One stream through one runtime: frames in, predictions out, adaptation on the way. What `edgetta run` does.

    source -> batches -> Runtime.step -> predictions

Whatever ends a stream (its end, a limit, an error, Ctrl-C, SIGTERM) ends it between two batches: the runtime's state
is that of whole steps, and the rows of every step are written before the next one.
"""

from __future__ import annotations

import datetime
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgetta.adaptation.normaliser import softmax
from edgetta.errors import UsageError
from edgetta.interruption import held
from edgetta.patient_rows import PatientWriter
from edgetta.predictions import Prediction, PredictionWriter
from edgetta.sources import Frame, Skipped, Source
from edgetta.sources.pictures import images_of

RECENT = 512
"""Frames that the estimate of the current error looks back."""

if TYPE_CHECKING:
    from edgetta.adaptation.adapter import StepResult
    from edgetta.runtime import Runtime


@dataclass
class Summary:
    """What a stream came to; while it runs, what it has come to so far."""

    frames: int = 0  # predicted
    resumed: int = 0  # passed over before these: they have rows already
    labelled: int = 0  # of these, how many had a label
    errors: int | None = None  # wrong predictions among the labelled; None where the source has no labels
    steps: int = 0  # batches
    adapted: int = 0  # batches after which the weights moved
    empty: int = 0  # of these, how many found no confident frame, so that only the regulariser acted
    refused: int = 0  # updates refused because something was not finite
    not_finite: int = 0  # frames whose logits were not finite
    skipped: int = 0  # frames that could not be used
    dropped: int = 0  # frames of a live source that newer ones replaced before they were taken
    skipped_frames: Sequence[Skipped] = ()  # the first of them, with reasons
    classes: dict[int, int] = field(default_factory=dict)  # class index -> predictions
    kept_bytes: int = 0  # most that lay between the forward and the backward of an update
    agreement: float | None = None  # share of the frames compared that the shipped network predicts alike; None: none
    entropy_sum: float = 0.0  # in nats, over the frames with finite logits
    recent_doubts: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))  # 1 - confidence, per frame
    errors_per_doubt: float | None = None  # of the bundle; None where it was not measured
    seconds: float = 0.0  # in all, reading and writing included
    step_seconds: float = 0.0  # of these, in prediction and adaptation

    @property
    def error_rate(self) -> float | None:
        """Share of labelled frames predicted wrong, 0 to 1; None without labels."""
        return None if self.errors is None or not self.labelled else self.errors / self.labelled

    @property
    def estimated_error(self) -> float | None:
        """Share of the latest frames that is probably wrong, 0 to 1, without labels; None where nothing tells.

        Their mean doubt, times how much more often than they say predictions were wrong on labelled source images
        under corruptions (`AccuracyCosts.errors_per_doubt`).
        """
        if self.errors_per_doubt is None or not self.recent_doubts:
            return None
        return min(1.0, self.errors_per_doubt * sum(self.recent_doubts) / len(self.recent_doubts))

    @property
    def mean_entropy(self) -> float:
        """Mean entropy of the predictions in nats; nan where there is none."""
        finite = self.frames - self.not_finite
        return self.entropy_sum / finite if finite else math.nan


@dataclass(frozen=True)
class BatchReport:
    """One step of a stream, for whoever watches it."""

    frames: Sequence[Frame]
    predicted: Sequence[int]  # class index per frame
    result: StepResult
    summary: Summary  # up to and including this batch


def run_stream(
    runtime: Runtime,
    source: Source,
    *,
    batch: int,
    writer: PredictionWriter | PatientWriter | None = None,
    on_batch: Callable[[BatchReport], None] | None = None,
    limit: int | None = None,
    label_of: Callable[[Frame], int | None] | None = None,
    summary: Summary | None = None,
    resume: bool = False,
) -> Summary:
    """Predict and adapt, batch by batch, to the end of the source.

    The source is not closed.

    Args:
        batch: frames per step; the last step may have fewer.
        writer: receives one row per frame, in order, as soon as its step is done.
        on_batch: called after each step, when its rows are written; may raise to end the stream.
        limit: end after so many frames.
        label_of: a frame's class, None where it has none; by default what the source's labels say.
        summary: filled as the stream goes and returned, so that it is at hand when the stream ends with an exception.
        resume: pass over the stored frames that have a row in the writer's file already; a live source just goes on.

    Raises:
        UsageError: `batch` or `limit` below 1, a model that takes neither 3 channels nor 1, or rows to resume behind
            that are not those of this source.
        SourceError, StorageError: from the source and the writer; the rows and steps before are whole.
    """
    if batch < 1:
        raise UsageError(f"a batch of {batch} frames is none; use 1 or more")
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} frames leaves none; use 1 or more")
    channels = runtime.bundle.input_shape[0]
    if channels not in (1, 3):
        raise UsageError(f"the bundle takes {channels} channels; sources deliver 3, and 1 can be made of them")
    summary = Summary() if summary is None else summary
    costs = runtime.bundle.accuracy_costs
    summary.errors_per_doubt = None if costs is None else costs.errors_per_doubt
    names = runtime.bundle.classes
    label_of = _labels_of(source) if label_of is None else label_of
    begun = time.perf_counter()
    delivered = iter(source)
    first = 0 if writer is None else writer.next_index
    try:
        if resume and writer is not None and source.length is not None:
            summary.resumed = _pass_over(delivered, writer)
        frames = itertools.islice(delivered, limit)
        while chosen := list(itertools.islice(frames, batch)):
            images = images_of(chosen, channels)
            with held():
                started = time.perf_counter()
                result = runtime.step(images)
                summary.step_seconds += time.perf_counter() - started
                probabilities = softmax(result.logits)
                known = np.isfinite(result.logits).all(1)
                confidence = np.where(known, probabilities.max(1), np.nan).tolist()
                predicted = result.logits.argmax(1).tolist()
                _count(summary, predicted, [label_of(frame) for frame in chosen], result)
                if writer is not None:
                    at = first + summary.frames - len(chosen)
                    writer.write(_rows(at, chosen, predicted, confidence, result, names))
            summary.seconds = time.perf_counter() - begun
            _count_skipped(summary, source)
            if on_batch is not None:
                on_batch(BatchReport(chosen, predicted, result, summary))
    finally:
        summary.seconds = time.perf_counter() - begun
        _count_skipped(summary, source)
    return summary


def _pass_over(frames: Iterator[Frame], writer: PredictionWriter | PatientWriter) -> int:
    """Take the frames that have a row, and no more; how many they were."""
    if writer.last_frame is None:
        return 0
    passed = list(deque(itertools.islice(frames, writer.next_index), maxlen=1))
    if not passed or passed[0].name != writer.last_frame:
        found = "the source ends before" if not passed else f"it is {passed[0].name!r} in the source"
        raise UsageError(
            f"row {writer.next_index - 1:,} is of {writer.last_frame!r}, and {found}: the rows are not of this "
            "source; use --append, or another file"
        )
    return writer.next_index


def _now() -> str:
    """ISO 8601, UTC, to the millisecond."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _labels_of(source: Source) -> Callable[[Frame], int | None]:
    labels = source.labels
    if labels is None:
        return lambda frame: None
    return lambda frame: int(labels[frame.index]) if frame.index < len(labels) else None


def _count(summary: Summary, predicted: Sequence[int], labels: Sequence[int | None], result: StepResult) -> None:
    finite = np.isfinite(result.logits).all(1)
    summary.frames += len(predicted)
    summary.steps += 1
    summary.adapted += result.adapted
    summary.empty += result.adapted and result.kept == 0
    summary.kept_bytes = max(summary.kept_bytes, result.kept_bytes)
    summary.refused += result.reason == "non-finite"
    summary.not_finite += len(predicted) - int(finite.sum())
    summary.entropy_sum += float(result.entropy[finite].sum())
    summary.recent_doubts.extend((1 - softmax(result.logits[finite]).max(1)).tolist())
    for guess in predicted:
        summary.classes[guess] = summary.classes.get(guess, 0) + 1
    wrong = [label != guess for label, guess in zip(labels, predicted, strict=True) if label is not None]
    if wrong:
        summary.labelled += len(wrong)
        summary.errors = (summary.errors or 0) + sum(wrong)


def _count_skipped(summary: Summary, source: Source) -> None:
    summary.skipped = source.skipped_count
    summary.dropped = getattr(source, "dropped", 0)
    summary.skipped_frames = source.skipped


def _rows(
    first: int,
    frames: Sequence[Frame],
    predicted: Sequence[int],
    confidence: Sequence[float],
    result: StepResult,
    names: Sequence[str] | None,
) -> Iterable[Prediction]:
    entropies, now = result.entropy.tolist(), _now()
    for i, frame in enumerate(frames):
        name = predicted[i] if names is None else names[predicted[i]]
        yield Prediction(first + i, frame.name, name, confidence[i], entropies[i], result.adapted, now)
