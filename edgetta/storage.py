"""Files that are either the old one or the new one, never half of each: how state, bundles and reports are written."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from edgetta.errors import EdgettaError
from edgetta.process_lock import try_lock

LONGEST_NAME = 255
"""Bytes in one file name on every file system in common use."""

_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{8}\.tmp")
_LEFT_SECONDS = 5
"""A temporary file younger than this may be one that a process is about to lock."""

_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
_RESERVED = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(1, 10)), *(f"lpt{i}" for i in range(1, 10))}


class StorageError(EdgettaError):
    """A file that could not be written, or a name that must not be used for one."""


def atomic_write(path: str | os.PathLike[str], write: Callable[[BinaryIO], object]) -> Path:
    """Have `write` fill a new file, then put it in the place of `path` in one step.

    The bytes go to a temporary file in the same folder, are forced to the disk, and the file is renamed over `path`,
    so that a crash, a full disk or Ctrl-C leaves either the old content or the new. On failure the temporary file is
    removed. A symbolic link keeps pointing where it did: the file behind it is replaced. An existing file keeps its
    permissions.

    Args:
        path: the file to write; its folder must exist.
        write: called once with a binary file that is open for writing and seekable.

    Returns:
        The file that was written, links resolved.

    Raises:
        StorageError: the folder is missing, the disk is full, the name cannot be used, and the like; the earlier file,
            if there was one, is as it was. What `write` itself raises (other than OSError) passes unchanged.
    """
    if "\0" in os.fspath(path):
        raise StorageError(f"cannot write {os.fspath(path)!r}: the name holds a NUL character; choose another name")
    target = Path(os.path.realpath(path))
    try:
        permissions = _permissions_of(target)
        temporary = target.with_name(_temporary_name(target.name))
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
    except OSError as error:
        raise storage_error(error, target) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            try_lock(file.fileno())  # so that others can tell that it is being written, not left behind
            if permissions is not None and hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), permissions)
            write(cast(BinaryIO, file))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise storage_error(error, target) from error
        raise
    sync_folder(target.parent)
    return target


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """`atomic_write` of ready bytes."""
    return atomic_write(path, lambda file: file.write(data))


def atomic_write_text(path: str | os.PathLike[str], text: str) -> Path:
    """`atomic_write` of text, as UTF-8 with the line ends that it has."""
    return atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """`atomic_write` of `value` as indented JSON with a final newline.

    Raises:
        ValueError: `value` holds NaN or an infinity, which JSON has no word for.
        StorageError: as `atomic_write`.
    """
    return atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def remove_leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove what `atomic_write` of a killed process left in a folder: its own temporary files, that no process holds.

    Returns what was removed; what cannot be looked at or removed is left alone.
    """
    removed: list[Path] = []
    with suppress(OSError):
        for path in sorted(Path(folder).iterdir()):
            if _TEMPORARY.fullmatch(path.name) and _left_behind(path):
                with suppress(OSError):
                    path.unlink()
                    removed.append(path)
    return removed


