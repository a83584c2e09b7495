"""One stream through one runtime: frames in, predictions out, adaptation on the way. What `edgetta run` does.

    source -> batches -> Runtime.step -> predictions

Whatever ends a stream (its end, a limit, an error, Ctrl-C, SIGTERM) ends it between two batches: the runtime's state
is that of whole steps, and the rows of every step are written before the next one.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edgetta.errors import UsageError
from edgetta.interruption import held
from edgetta.predictions import Prediction, PredictionWriter
from edgetta.sources import Frame, Skipped, Source

if TYPE_CHECKING:
    from edgetta.adaptation.adapter import StepResult
    from edgetta.runtime import Runtime

_LUMA = (0.299, 0.587, 0.114)


@dataclass
class Summary:
    """What a stream came to; while it runs, what it has come to so far."""

    frames: int = 0  # predicted
    labelled: int = 0  # of these, how many had a label
    errors: int | None = None  # wrong predictions among the labelled; None where the source has no labels
    steps: int = 0  # batches
    adapted: int = 0  # batches after which the weights moved
    refused: int = 0  # updates refused because something was not finite
    not_finite: int = 0  # frames whose logits were not finite
    skipped: int = 0  # frames that could not be used
    skipped_frames: tuple[Skipped, ...] = ()  # the first of them, with reasons
    classes: dict[int, int] = field(default_factory=dict)  # class index -> predictions
    entropy_sum: float = 0.0  # in nats, over the frames with finite logits
    seconds: float = 0.0  # in all, reading and writing included
    step_seconds: float = 0.0  # of these, in prediction and adaptation

    @property
    def error_rate(self) -> float | None:
        """Share of labelled frames predicted wrong, 0 to 1; None without labels."""
        return None if self.errors is None or not self.labelled else self.errors / self.labelled

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
    writer: PredictionWriter | None = None,
    on_batch: Callable[[BatchReport], None] | None = None,
    limit: int | None = None,
    summary: Summary | None = None,
) -> Summary:
    """Predict and adapt, batch by batch, to the end of the source.

    The source is not closed.

    Args:
        batch: frames per step; the last step may have fewer.
        writer: receives one row per frame, in order, as soon as its step is done.
        on_batch: called after each step, when its rows are written; may raise to end the stream.
        limit: end after so many frames.
        summary: filled as the stream goes and returned, so that it is at hand when the stream ends with an exception.

    Raises:
        UsageError: `batch` or `limit` below 1, or a model that takes neither 3 channels nor 1.
        SourceError, StorageError: from the source and the writer; the rows and steps before are whole.
    """
    if batch < 1:
        raise UsageError(f"a batch of {batch} frames is none; use 1 or more")
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} frames leaves none; use 1 or more")
    channels = runtime.bundle.model.input_shape[0]
    if channels not in (1, 3):
        raise UsageError(f"the bundle takes {channels} channels; sources deliver 3, and 1 can be made of them")
    summary = Summary() if summary is None else summary
    names = runtime.bundle.classes
    labels = source.labels
    begun = time.perf_counter()
    frames = itertools.islice(source, limit)
    try:
        while chosen := list(itertools.islice(frames, batch)):
            images = images_of(chosen, channels)
            with held():
                started = time.perf_counter()
                result = runtime.step(images)
                summary.step_seconds += time.perf_counter() - started
                confidence, predicted = (t.tolist() for t in torch.softmax(result.logits, 1).max(1))
                _count(summary, chosen, predicted, result, labels)
                if writer is not None:
                    writer.write(_rows(summary.frames - len(chosen), chosen, predicted, confidence, result, names))
            summary.seconds = time.perf_counter() - begun
            _count_skipped(summary, source)
            if on_batch is not None:
                on_batch(BatchReport(chosen, predicted, result, summary))
    finally:
        summary.seconds = time.perf_counter() - begun
        _count_skipped(summary, source)
    return summary


def images_of(frames: Sequence[Frame], channels: int = 3) -> Tensor:
    """Frames as one tensor: uint8 (N, H, W, 3), or float32 (N, C, H, W) in [0, 1] where one holds floats or C is 1.

    Grey is the luma of ITU-R 601, as image libraries compute it.
    """
    if all(frame.image.dtype == np.uint8 for frame in frames) and channels == 3:
        return torch.from_numpy(np.stack([frame.image for frame in frames]))
    pictures = [frame.image / np.float32(255) if frame.image.dtype == np.uint8 else frame.image for frame in frames]
    images = torch.from_numpy(np.stack(pictures).astype(np.float32, copy=False)).permute(0, 3, 1, 2)
    if channels == 1:
        images = (images * torch.tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return images.contiguous()


def _count(
    summary: Summary, frames: Sequence[Frame], predicted: Sequence[int], result: StepResult, labels: np.ndarray | None
) -> None:
    finite = torch.isfinite(result.logits).all(1)
    summary.frames += len(frames)
    summary.steps += 1
    summary.adapted += result.adapted
    summary.refused += result.reason == "non-finite"
    summary.not_finite += len(frames) - int(finite.sum())
    summary.entropy_sum += float(result.entropy[finite].sum())
    for label in predicted:
        summary.classes[label] = summary.classes.get(label, 0) + 1
    if labels is not None:
        pairs = zip(frames, predicted, strict=True)
        wrong = [int(labels[frame.index]) != guess for frame, guess in pairs if frame.index < len(labels)]
        summary.labelled += len(wrong)
        summary.errors = (summary.errors or 0) + sum(wrong)


def _count_skipped(summary: Summary, source: Source) -> None:
    summary.skipped = source.skipped_count
    summary.skipped_frames = tuple(source.skipped)


def _rows(
    first: int,
    frames: Sequence[Frame],
    predicted: Sequence[int],
    confidence: Sequence[float],
    result: StepResult,
    names: Sequence[str] | None,
) -> Iterable[Prediction]:
    entropies = result.entropy.tolist()
    for i, frame in enumerate(frames):
        name = predicted[i] if names is None else names[predicted[i]]
        yield Prediction(first + i, frame.name, name, confidence[i], entropies[i], result.adapted)
