"""Predictions as they leave the stream: one row per frame, as JSON lines or CSV, safe from whatever ends the run."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import stat
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from edgetta.errors import UsageError
from edgetta.printable import printable
from edgetta.storage import storage_error

FORMATS = ("jsonl", "csv")
COLUMNS = ("index", "frame", "class", "confidence", "entropy", "adapted", "time")
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv"}

_TAIL = 1 << 16
"""Bytes at the end of a file in which its last row begins."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that a spreadsheet would compute with, or run."""


@dataclass(frozen=True)
class Prediction:
    """What the model said of one frame. Written as the columns of `COLUMNS`.

    Attributes:
        index: place of the frame among the rows, from 0; it goes on where a file is appended to.
        frame: the frame's name, as its source gives it.
        predicted: the class, by name or by index. The column is called `class`.
        confidence: softmax probability of that class, in [0, 1].
        entropy: entropy of the softmax in nats, in [0, ln C].
        adapted: whether the step of this frame's batch changed the weights.
        time: when it was predicted, as ISO 8601 in UTC; "" where nobody noted it.
    """

    index: int
    frame: str
    predicted: int | str
    confidence: float
    entropy: float
    adapted: bool
    time: str = ""

    def row(self) -> dict[str, Any]:
        """The columns in order, as plain Python values; a value that is not finite becomes None."""
        return {
            "index": int(self.index),
            "frame": self.frame,
            "class": self.predicted if isinstance(self.predicted, str) else int(self.predicted),
            "confidence": _six_digits(self.confidence),
            "entropy": _six_digits(self.entropy),
            "adapted": bool(self.adapted),
            "time": self.time,
        }


class _Sink(Protocol):
    """Where encoded rows go."""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...


class PredictionWriter:
    """Appends predictions to a file or to standard output; made by `open_writer`.

    `rows` were written by it; `next_index` is the index behind the last row that is there, and `last_frame` the frame
    of that row, None where there is none.

    Every `write` reaches the operating system before it returns, so that a run that is interrupted or killed keeps the
    rows of all earlier batches; `close` forces them to the disk. No row is ever left half-written by a full disk: what
    did not fit is cut off again.
    """

    def __init__(self, sink: _Sink, format: str, last: tuple[int, str] | None = None, begun: bool = False) -> None:
        self._sink = sink
        self._format = format
        self.rows = 0
        self.next_index = 0 if last is None else last[0] + 1
        self.last_frame = None if last is None else last[1]
        if format == "csv" and not begun:
            sink.write(_csv_line(COLUMNS))

    def write(self, predictions: Iterable[Prediction]) -> None:
        """Append one row per prediction, the rows of a batch together.

        Raises:
            StorageError: the disk is full and the like. The rows of earlier calls are intact.
            BrokenPipeError: the reader of standard output has gone.
        """
        encode = _csv_row if self._format == "csv" else _json_row
        encoded = [encode(prediction) for prediction in predictions]
        if encoded:
            self._sink.write(b"".join(encoded))
            self.rows += len(encoded)

    def close(self) -> None:
        """Force the rows to the disk and close the file; closing again does nothing."""
        self._sink.close()

    def __enter__(self) -> PredictionWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_writer(
    path: str | Path, format: str | None = None, *, overwrite: bool = False, append: bool = False
) -> PredictionWriter:
    """Open a file, or standard output for "-", for predictions.

    Args:
        path: the file, whose folder must exist, or "-".
        format: "jsonl" or "csv"; None takes it from the suffix (`.jsonl`, `.ndjson`, `.json`, `.csv`); "-" is "jsonl".
        overwrite: replace an existing file. Without it an existing file is refused and stays as it is.
        append: go on behind the last row of an existing file; half a row behind it, as a killed process leaves one,
            is cut off.

    Raises:
        UsageError: no such format, a suffix that says nothing, a file that exists, or one to append to that does not
            end with a row of predictions.
        StorageError: the file cannot be written.
    """
    chosen = format or ("jsonl" if str(path) == "-" else SUFFIXES.get(Path(path).suffix.lower()))
    if chosen is None:
        raise UsageError(f"cannot tell the format of {path} from its suffix; name it .jsonl or .csv")
    if chosen not in FORMATS:
        raise UsageError(f"no format {chosen!r} for predictions; use one of {', '.join(FORMATS)}")
    if str(path) == "-":
        return PredictionWriter(_StandardOutput(), chosen)
    file = _RowFile(Path(path), overwrite=overwrite, append=append)
    try:
        last = file.go_on(chosen) if append else None
        return PredictionWriter(file, chosen, last, file.begun)
    except BaseException:
        file.close()
        raise


