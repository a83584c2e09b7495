"""The error of methods on orders of frames, cell by cell: one order, batch, corruption and severity is a cell."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgetta.bench.accuracy.camera_networks import Network, predicted
from edgetta.bench.accuracy.images import CLEAN
from edgetta.bench.accuracy.orders import AFTER, BEFORE, PLAIN, degenerate, starts, streams
from edgetta.bench.accuracy.streams import as_tensor
from edgetta.bench.baselines import Method
from edgetta.corruption import CORRUPTIONS

FIRST, LONG, STARTS = 32, 320, 4  # frames after degenerate ones; how often their beginning is measured
BY_IMAGE = ("note", "rotta")  # predict image by image, learn every so many images: the same at every batch up to it
PERIOD = 64  # images from update to update
BOTH_SEVERITIES = ("iid", "sorted")
AFTER_KINDS = ("gaussian_noise", "motion_blur", "fog", "contrast", "pixelate")  # one of each kind of cause
Row = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """One method on one order at one batch size: the rows of all corruptions."""

    network: str
    order: str
    batch: int
    seed: int
    method: str
    images: int  # that the pool holds

    def key(self) -> Row:
        return {name: getattr(self, name) for name in ("network", "order", "batch", "seed", "method")}

    def known(self, rows: Sequence[Row]) -> list[Row]:
        """Rows of another batch size that must be those of this one."""
        if self.method not in BY_IMAGE or self.order in AFTER or PERIOD % self.batch:
            return []
        same = ("network", "order", "seed", "method", "images")
        others = [row for row in rows if all(row[name] == getattr(self, name) for name in same)]
        others = [row for row in others if PERIOD % row["batch"] == 0]
        first = [row for row in others if row["batch"] == others[0]["batch"]]
        return [{**row, "batch": self.batch, "of_batch": row.get("of_batch", row["batch"])} for row in first]


def conditions(
    order: str, severities: Sequence[int], corruptions: Sequence[str] = CORRUPTIONS
) -> list[tuple[str, int]]:
    """(corruption, severity) that an order meets: clean images as severity 0; further severities of few orders."""
    chosen = severities if order in BOTH_SEVERITIES or 5 not in severities else (5,)
    kinds = [kind for kind in corruptions if order not in AFTER or kind in AFTER_KINDS]
    return [(CLEAN, 0), *((kind, severity) for severity in chosen for kind in kinds)]


class Camera:
    """Runs the work on a network; what cells have in common is computed once."""

    def __init__(self, network: Network, corruptions: Sequence[str] = CORRUPTIONS, before: int = BEFORE) -> None:
        self.network, self.corruptions, self.before = network, corruptions, before
        self._each: dict[tuple[str, int], np.ndarray] = {}  # of the one method that predicts each image for itself
        self._fresh: tuple[tuple[str, int], dict[tuple[str, int], list[np.ndarray]]] = (("", 0), {})

    def rows(self, work: Work, done: Sequence[Row] = ()) -> Iterator[Row]:
        """The rows of the work, but those of conditions that `done` has."""
        wanted = conditions(work.order, self.network.severities, self.corruptions)
        held = {(row["corruption"], row["severity"]) for row in done}
        wanted = [condition for condition in wanted if condition not in held]
        if wanted:
            yield from (self._after if work.order in AFTER else self._plain)(work, wanted)

    def _plain(self, work: Work, wanted: list[tuple[str, int]]) -> Iterator[Row]:
        labels = self.network.pool.labels
        orders = streams(work.order, labels, work.seed)
        method: Method | None = None
        for kind, severity in wanted:
            images = self.network.pool.images(kind, severity)
            source = self.network.source_predictions(kind, severity) != labels
            began = time.perf_counter()
            if work.method != "source":
                method = method or self.network.method(work.method)
                if _alone(work):  # each image is predicted for itself, so the order changes nothing
                    if (kind, severity) not in self._each:
                        self._each[kind, severity] = run(method, images, np.arange(len(labels)), work.batch) != labels
                    found = [self._each[kind, severity][rows] for rows in orders]
                else:
                    found = []
                    for rows in orders:
                        method.reset()
                        found.append(run(method, images, rows, work.batch) != labels[rows])
            else:
                found = [source[rows] for rows in orders]
            parts = [_percent(part) for part in found]
            before = [_percent(source[rows]) for rows in orders]
            row = _row(work, kind, severity, sum(map(len, found)), float(np.mean(parts)), float(np.mean(before)))
            row["seconds"] = round(time.perf_counter() - began, 1)
            if len(parts) > 1:
                row |= {"parts": _rounded(parts), "source_parts": _rounded(before)}
            yield row

    def _after(self, work: Work, wanted: list[tuple[str, int]]) -> Iterator[Row]:
        """The first frames of several starts, and one longer stream, each from the state that is left."""
        pool, labels = self.network.pool, self.network.pool.labels
        rows = starts(len(labels), work.seed, max(FIRST, work.batch), STARTS)
        rows[0] = np.concatenate([rows[0], np.setdiff1d(np.arange(len(labels)), rows[0])])[:LONG]
        method = self.network.method(work.method)
        clean, clean_labels = pool.clean()
        forgetful = work.method in ("source", "batch_norm_statistics")
        if not forgetful:
            frames = degenerate(work.order, clean, clean_labels, work.seed, self.before)
            run(method, frames, np.arange(len(frames)), work.batch)
        back = snapshot(method)
        for kind, severity in wanted:
            began = time.perf_counter()
            images = pool.images(kind, severity)
            source = self.network.source_predictions(kind, severity) != labels
            fresh = self._fresh_errors(work, (kind, severity), images, labels, rows)
            left = fresh
            if not forgetful:
                left = [run(back(), images, part, work.batch) != labels[part] for part in rows]
            seconds = round(time.perf_counter() - began, 1)
            for frames_counted, parts in ((FIRST, range(len(rows))), (LONG, range(1))):
                errors = [
                    _percent(np.concatenate([values[i][:frames_counted] for i in parts]))
                    for values in (left, fresh, [source[part] for part in rows])
                ]
                count = min(frames_counted, len(rows[0]))
                row = _row(work, kind, severity, count, errors[0], errors[2])
                yield row | {"fresh_error": round(errors[1], 3), "starts": len(parts), "seconds": seconds}

    def _fresh_errors(
        self, work: Work, condition: tuple[str, int], images: np.ndarray, labels: np.ndarray, rows: list[np.ndarray]
    ) -> list[np.ndarray]:
        """The same frames without any before them; those of one method and batch are kept."""
        if self._fresh[0] != (work.method, work.batch):
            self._fresh = (work.method, work.batch), {}
        if condition not in self._fresh[1]:
            method = self.network.method(work.method)
            found = []
            for part in rows:
                method.reset()
                found.append(run(method, images, part, work.batch) != labels[part])
            self._fresh[1][condition] = found
        return self._fresh[1][condition]


def run(method: Method, images: np.ndarray, rows: np.ndarray, batch: int) -> np.ndarray:
    """The class that a method says of the images (N, H, W, 3) at these rows, which come `batch` at a time."""
    parts = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    return np.concatenate([predicted(method, as_tensor(images[part])) for part in parts])


def snapshot(method: Method) -> Callable[[], Method]:
    """A function that gives the method in the state that it is in now, as often as it is called."""
    if hasattr(method, "kept"):
        found: Callable[[], Method] = method.kept()
        return found
    frozen = copy.deepcopy(method)
    return lambda: copy.deepcopy(frozen)


def order_errors(
    method: Method, images: np.ndarray, labels: np.ndarray, batch: int, seed: int, orders: Sequence[str] = PLAIN
) -> dict[str, float]:
    """Error in percent of a method on somebody's own labelled images in each order; several streams: their mean.

    `images` uint8 (N, H, W, 3), `labels` int64 (N,). The method is reset before each stream, and left as the last one
    left it.
    """
    found = {}
    for order in orders:
        errors = []
        for rows in streams(order, labels, seed):
            method.reset()
            errors.append(_percent(run(method, images, rows, batch) != labels[rows]))
        found[order] = float(np.mean(errors))
    return found


def _alone(work: Work) -> bool:
    """Whether a method predicts each image for itself and learns nothing."""
    return work.method == "batch_norm_statistics" and work.batch == 1


def _percent(wrong: np.ndarray) -> float:
    return 100 * float(np.mean(wrong))


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 2) for value in values]


def _row(work: Work, kind: str, severity: int, frames: int, error: float, source_error: float) -> Row:
    row = {"order": work.order, "batch": work.batch, "corruption": kind, "severity": severity}
    row |= {"images": work.images, "frames": frames, "seed": work.seed, "network": work.network}
    return row | {"method": work.method, "error": round(error, 3), "source_error": round(source_error, 3)}
