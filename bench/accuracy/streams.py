"""The streams: which images come, in which order, in which batches.

| stream | what it is |
|---|---|
| continual | the fifteen corruptions at severity 5, one after another, without a reset |
| gradual | each corruption's severity rises from 1 to 5 and falls again |
| mixed | the images of all fifteen corruptions, shuffled |
| correlated | continual, but within a corruption the classes come in runs (Dirichlet, Gong et al. 2022) |
| recurring | continual, again and again with the same images: what remains after long |
| alternating | each corruption between stretches of clean images |
| jpeg-shift | a network of lossless images meets JPEG copies: everywhere the same, and BatchNorm statistics hurt |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgetta.bench.accuracy.images import CLEAN, COUNTS, ImageCache, Split
from edgetta.corruption import CORRUPTIONS
from edgetta.errors import UsageError
from edgetta.sources.datasets import Images

STREAMS = ("continual", "gradual", "mixed", "correlated", "recurring", "alternating", "jpeg-shift")
SEVERITIES = (1, 2, 3, 4, 5, 4, 3, 2, 1)  # of `gradual`
CONCENTRATION = 0.1  # of the Dirichlet distribution of `correlated`
ROUNDS = 20  # of `recurring`
JPEG = "jpeg_copy"


@dataclass(frozen=True)
class StreamSpec:
    """What decides a stream."""

    name: str
    images: int  # per corruption; `jpeg-shift`: in all
    batch: int
    seed: int
    severity: int = 5
    corruptions: tuple[str, ...] = CORRUPTIONS
    split: Split = "test"
    rounds: int = ROUNDS

    def __post_init__(self) -> None:
        if self.name not in STREAMS:
            raise UsageError(f"unknown stream {self.name!r}; use one of {', '.join(STREAMS)}")
        if self.images < 1 or self.batch < 1 or self.rounds < 1:
            raise UsageError("a stream has at least one image, batch and round")


@dataclass(frozen=True, eq=False)
class Batch:
    """Images that come together."""

    images: Tensor  # float (N, C, H, W) in [0, 1]
    labels: Tensor  # int64 (N,)
    kinds: tuple[str, ...]  # the corruption of each image
    round: int = 0


@dataclass(frozen=True, eq=False)
class _Stretch:
    """Images in their order, whose last batch is not filled up from the next stretch."""

    images: np.ndarray
    labels: np.ndarray
    kinds: tuple[str, ...]


def batches(spec: StreamSpec, cache: ImageCache) -> Iterator[Batch]:
    """The stream, batch by batch. The last batch of a stretch may be smaller."""
    for number in range(spec.rounds if spec.name == "recurring" else 1):
        for stretch in _stretches(spec, cache):
            for start in range(0, len(stretch.labels), spec.batch):
                rows = slice(start, start + spec.batch)
                yield Batch(
                    as_tensor(stretch.images[rows]),
                    torch.from_numpy(stretch.labels[rows]),
                    stretch.kinds[rows],
                    number,
                )


def clean_batches(spec: StreamSpec, cache: ImageCache, count: int) -> Iterator[Batch]:
    """Clean images that the stream does not hold, to see what adaptation forgot; `count` at most."""
    first = min(spec.images, COUNTS[spec.split] - count)  # a stream of all images leaves none
    images = cache.images(spec.split, CLEAN, 1, first + count, spec.seed)
    rest = images.subset(slice(first, None))
    for start in range(0, len(rest), spec.batch):
        part = rest.subset(slice(start, start + spec.batch))
        yield Batch(as_tensor(part.images), torch.from_numpy(part.labels), (CLEAN,) * len(part))


def as_tensor(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, C) as float (N, C, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float().div_(255)


def _stretches(spec: StreamSpec, cache: ImageCache) -> Iterator[_Stretch]:
    def images(kind: str, severity: int = spec.severity) -> Images:
        return cache.images(spec.split, kind, severity, spec.images, spec.seed)

    if spec.name == "jpeg-shift":
        yield _stretch(images(CLEAN), JPEG)
    elif spec.name == "mixed":
        yield _shuffled([_stretch(images(kind), kind) for kind in spec.corruptions], spec.seed)
    elif spec.name == "gradual":
        for kind in spec.corruptions:
            parts = np.array_split(np.arange(spec.images), len(SEVERITIES))
            for rows, severity in zip(parts, SEVERITIES, strict=True):
                if len(rows):
                    yield _stretch(images(kind, severity).subset(rows), kind)
    elif spec.name == "alternating":
        clean = images(CLEAN)
        for position, kind in enumerate(spec.corruptions):
            half = spec.images // 2
            rows = (np.arange(half) + position * half) % spec.images
            yield _stretch(clean.subset(rows), CLEAN)
            yield _stretch(images(kind), kind)
    else:
        for position, kind in enumerate(spec.corruptions):
            found = images(kind)
            if spec.name == "correlated":
                found = found.subset(runs_of_classes(found.labels, spec.seed + 1000 * position))
            yield _stretch(found, kind)


def runs_of_classes(labels: np.ndarray, seed: int, slots: int = 10) -> np.ndarray:
    """An order of the images in which classes come in runs.

    Each class is divided over `slots` by shares drawn from a Dirichlet distribution; within a slot one class follows
    the other, in an order of its own.
    """
    rng = np.random.default_rng(seed)
    classes = np.unique(labels)
    order: list[list[np.ndarray]] = [[] for _ in range(slots)]
    for label in classes:
        rows = rng.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(rng.dirichlet([CONCENTRATION] * slots))[:-1] * len(rows)
        for slot, part in enumerate(np.split(rows, ends.round().astype(int))):
            order[slot].append(part)
    parts = [parts[i] for parts in order for i in rng.permutation(len(parts))]
    return np.concatenate(parts)


def _stretch(images: Images, kind: str) -> _Stretch:
    return _Stretch(images.images, images.labels, (kind,) * len(images))


def _shuffled(stretches: list[_Stretch], seed: int) -> _Stretch:
    kinds = [kind for stretch in stretches for kind in stretch.kinds]
    order = np.random.default_rng(seed).permutation(len(kinds))
    images = np.concatenate([stretch.images for stretch in stretches])
    labels = np.concatenate([stretch.labels for stretch in stretches])
    return _Stretch(images[order], labels[order], tuple(kinds[i] for i in order))
