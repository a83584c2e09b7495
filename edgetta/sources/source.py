"""The contract of every source of frames, and batches of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from edgetta.errors import EdgettaError, UsageError

_Self = TypeVar("_Self", bound="FrameSource")

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".pnm")
ARRAY_SUFFIXES = (".npy", ".npz")

NAMED_SKIPS = 1000
"""So many skipped frames are kept by name; the rest is only counted, so that an endless stream stays in its memory."""


class SourceError(EdgettaError):
    """A source that cannot be opened, is empty, or has a shape that no model takes."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One image, ready for the model's own normalisation.

    Attributes:
        name: what the user would call it: a path relative to the folder, `digits.npy[12]`, `camera:0[7]`.
        image: (H, W, 3), RGB: uint8 in [0, 255], or float32 in [0, 1] where the source holds floats. Contiguous, and
            the receiver's own: writing to it changes nothing else.
        index: place in the source, from 0, skipped frames counted, so that `source.labels[frame.index]` is its label.
        original: (H, W) before it was resized.
    """

    name: str
    image: np.ndarray
    index: int = 0
    original: tuple[int, int] | None = None


@dataclass(frozen=True)
class Skipped:
    """A frame that could not be used, and why."""

    name: str
    reason: str


@runtime_checkable
class Source(Protocol):
    """An iterable of frames. Iterating again starts again, where the source can (not a camera).

    Attributes:
        description: one line on what was found and how its values are read.
        length: number of frames including those that will be skipped; None where nobody knows.
        labels: (length,) integer classes, or None.
        skipped: the first `NAMED_SKIPS` skipped frames of this iteration.
        skipped_count: all skipped frames of this iteration.
    """

    description: str
    length: int | None
    labels: np.ndarray | None
    skipped: list[Skipped]
    skipped_count: int

    def __iter__(self) -> Iterator[Frame]: ...

    def close(self) -> None: ...


class FrameSource(ABC):
    """A `Source` for which it is enough to say, in `read`, which frames come and which are skipped.

    Args:
        name: what errors call the source.
        loop: start again at the end, for ever; `length` is then None.
    """

    def __init__(self, name: str, *, description: str, length: int | None, loop: bool = False) -> None:
        self.name = name
        self.description = description
        self.length = None if loop else length
        self.labels: np.ndarray | None = None
        self.skipped: list[Skipped] = []
        self.skipped_count = 0
        self._loop = loop

    @abstractmethod
    def read(self) -> Iterator[Frame | Skipped]:
        """One pass over the source."""

    def __iter__(self) -> Iterator[Frame]:
        """Frames in order; what cannot be used is counted in `skipped` instead.

        Raises:
            SourceError: the frames have another size and must not be resized, a live source stopped, or a source that
                is to be repeated for ever has no frame that can be used.
        """
        self.skipped = []
        self.skipped_count = 0
        while True:
            delivered = False
            for item in self.read():
                if isinstance(item, Skipped):
                    self.skipped_count += 1
                    if len(self.skipped) < NAMED_SKIPS:
                        self.skipped.append(item)
                else:
                    delivered = True
                    yield item
            if not self._loop:
                return
            if not delivered:
                first = f"; the first, {self.skipped[0].name}: {self.skipped[0].reason}" if self.skipped else ""
                raise SourceError(f"no frame of {self.name} can be used ({self.skipped_count} skipped{first})")

    def close(self) -> None:
        """Give back what is held open. A source that holds nothing open does nothing."""
        return None

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def batches(source: Source, size: int) -> Iterator[list[Frame]]:
    """Frames in lists of `size`, the last one shorter where the source ends.

    Raises:
        UsageError: `size` is below 1.
    """
    if size < 1:
        raise UsageError(f"a batch of {size} frames is none; use 1 or more")
    return _batches(source, size)


def _batches(source: Source, size: int) -> Iterator[list[Frame]]:
    batch: list[Frame] = []
    for frame in source:
        batch.append(frame)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
