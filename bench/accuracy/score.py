"""One method on one stream: its errors, what it forgot, what it kept and how long it took."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import Tensor

from edgetta.bench.accuracy.images import ImageCache
from edgetta.bench.accuracy.streams import StreamSpec, batches, clean_batches
from edgetta.bench.baselines.method import Method


@dataclass(frozen=True)
class Score:
    """Errors are percentages; `error` is the mean over corruptions."""

    error: float
    errors: dict[str, float]
    rounds: list[float]  # error of each time round, of `recurring` alone
    clean_error_before: float
    clean_error_after: float
    kept_bytes: int
    adapted_share: float  # of the batches of the stream
    seconds: float  # of the stream, on this machine

    def row(self) -> dict[str, Any]:
        """As it stands in the result file."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if len(self.rounds) < 2:
            del values["rounds"]
        return {name: _rounded(value) for name, value in values.items()}


def score(method: Method, spec: StreamSpec, cache: ImageCache, clean: int = 500) -> Score:
    """Run `method` over the stream; it is reset before.

    clean   images for the clean errors: of the fresh method, and of the method as the stream left it, on which it
            goes on adapting. 0: none are measured
    """
    method.reset()
    before = _clean_error(method, spec, cache, clean)
    method.reset()
    wrong: defaultdict[tuple[int, str], int] = defaultdict(int)
    seen: defaultdict[tuple[int, str], int] = defaultdict(int)
    count = 0
    seconds = 0.0
    for batch in batches(spec, cache):
        _tell(method, batch.labels)
        start = time.perf_counter()
        logits = method(batch.images)
        seconds += time.perf_counter() - start
        count += 1
        for kind, mistaken in zip(batch.kinds, (logits.argmax(1) != batch.labels).tolist(), strict=True):
            wrong[batch.round, kind] += mistaken
            seen[batch.round, kind] += 1
    rounds = sorted({number for number, _ in seen})
    kinds = list(dict.fromkeys(kind for _, kind in seen))
    errors = {kind: 100 * sum(wrong[r, kind] for r in rounds) / sum(seen[r, kind] for r in rounds) for kind in kinds}
    by_round = [fmean(100 * wrong[r, kind] / seen[r, kind] for kind in kinds) for r in rounds]
    updates = getattr(method, "updates", None)
    share = (updates / count) if updates is not None else float(hasattr(method, "optimizer"))
    kept = kept_bytes(method, next(iter(batches(spec, cache))).images)
    after = _clean_error(method, spec, cache, clean)
    error = fmean(error for kind, error in errors.items() if kind in spec.corruptions or len(kinds) == 1)
    return Score(error, errors, by_round, before, after, kept, share, seconds)


def kept_bytes(method: Method, images: Tensor) -> int:
    """Bytes between forward and backward: what the method says of itself; 0 where it has no backward."""
    if hasattr(method, "kept_bytes"):
        return int(method.kept_bytes)
    return int(method.saved_bytes(images)) if hasattr(method, "saved_bytes") else 0


def _tell(method: Method, labels: Tensor) -> None:
    """Only the oracle is told labels."""
    if hasattr(method, "labels"):
        method.labels = labels


def _clean_error(method: Method, spec: StreamSpec, cache: ImageCache, count: int) -> float:
    if not count:
        return 0.0
    wrong = seen = 0
    for batch in clean_batches(spec, cache, count):
        _tell(method, batch.labels)
        wrong += int((method(batch.images).argmax(1) != batch.labels).sum())
        seen += len(batch.labels)
    return 100 * wrong / max(1, seen)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value
