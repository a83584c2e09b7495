"""A state file and the saves before it: one that is damaged costs what was learnt since the one before, no more.

    learnt.safetensors        the newest
    learnt.safetensors.1      the one before
    learnt.safetensors.2      the one before that

Each is written beside, forced to the disk, and renamed into its place, so that at every moment at least one is whole.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from edgetta.errors import BundleError
from edgetta.process_lock import process_lock
from edgetta.state_files.contents import Contents, StateError, encode, read
from edgetta.storage import StorageError, atomic_write_bytes, remove_leftovers, storage_error, sync_folder

GENERATIONS = 3
DAMAGED_KEPT = 3
"""So many files that were set aside stay; older ones are removed, or they would fill the disk."""

T = TypeVar("T")


@dataclass(frozen=True)
class Found:
    """What a start found on disk.

    path       the file that was loaded; None where none was, and adaptation starts from what was shipped
    told       one line for each thing that somebody should know: what was set aside, and why
    """

    path: Path | None
    told: tuple[str, ...] = ()


class StateFile:
    """The saves of one state, at `path` and beside it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.realpath(path))

    @property
    def generations(self) -> tuple[Path, ...]:
        """Where the saves lie, the newest first, whether they are there or not."""
        older = (self.path.with_name(f"{self.path.name}.{number}") for number in range(1, GENERATIONS))
        return (self.path, *older)

    @property
    def damaged(self) -> tuple[Path, ...]:
        """Files that were set aside, the latest last."""
        return tuple(sorted(self.path.parent.glob(f"{_escaped(self.path.name)}.damaged-*")))

    def exists(self) -> bool:
        """Whether any generation is there."""
        return any(path.exists() for path in self.generations)

    def lock(self, what: str = "the state") -> AbstractContextManager[None]:
        """Held by the one process that writes this state; raises `InUseError` where another one does."""
        return process_lock(self.path, what)

    def load(self, restore: Callable[[Contents], object]) -> Found:
        """Give the newest whole generation to `restore`; set aside what is damaged or what `restore` refuses.

        restore   takes the state on, or raises `StateError` or `ValueError` and changes nothing: then an older one is
                  tried. Any other error ends the load, such as the `BundleError` of another bundle's state.
        Raises what `restore` raises, but for these two.
        """
        told: list[str] = []
        for path in self.generations:
            if not path.exists():
                continue
            try:
                restore(read(path))
            except (StateError, ValueError) as error:
                told.append(self._set_aside(path, error))
                continue
            return Found(path, tuple(told))
        if told:
            told.append("no save is whole: starting from what was shipped")
        return Found(None, tuple(told))

    def save(self, contents: Contents, digest: str = "") -> int:
        """Write a new generation, and let the oldest go. Returns the bytes written; raises `StorageError`."""
        data = encode(contents, digest)
        waiting = self.path.with_name(f"{self.path.name}.new")
        try:
            atomic_write_bytes(waiting, data)
        except StorageError as error:
            raise StorageError(f"{error}; the earlier saves are unchanged" if self.exists() else str(error)) from error
        try:
            for newer, older in reversed(list(zip(self.generations, self.generations[1:], strict=False))):
                if newer.exists():
                    newer.replace(older)
            waiting.replace(self.path)
        except OSError as error:
            raise storage_error(error, self.path) from error
        sync_folder(self.path.parent)
        return len(data)

    def restore(self, generation: int) -> None:
        """Make an earlier generation (1, 2, ...) the newest again, as a save of its own.

        Raises `StateError` where it is not whole.
        """
        if not 1 <= generation < GENERATIONS:
            raise BundleError(f"there is no generation {generation}; those before are 1 to {GENERATIONS - 1}")
        self.save(read(self.generations[generation]))

    def tidy(self) -> list[Path]:
        """Remove what processes that were killed left beside the state. Returns what was removed."""
        return remove_leftovers(self.path.parent)

    def _set_aside(self, path: Path, error: Exception) -> str:
        stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%d-%H%M%S.%f")
        aside = self.path.with_name(f"{self.path.name}.damaged-{stamp}")
        reason = str(error)
        try:
            path.replace(aside)
        except OSError:
            return f"{reason}; it cannot be set aside, and is left alone"
        for old in self.damaged[:-DAMAGED_KEPT]:
            with suppress(OSError):
                old.unlink()
        return f"{reason}; set aside as {aside.name}"


def _escaped(name: str) -> str:
    """A name that stands for itself in a pattern."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