class _RowFile:
    """A file that only ever holds whole writes. Unbuffered, so that nothing waits in this process."""

    def __init__(self, path: Path, *, overwrite: bool, append: bool = False) -> None:
        self._path = path
        flags = (
            (os.O_RDWR if append and path.is_file() else os.O_WRONLY)
            | getattr(os, "O_CLOEXEC", 0)
            | getattr(os, "O_BINARY", 0)
        )
        try:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            # A device or a pipe (/dev/null, a named pipe) holds nothing that could be lost: it is opened as it is.
            if path.is_file() or not path.exists():
                flags |= os.O_CREAT | (0 if append else os.O_TRUNC if overwrite else os.O_EXCL)
            self._descriptor: int | None = os.open(path, flags, 0o666)
        except FileExistsError as error:
            raise UsageError(
                f"{path} exists: go on behind its rows with --append, replace it with --overwrite, or choose another "
                "file"
            ) from error
        except OSError as error:
            raise storage_error(error, path) from error
        self._regular = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        self._end = 0

    @property
    def begun(self) -> bool:
        """Whether the file holds something already."""
        return self._end > 0

    def go_on(self, format: str) -> tuple[int, str] | None:
        """Stand behind the last row of a file that is there; its index and frame, None where there is no row."""
        assert self._descriptor is not None
        if not self._regular:
            return None
        size = os.fstat(self._descriptor).st_size
        if not size:
            return None
        start = max(0, size - _TAIL)
        whole = _read_at(self._descriptor, start, size - start)
        whole = whole[: whole.rfind(b"\n") + 1]
        header = _csv_line(COLUMNS)
        own = format != "csv" or _read_at(self._descriptor, 0, len(header)) == header
        last = _last_row(whole, format) if own and (whole or not start) else None
        empty = not start and whole == (header if format == "csv" else b"")
        if last is None and not empty:
            raise UsageError(
                f"{self._path} does not end with a row of predictions of this version; choose another file, or "
                "replace it with --overwrite"
            )
        self._end = start + len(whole)
        self._cut_off()
        return last

    def write(self, data: bytes) -> None:
        if self._descriptor is None:
            raise ValueError(f"{self._path} is closed")
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._descriptor, view) :]
        except BaseException as error:
            self._cut_off()
            if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                kept = "; the rows written before are intact" if self._end else ""
                raise storage_error(error, self._path, kept) from error
            raise
        self._end += len(data)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        try:
            os.fsync(descriptor)
        except OSError as error:
            # A pipe or a device has no disk to be forced to.
            if error.errno not in (errno.EINVAL, errno.EROFS, getattr(errno, "ENOTSUP", errno.EINVAL)):
                raise storage_error(error, self._path, "; the last rows may be missing") from error
        finally:
            os.close(descriptor)

    def _cut_off(self) -> None:
        """Take back what did not fit, so that the file ends with a whole row."""
        if self._regular and self._descriptor is not None:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._end)
                os.lseek(self._descriptor, self._end, os.SEEK_SET)


def _read_at(descriptor: int, place: int, length: int) -> bytes:
    """Bytes of an open file from a place on."""
    os.lseek(descriptor, place, os.SEEK_SET)
    found = b""
    while len(found) < length and (more := os.read(descriptor, length - len(found))):
        found += more
    return found


class _StandardOutput:
    """Rows for the next program in a pipe."""

    def write(self, data: bytes) -> None:
        binary = getattr(sys.stdout, "buffer", None)
        try:
            if binary is None:
                sys.stdout.write(data.decode("utf-8"))
            else:
                sys.stdout.flush()
                binary.write(data)
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) or error.errno == errno.EBADF:  # it was closed
                raise BrokenPipeError from error
            raise storage_error(error, "standard output", "") from error

    def close(self) -> None:
        """Standard output belongs to the process and stays open."""


def _six_digits(value: float) -> float | None:
    """Six significant digits: what a float32 softmax can vouch for. None for NaN and infinities: JSON has none."""
    number = float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else None


def _json_row(prediction: Prediction) -> bytes:
    return (json.dumps(prediction.row()) + "\n").encode("ascii")


def _csv_row(prediction: Prediction) -> bytes:
    row = prediction.row()
    row["adapted"] = "true" if row["adapted"] else "false"
    return _csv_line(row[column] for column in COLUMNS)


def _csv_line(values: Iterable[Any]) -> bytes:
    """One line after RFC 4180, with a plain line feed; a name that is no valid Unicode is written with escapes."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow([_defused(value) for value in values])
    return line.getvalue().encode("utf-8", "backslashreplace")


def _defused(value: Any) -> Any:
    """A text that steers no terminal, and that no spreadsheet takes for a formula: an apostrophe is put before it, as
    spreadsheets themselves have it."""
    if not isinstance(value, str):
        return value
    return f"'{printable(value)}" if value.startswith(_FORMULA) else printable(value)


def _last_row(tail: bytes, format: str) -> tuple[int, str] | None:
    """Index and frame of the last of some whole lines; None where it is no row of predictions."""
    line = tail.rstrip(b"\n").rpartition(b"\n")[2].decode("utf-8", "replace")
    try:
        row = json.loads(line) if format == "jsonl" else dict(zip(COLUMNS, next(csv.reader([line])), strict=True))
        if set(row) != set(COLUMNS) or not isinstance(row["frame"], str):
            return None
        frame = row["frame"]
        defused = format == "csv" and frame.startswith("'") and frame[1:].startswith(_FORMULA)
        return int(row["index"]), frame[1:] if defused else frame
    except (ValueError, TypeError, StopIteration):
        return None
