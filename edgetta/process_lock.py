"""One process at a time writes a file: a lock beside it, held as long as that process lives, and gone with it."""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgetta.errors import EdgettaError

try:
    import fcntl
except ImportError:  # a system without these locks
    fcntl = None  # type: ignore[assignment]

_SHOWN = 200
_LONGEST_NAME = 255  # bytes


class InUseError(EdgettaError):
    """Another process writes this file."""


@contextmanager
def process_lock(path: Path, what: str) -> Iterator[None]:
    """Hold the lock of the file at `path` within the block.

    The lock is the system's, on a hidden file beside `path`: it ends with the process, however that ends, and a file
    that was left behind locks nobody out. Where the file system has no locks, or the folder cannot be written, the
    block simply runs: what cannot be written needs no lock.

    what   what the file is, for the message
    Raises `InUseError`, which names the process that holds it.
    """
    place = path.with_name(f".{path.name[: _LONGEST_NAME - 8]}.lock")
    descriptor = _acquire(place, path, what)
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                place.unlink()
            os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Lock an open file for this process; whether it could be had. True where the system knows no such locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _acquire(place: Path, path: Path, what: str) -> int | None:
    while True:
        try:
            descriptor = os.open(place, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        except OSError:
            return None
        if not try_lock(descriptor):
            holder = _holder(descriptor)
            os.close(descriptor)
            raise InUseError(f"{what} {path} is in use by {holder}; end that one first, or choose another file")
        # The holder removes the file when it ends: a lock on a file that is no longer there locks nobody out.
        with suppress(OSError):
            if os.fstat(descriptor).st_ino == place.stat().st_ino:
                _sign(descriptor)
                return descriptor
        os.close(descriptor)


def _sign(descriptor: int) -> None:
    since = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    words = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps({"pid": os.getpid(), "program": words, "since": since}).encode())


def _holder(descriptor: int) -> str:
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        facts = json.loads(os.read(descriptor, 4096))
        words = f"process {int(facts['pid'])} ({facts['program']}, since {facts['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
    return "".join(c if c.isprintable() else "?" for c in words)[:_SHOWN]
