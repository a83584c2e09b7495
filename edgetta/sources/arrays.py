"""Frames from `.npy` and `.npz` arrays: which axis is which, how values are scaled, which rows cannot be used."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgetta.printable import printable
from edgetta.sources.images import MAX_PIXELS, to_eight_bits
from edgetta.sources.resize import Resize
from edgetta.sources.source import Frame, FrameSource, Skipped, SourceError
from edgetta.sources.stored import READ_ERRORS, Rows, StoredRows, as_one_row, open_npy, open_npz

SAMPLE_ROWS = 256
SAMPLE_BYTES = 64 * 2**20
"""At most so much of an array is looked at to tell how its values are scaled."""

MAX_ROW_BYTES = 2**30
"""Largest single frame that is read into memory."""

_TOLERANCE = 1e-3


@dataclass(frozen=True)
class _Scale:
    """How stored values become pixel values."""

    top: float
    words: str

    def apply(self, row: np.ndarray) -> np.ndarray:
        """To uint8 in [0, 255], or to float32 in [0, 1] where `row` is floating point.

        Raises:
            ValueError: values that are not finite or outside [0, top]; the message is the reason for skipping the row.
        """
        if row.dtype == np.uint8:
            return row
        if row.dtype.kind == "f" and not np.isfinite(row).all():
            kinds = [word for word, test in (("NaN", np.isnan), ("infinity", np.isinf)) if test(row).any()]
            raise ValueError(
                f"{' and '.join(kinds)} in {np.count_nonzero(~np.isfinite(row)):,} of {row.size:,} values"
            )
        low, high = float(row.min()), float(row.max())
        slack = _TOLERANCE * self.top if row.dtype.kind == "f" else 0
        if low < -slack or high > self.top + slack:
            raise ValueError(f"values from {low:.4g} to {high:.4g}, the array was taken to be in [0, {self.top:g}]")
        if row.dtype.kind == "f":
            return np.clip(row.astype(np.float32) / np.float32(self.top), 0, 1)
        return row.astype(np.uint8) if self.top == 255 else to_eight_bits(row)


class ArrayFrames(FrameSource):
    """Frames from one array of a file, one row at a time."""

    def __init__(
        self,
        name: str,
        stored: Rows,
        *,
        title: str,
        layout: str,
        scale: _Scale,
        resize: Resize,
        loop: bool,
    ) -> None:
        height, width, channels = _sides(stored.shape, layout)
        count = stored.shape[0]
        description = (
            f"{count:,} {'frame' if count == 1 else 'frames'} of {width} x {height}, "
            f"{channels} {'channel' if channels == 1 else 'channels'} ({layout}), {scale.words}, from {stored.where}"
        )
        super().__init__(name, description=description, length=count, loop=loop)
        self._title = title
        self._stored = stored
        self._layout = layout
        self._scale = scale
        self._resize = resize

    def read(self) -> Iterator[Frame | Skipped]:
        with closing(self._stored.rows()) as rows:
            for index in range(self._stored.shape[0]):
                try:
                    row = next(rows)
                except READ_ERRORS as error:
                    # What follows a damaged place cannot be found again: all of it is skipped, and counted.
                    for lost in range(index, self._stored.shape[0]):
                        yield Skipped(f"{self._title}[{lost}]", f"cannot be read: {error or type(error).__name__}")
                    return
                yield self._frame(row, index)

    def _frame(self, row: np.ndarray, index: int) -> Frame | Skipped:
        name = f"{self._title}[{index}]"
        try:
            values = self._scale.apply(row)
        except ValueError as reason:
            return Skipped(name, str(reason))
        image = _channels_last(values, self._layout)
        return Frame(name, self._resize.array(image, name), index, (image.shape[0], image.shape[1]))


def open_array(path: Path, key: str | None = None, *, resize: Resize, loop: bool = False) -> ArrayFrames:
    """Open an array of images.

    Shapes: (N, H, W, C) and (N, C, H, W) with C = 1, 3 or 4 (alpha is dropped), (N, H, W) grey, and (H, W, 3) for one
    image. Values: uint8; other integers in [0, 255] or [0, 65535] (scaled to 8 bits); floats in [0, 1] or [0, 255]
    (delivered in [0, 1]). Which of the two it is, is told from up to `SAMPLE_ROWS` rows, spread over the array where
    the file allows, and said in `description`; a row that contradicts it is skipped.

    Args:
        path: an `.npy` or `.npz` file. Pickled objects are never loaded.
        key: which array of an `.npz`; by default `images`, `x`, or else the first with 3 or 4 axes. An integer array
            `labels` or `y` of N entries becomes `.labels`.

    Raises:
        SourceError: not such a file, damaged, no such key, no image shape, or values in no known range.
    """
    stored: Rows
    labels: StoredRows | None = None
    try:
        if path.suffix.lower() == ".npz":
            stored, labels = open_npz(path, key)
        else:
            stored = open_npy(path)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror or error}; check the file and its owner") from error
    single = len(stored.shape) == 3 and stored.shape[-1] == 3
    if single:
        stored = as_one_row(stored)
    layout = _layout(stored)
    height, width, _ = _sides(stored.shape, layout)
    resize.check(f"every frame of {stored.where}", height, width)
    title = printable(path.name if key is None else f"{path.name}:{key}")
    source = ArrayFrames(str(path), stored, title=title, layout=layout, scale=_scale(stored), resize=resize, loop=loop)
    if labels is not None:
        source.labels = _labels(labels, stored)
    return source


def _layout(stored: Rows) -> str:
    """Which axis is which.

    Raises:
        SourceError: not the shape or type of images.
    """
    shape, dtype, where = stored.shape, stored.dtype, stored.where
    if dtype.kind not in "uif":
        raise SourceError(f"{where} holds {dtype} values; images are uint8, uint16 or floating point")
    layout = None
    if len(shape) == 3:
        layout = "NHW"
    elif len(shape) == 4:
        # RGB first, at the end and then at the front, so that a rare grey or RGBA reading never wins over it.
        rules = [(3, "NHWC"), (3, "NCHW"), (1, "NHWC"), (1, "NCHW"), (4, "NHWC"), (4, "NCHW")]
        layout = next((name for count, name in rules if shape[name.index("C")] == count), None)
    if layout is None:
        raise SourceError(
            f"{where} has shape {shape}; images are (N, H, W, 3), (N, 3, H, W), (N, H, W) or one (H, W, 3); reshape it"
        )
    if shape[0] == 0:
        raise SourceError(f"{where} has shape {shape}: no frames; give an array with at least one")
    height, width, _ = _sides(shape, layout)
    if height < 1 or width < 1:
        raise SourceError(f"{where} has shape {shape}: frames without pixels; write the file again")
    if height * width > MAX_PIXELS:
        raise SourceError(f"one frame of {where} is {width} x {height}, more than {MAX_PIXELS:,} pixels; split it up")
    if math.prod(shape[1:]) * dtype.itemsize > MAX_ROW_BYTES:
        raise SourceError(f"one frame of {where} takes more than {MAX_ROW_BYTES:,} bytes; store it as uint8")
    return layout


def _sides(shape: tuple[int, ...], layout: str) -> tuple[int, int, int]:
    """(H, W, C)."""
    channels = shape[layout.index("C")] if "C" in layout else 1
    return shape[layout.index("H")], shape[layout.index("W")], channels


def _channels_last(values: np.ndarray, layout: str) -> np.ndarray:
    """One row as (H, W, 3)."""
    if layout == "NHW":
        values = values[..., None]
    elif layout == "NCHW":
        values = np.moveaxis(values, 0, -1)
    return np.repeat(values, 3, axis=-1) if values.shape[-1] == 1 else values[..., :3]


def _scale(stored: Rows) -> _Scale:
    """Tell how values are scaled from a sample of rows.

    Raises:
        SourceError: the values are in no range that pixels have.
    """
    kind, dtype, where = stored.dtype.kind, stored.dtype, stored.where
    if dtype == np.uint8:
        return _Scale(255, "uint8")
    low, high = _range(stored)
    if kind == "f":
        if low >= -_TOLERANCE and high <= 1 + _TOLERANCE:
            return _Scale(1, f"{dtype} in [0, 1]")
        if low >= -_TOLERANCE * 255 and 2 < high <= 255 * (1 + _TOLERANCE):
            return _Scale(255, f"{dtype} in [0, 255], divided by 255")
        remedy = "undo the normalisation" if low < 0 else "scale the values"
        raise SourceError(
            f"{where} holds values from {low:.4g} to {high:.4g}, neither in [0, 1] nor in [0, 255]; {remedy} first"
        )
    if low >= 0 and high <= 255:
        return _Scale(255, f"{dtype} in [0, 255]")
    if low >= 0 and high <= 65535:
        return _Scale(65535, f"{dtype} in [0, 65535] (largest seen {high:.0f}), divided by 257")
    raise SourceError(f"{where} holds integers from {low:.0f} to {high:.0f}; pixels are in [0, 255] or [0, 65535]")


def _range(stored: Rows) -> tuple[float, float]:
    """Smallest and largest finite value of a sample of rows; (0, 0) where there is none."""
    count = stored.shape[0]
    row_bytes = math.prod(stored.shape[1:]) * stored.dtype.itemsize
    wanted = max(1, min(SAMPLE_ROWS, SAMPLE_BYTES // row_bytes))
    low, high = math.inf, -math.inf
    rows = stored.rows(max(1, count // wanted) if stored.seekable else 1)
    try:
        for _, row in zip(range(wanted), rows, strict=False):
            finite = row[np.isfinite(row)]
            if finite.size:
                low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    except READ_ERRORS:
        # Damage is told, row by row, when the frames are read.
        pass
    return (low, high) if low <= high else (0.0, 0.0)


def _labels(stored: StoredRows, images: Rows) -> np.ndarray:
    """The classes, as int64.

    Raises:
        SourceError: not one integer per image, or damaged.
    """
    count = images.shape[0]
    if math.prod(stored.shape) != count or stored.shape[:1] != (count,) or stored.dtype.kind not in "ui":
        raise SourceError(
            f"{stored.where} has shape {stored.shape} and type {stored.dtype}; labels are {count:,} integers, one per "
            "image: correct or remove them"
        )
    try:
        return np.array(list(stored.rows()), dtype=np.int64).reshape(-1)
    except READ_ERRORS as error:
        raise SourceError(f"{stored.where} cannot be read: {error}; copy the file again") from error
