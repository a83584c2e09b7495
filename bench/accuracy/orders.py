"""Orders of frames: what a camera shows is no shuffled test set.

| order | which frames come, one after another |
|---|---|
| iid | all images, shuffled |
| runs | classes come in runs (Dirichlet, Gong et al. 2022), as in the stream `correlated` |
| sorted | class by class |
| one-class | the images of one class alone, a stream for each class |
| two-classes | images of two classes, in turn; every class is in one pair |
| still | 12 scenes, each held for 40 frames |
| after-black, after-still, after-one-class, after-noise | shuffled, after 1,500 such frames without corruption |

A stream is an array of rows into images, each of which starts a method anew. Shuffled frames of the orders `after-*`
come as several short starts, and as one longer stream.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgetta.bench.accuracy.streams import runs_of_classes
from edgetta.errors import UsageError

SCENES, HELD = 12, 40  # of `still`
BEFORE = 1500  # degenerate frames
SHUFFLED = "iid"
PLAIN = (SHUFFLED, "runs", "sorted", "one-class", "two-classes", "still")
AFTER = ("after-black", "after-still", "after-one-class", "after-noise")
ORDERS = (*PLAIN, *AFTER)


def streams(order: str, labels: np.ndarray, seed: int) -> list[np.ndarray]:
    """The streams of a plain order: rows into images whose labels are `labels` (N,); all drawn by the seed.

    Raises `UsageError` for an unknown order.
    """
    if order not in _STREAMS:
        raise UsageError(f"unknown order {order!r}; use one of {', '.join(PLAIN)}")
    return _STREAMS[order](labels, np.random.default_rng((seed, PLAIN.index(order))))


def starts(count: int, seed: int, frames: int, starts: int) -> list[np.ndarray]:
    """At most `starts` streams of `frames` shuffled rows each, of `count` images; no image in two of them."""
    rows = np.random.default_rng((seed, len(PLAIN))).permutation(count)
    return [rows[i : i + frames] for i in range(0, count, frames)][:starts]


def degenerate(order: str, clean: np.ndarray, labels: np.ndarray, seed: int, count: int = BEFORE) -> np.ndarray:
    """What the shuffled frames of an order `after-*` come after: uint8 (count, H, W, 3).

    `clean` uint8 (N, H, W, 3) and `labels` (N,) are images to take the still picture and the class from. Raises
    `UsageError` for an unknown order.
    """
    rng = np.random.default_rng((seed, ORDERS.index(order) if order in AFTER else 0))
    shape = (count, *clean.shape[1:])
    if order == "after-black":
        return np.zeros(shape, np.uint8)
    if order == "after-still":
        return np.broadcast_to(clean[rng.integers(len(clean))], shape)
    if order == "after-one-class":
        rows = rng.permutation(np.flatnonzero(labels == rng.choice(np.unique(labels))))
        return clean[np.resize(rows, count)]
    if order == "after-noise":
        return rng.integers(0, 256, shape, np.uint8)
    raise UsageError(f"unknown order {order!r}; use one of {', '.join(AFTER)}")


def _iid(labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.permutation(len(labels))]


def _runs(labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    return [runs_of_classes(labels, int(rng.integers(2**31)))]


def _sorted(labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    return [np.argsort(labels, kind="stable")]


def _one_class(labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _two_classes(labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Pairs of classes that take turns until one has no more images; of an odd number of classes one stays out."""
    classes = rng.permutation(np.unique(labels))
    found = []
    for one, other in zip(classes[::2], classes[1::2], strict=False):
        a, b = np.flatnonzero(labels == one), np.flatnonzero(labels == other)
        length = min(len(a), len(b))
        found.append(np.stack([a[:length], b[:length]], 1).reshape(-1))
    return found


def _still(labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    return [np.repeat(rng.permutation(len(labels))[:SCENES], HELD)]


_STREAMS: dict[str, Callable[[np.ndarray, np.random.Generator], list[np.ndarray]]] = {
    "iid": _iid,
    "runs": _runs,
    "sorted": _sorted,
    "one-class": _one_class,
    "two-classes": _two_classes,
    "still": _still,
}