def _left_behind(path: Path) -> bool:
    """Whether a temporary file is ours, plain, not of this very minute, and held by no process."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        status = os.fstat(descriptor)
        ours = not hasattr(os, "getuid") or status.st_uid == os.getuid()
        old = time.time() - status.st_mtime > _LEFT_SECONDS
        return stat.S_ISREG(status.st_mode) and ours and old and try_lock(descriptor)
    finally:
        os.close(descriptor)


def safe_name(name: str) -> PurePosixPath:
    """Check a relative file name that came from a file or from another machine, such as one in a bundle's manifest.

    Allowed are components of ASCII letters, digits, `.`, `_`, `+` and `-`, joined with `/`, that start with a letter,
    a digit or `_`: so no absolute path, no `..`, no hidden file, no drive letter, no device name of Windows.

    Raises:
        StorageError: names the part that is not allowed.
    """
    components = name.split("/")
    for component in components:
        if not _COMPONENT.fullmatch(component) or component.endswith("."):
            raise StorageError(
                f"unsafe file name {name!r}: {component!r} is not allowed; use letters, digits, '.', '_', '+', '-', "
                "joined with '/', relative to the folder"
            )
        if len(component) > LONGEST_NAME:
            raise StorageError(f"unsafe file name {name[:40]!r}...: a part is longer than {LONGEST_NAME} characters")
        if component.split(".")[0].lower() in _RESERVED:
            raise StorageError(f"unsafe file name {name!r}: {component!r} is a device on Windows; choose another name")
    return PurePosixPath(*components)


def inside(folder: str | os.PathLike[str], name: str) -> Path:
    """The path of `name` in `folder`, after `safe_name` and with no symbolic link between the folder and the file.

    Raises:
        StorageError: the name is unsafe, or a part of it is a link and could lead out of the folder.
    """
    path = Path(folder)
    for component in safe_name(name).parts:
        path = path / component
        if path.is_symlink():
            raise StorageError(f"{path} is a symbolic link and could lead out of {folder}; put the file itself there")
    return path


def storage_error(error: OSError, path: str | os.PathLike[str], earlier: str | None = None) -> StorageError:
    """Turn an OSError of writing `path` into one line that says what to do.

    Args:
        error: what the system said.
        path: the file that was being written.
        earlier: what became of earlier content, as a clause; by default said only where there is an earlier file.
    """
    path = Path(path)
    if earlier is None:
        earlier = "; the earlier file is unchanged" if _is(Path.is_file, path) else ""
    return StorageError(f"cannot write {path}: {_what_to_do(error, path)}{earlier}")


def _what_to_do(error: OSError, path: Path) -> str:
    folder = path.parent
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        what = "the disk is full" if error.errno == errno.ENOSPC else "the disk quota is used up"
        return f"{what}{_free_space(folder)}; free some space or choose another folder"
    if error.errno == errno.EFBIG:
        return (
            "the file is larger than this file system or `ulimit -f` allows; choose another folder or raise the limit"
        )
    if error.errno == errno.ENOENT and not _is(Path.exists, folder):
        return f"there is no folder {folder}; create it or choose another one"
    if error.errno == errno.ENOTDIR:
        return f"a part of {folder} is a file, not a folder; choose another folder"
    if error.errno == errno.EISDIR:
        return "it is a folder; name a file in it"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "permission denied; choose a folder that you may write to, or change its owner"
    if error.errno == errno.EROFS:
        return "the file system is read-only; choose another folder"
    if error.errno == errno.ENAMETOOLONG:
        return "the name is too long; choose a shorter one"
    if error.errno == errno.EINVAL and _is(Path.exists, path) and not _is(Path.is_file, path):
        return "it is no regular file; name a file"
    return f"{error.strerror or error}; check the disk and the folder {folder}"


def _is(question: Callable[[Path], bool], path: Path) -> bool:
    """Ask about a path while an error is being told; "no" where even the question is forbidden."""
    try:
        return question(path)
    except OSError:
        return False


def _free_space(folder: Path) -> str:
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return ""
    return f" ({free / 2**20:,.1f} MiB free in {folder})"


def _permissions_of(target: Path) -> int | None:
    """The permission bits of the file to be replaced; None where there is none."""
    try:
        status = target.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if not stat.S_ISREG(status.st_mode):
        # Renaming over a device or a pipe would destroy it.
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(target))
    return stat.S_IMODE(status.st_mode)


def _temporary_name(name: str) -> str:
    """Hidden, in the same folder, and never one that exists; the part taken from `name` is cut so that it fits."""
    kept = name.encode("utf-8", "surrogateescape")[: LONGEST_NAME - 16].decode("utf-8", "ignore")
    return f".{kept}.{secrets.token_hex(4)}.tmp"


def sync_folder(folder: Path) -> None:
    """Make the rename itself last through a power cut, where the system has that notion."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
