"""When a state is saved: by time, where something was learnt since, and again after a save that failed.

Flash memory wears with every write, and a disk that is full today may not be tomorrow: neither may cost a prediction.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from edgetta.errors import EdgettaError
from edgetta.state_files.contents import Contents
from edgetta.state_files.generations import StateFile

SECONDS = 60.0
LONGEST_WAIT = 3600.0
"""Between two tries while saves fail, in seconds."""

_DAY = 86_400.0


class Saver:
    """Saves what `contents` gives into `file`.

    file       where to
    contents   takes a consistent copy of the state; called only where a save is due
    learnt     a value that changes when something was learnt; by default the contents' own digest
    seconds    between two saves
    tell       receives one line when saves begin to fail, and one when they work again
    clock      seconds that never go back

    `saves`, `failures` and `written` (bytes) count what was done.
    """

    def __init__(
        self,
        file: StateFile,
        contents: Callable[[], Contents],
        *,
        learnt: Callable[[], object] | None = None,
        seconds: float = SECONDS,
        tell: Callable[[str], object] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.file = file
        self.saves = self.failures = self.written = 0
        self._contents = contents
        self._learnt = learnt
        self._seconds = seconds
        self._tell = tell
        self._clock = clock
        self._begun = self._last_try = clock()
        self._wait = seconds
        self._saved: object = learnt() if learnt is not None else None
        self._failing = False

    @property
    def bytes_a_day(self) -> float:
        """Bytes that go to the disk in a day at the present pace; 0 before anything was written."""
        elapsed = self._clock() - self._begun
        return self.written * _DAY / max(elapsed, self._seconds, 1.0) if self.written else 0.0

    def saw(self, contents: Contents) -> None:
        """This is what is on disk already; not needed where `learnt` tells."""
        if self._learnt is None:
            self._saved = contents.digest

    def when_due(self, early: bool = False) -> None:
        """Save, if it is time, and something was learnt. A save that fails is counted, and tried again later.

        early   it is time, unless saves fail
        """
        if self._clock() - self._last_try < self._wait and (self._failing or not early):
            return
        try:
            self.save()
        except EdgettaError as error:
            self._wait = min(2 * self._wait, max(LONGEST_WAIT, self._seconds))
            if not self._failing:
                self._tell(f"{error}; going on without, and trying again")
            self._failing = True

    def save(self, always: bool = False) -> None:
        """Save now, where something was learnt since the last save; with `always` also where nothing was.

        Raises `StorageError`.
        """
        self._last_try = self._clock()
        learnt = self._learnt() if self._learnt is not None else None
        if learnt is not None and learnt == self._saved and not always:
            return
        contents = self._contents()
        digest = contents.digest
        if learnt is None and digest == self._saved and not always:
            return
        try:
            self.written += self.file.save(contents, digest)
        except EdgettaError:
            self.failures += 1
            raise
        self.saves += 1
        self._saved = digest if self._learnt is None else learnt
        self._wait = self._seconds
        if self._failing:
            self._tell(f"the state is saved again, after {self.failures:,} failed saves")
            self._failing = False
