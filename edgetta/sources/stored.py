"""Arrays in `.npy` and `.npz` files as rows that are read one at a time, so that any file fits into any memory.

Rows are read from the file rather than from a memory map: pages of a map count as resident memory, and a failing card
or a file that shrinks would kill the process where a read fails with a reason. Only an array that is stored column by
column is read as a whole, because its rows are scattered over the file.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.lib import format as npy

from edgetta.printable import printable
from edgetta.sources.source import SourceError

IMAGE_KEYS = ("images", "x")
MAX_LOADED_BYTES = 1 << 30
"""Of an array that is stored column by column."""

LABEL_KEYS = ("labels", "y")

READ_ERRORS = (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)
"""What reading a damaged file raises."""


@dataclass(frozen=True)
class StoredRows:
    """An array that lies row by row in a file.

    Attributes:
        where: the file, and the key in it, for messages.
        open: opens the file at the first value; called once per pass.
        shape: of the whole array.
        dtype: of its values, in the file's byte order.
        seekable: whether rows can be passed over without reading them.
    """

    where: str
    open: Callable[[], BinaryIO]
    shape: tuple[int, ...]
    dtype: np.dtype
    seekable: bool

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def rows(self, step: int = 1) -> Generator[np.ndarray]:
        """Every `step`-th row of the first axis; raises one of `READ_ERRORS` where the file is damaged."""
        with closing(self.open()) as file:
            for index in range(0, self.shape[0], step):
                if index and step > 1:
                    file.seek((step - 1) * self.row_bytes, 1)
                row = np.empty(self.shape[1:], self.dtype)
                view = row.reshape(-1).view(np.uint8).data
                while view:
                    count = file.readinto(view)  # type: ignore[attr-defined]
                    if not count:
                        raise EOFError(f"the file ends in row {index}")
                    view = view[count:]
                yield row


@dataclass(frozen=True)
class LoadedRows:
    """An array that is stored column by column: its rows are scattered over the file, so that all of it is read."""

    where: str
    array: np.ndarray
    seekable: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    def rows(self, step: int = 1) -> Generator[np.ndarray]:
        """Every `step`-th row of the first axis, as a contiguous copy."""
        for index in range(0, self.shape[0], step):
            yield np.array(self.array[index], order="C")


Rows = StoredRows | LoadedRows


def as_one_row(stored: Rows) -> Rows:
    """The same array as the only row of one with a further first axis."""
    if isinstance(stored, LoadedRows):
        return LoadedRows(stored.where, stored.array[None])
    return replace(stored, shape=(1, *stored.shape))


def open_npy(path: Path) -> Rows:
    """The array of an `.npy` file; only its header is read.

    Raises:
        SourceError: no such file format, pickled objects, or fewer values than announced.
        OSError: the file cannot be read.
    """

    def opened() -> BinaryIO:
        file = path.open("rb")
        _header(file, str(path))
        return file

    with path.open("rb") as file:
        shape, by_columns, dtype = _header(file, str(path))
        available = path.stat().st_size - file.tell()
    needed = math.prod(shape) * dtype.itemsize
    if available < needed:
        raise SourceError(
            f"{path} is cut short: {available:,} bytes of values where its header announces {needed:,}; copy it again"
        )
    if by_columns and len(shape) > 1:
        if needed > MAX_LOADED_BYTES:
            raise SourceError(
                f"{path} is stored column by column, and too large to be turned ({needed:,} bytes); "
                "save np.ascontiguousarray(array) instead"
            )
        return LoadedRows(str(path), np.load(path, allow_pickle=False))
    return StoredRows(str(path), opened, shape, dtype, seekable=True)


def open_npz(path: Path, key: str | None) -> tuple[StoredRows, StoredRows | None]:
    """The array of images and, where there is one, that of labels; only their headers are read.

    Args:
        path: the archive.
        key: the array of images; None takes one of `IMAGE_KEYS`, or else the first with 3 or 4 axes.

    Raises:
        SourceError: no archive, damaged, no such key, pickled objects, or fewer values than announced.
        OSError: the file cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise SourceError(f"{path} is no .npz archive or is damaged ({error}); copy it again") from error
    labels = next((name for name in LABEL_KEYS if name in names), None)
    if key is None:
        key = next((name for name in IMAGE_KEYS if name in names), None)
    if key is None:
        key = _first_with_pictures(path, {name: member for name, member in names.items() if name != labels})
    if key not in names:
        held = ", ".join(printable(name) for name in names) or "nothing"
        raise SourceError(f"{path} holds no array {'of images' if key is None else repr(key)}; it holds {held}")
    images = _member(path, names[key])
    return images, None if labels is None or labels == key else _member(path, names[labels])


def _first_with_pictures(path: Path, names: dict[str, str]) -> str | None:
    """The first array with as many axes as pictures have; or else the first, so that an error tells of it."""
    for name, member in names.items():
        with suppress(SourceError):
            if len(_member(path, member).shape) in (3, 4):
                return name
    return next(iter(names), None)


def _member(path: Path, member: str) -> StoredRows:
    """One array of an archive, as a stream: compressed or not makes no difference."""
    where = f"{path}:{printable(member.removesuffix('.npy'))}"

    def opened() -> BinaryIO:
        archive = zipfile.ZipFile(path)
        try:
            file = archive.open(member)
            _header(cast(BinaryIO, file), where)
        finally:
            # The open member keeps the file itself alive; the archive object is not needed any more.
            archive.close()
        return cast(BinaryIO, file)

    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            shape, by_columns, dtype = _header(cast(BinaryIO, file), where)
            available = archive.getinfo(member).file_size - file.tell()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise SourceError(f"{where} cannot be read: {error}; copy the file again") from error
    if available < math.prod(shape) * dtype.itemsize:
        raise SourceError(f"{where} is shorter than its header announces; write the file again")
    if by_columns and len(shape) > 1:
        raise SourceError(f"{where} is stored column by column; save np.ascontiguousarray(array) instead")
    return StoredRows(where, opened, shape, dtype, seekable=False)


def _header(file: BinaryIO, where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, column order and type from an `.npy` header; leaves `file` at the first value."""
    try:
        version = npy.read_magic(file)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if read is None:
            raise ValueError(f"version {version} of the format")
        shape, by_columns, dtype = read(file)
    except (ValueError, EOFError) as error:
        raise SourceError(f"{where} is no .npy array ({error}); write it with np.save or np.savez") from error
    if dtype.hasobject:
        raise SourceError(
            f"{where} holds pickled objects, which are never loaded; save it as a plain array of numbers"
        )
    if any(side < 0 for side in shape):
        raise SourceError(f"{where} has the impossible shape {shape}; write the file again")
    return shape, by_columns, dtype
