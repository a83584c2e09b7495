"""How far the estimate of the error without labels is from the error (`Summary.estimated_error` of `edgetta.stream`).

As `edgetta prepare` does it: how much more often than they say predictions are wrong is measured on clean images that
the stream does not hold, under the four corruptions of tuning. Then the doubt of each corruption of the stream, times
that, is compared with its error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean
from typing import Any

import numpy as np

from edgetta.bench.accuracy.images import ImageCache
from edgetta.bench.accuracy.methods import SourceModel, make
from edgetta.bench.accuracy.streams import Batch, StreamSpec, batches
from edgetta.bench.baselines import Method
from edgetta.corruption import EXTRA_CORRUPTIONS

CALIBRATION_IMAGES = 256
"""Under each corruption, as `edgetta prepare` has it by default."""
CALIBRATION_SEED = 100
Pairs = dict[str, tuple[float, float]]


def estimate(source: SourceModel, spec: StreamSpec, cache: ImageCache, settings: dict[str, Any]) -> dict[str, Any]:
    """A row of the result file: errors and their estimates in %, by corruption, for the method that ships."""
    known = StreamSpec(
        "continual", CALIBRATION_IMAGES, spec.batch, CALIBRATION_SEED, corruptions=EXTRA_CORRUPTIONS, split="test"
    )
    pairs = _doubts_and_errors(make("edgetta", source, settings, 0), batches(known, cache))
    ratio = fmean(error for _, error in pairs.values()) / fmean(doubt for doubt, _ in pairs.values())
    found = _doubts_and_errors(make("edgetta", source, settings, spec.seed), batches(spec, cache))
    errors = np.array([error for _, error in found.values()])
    estimates = np.minimum(100.0, ratio * np.array([doubt for doubt, _ in found.values()]))
    return {
        "stream": spec.name,
        "model": source.weights,
        "batch": spec.batch,
        "images": spec.images,
        "seed": spec.seed,
        "settings": settings,
        "errors_per_doubt": round(ratio, 3),
        "error": round(float(errors.mean()), 3),
        "estimated_error": round(float(estimates.mean()), 3),
        "mean_absolute_error": round(float(np.abs(estimates - errors).mean()), 3),
        "correlation": round(float(np.corrcoef(estimates, errors)[0, 1]), 3) if len(errors) > 1 else None,
        "errors": {kind: round(float(error), 3) for kind, error in zip(found, errors, strict=True)},
        "estimates": {kind: round(float(value), 3) for kind, value in zip(found, estimates, strict=True)},
    }


def _doubts_and_errors(method: Method, stream: Iterable[Batch]) -> Pairs:
    """By corruption, both in %."""
    doubts, wrong = defaultdict[str, list[float]](list), defaultdict[str, list[bool]](list)
    for batch in stream:
        confidence, predicted = method(batch.images).softmax(1).max(1)
        for kind, doubt, mistaken in zip(
            batch.kinds, (1 - confidence).tolist(), (predicted != batch.labels).tolist(), strict=True
        ):
            doubts[kind].append(doubt)
            wrong[kind].append(mistaken)
    return {kind: (100 * fmean(doubts[kind]), 100 * fmean(wrong[kind])) for kind in doubts}
