"""Rows of a live stream on a disk that is full for a while: they wait in memory, and the stream goes on.

A recorded source can be taken up again behind its last row, so that there a disk that is full ends the run. What a
camera sees does not come back.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType

from edgetta.errors import EdgettaError
from edgetta.predictions import Prediction, PredictionWriter

WAITING = 100_000
"""Rows that may wait; beyond, the newest are lost, and counted."""

RETRY_SECONDS = 5.0


class PatientWriter:
    """A `PredictionWriter` whose rows wait where they cannot be written.

    tell    receives one line when rows begin to wait, and one when they are written
    clock   seconds that never go back
    `lost` counts rows for which there was no room left.
    """

    def __init__(
        self,
        writer: PredictionWriter,
        tell: Callable[[str], object] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
        waiting: int = WAITING,
    ) -> None:
        self.lost = 0
        self._writer = writer
        self._tell = tell
        self._clock = clock
        self._room = waiting
        self._waiting: deque[Prediction] = deque()
        self._failed_at: float | None = None

    @property
    def rows(self) -> int:
        """Rows that were written."""
        return self._writer.rows

    @property
    def next_index(self) -> int:
        """Of the first row of this run."""
        return self._writer.next_index

    @property
    def last_frame(self) -> str | None:
        """The frame of the last row that was there before."""
        return self._writer.last_frame

    def write(self, predictions: Iterable[Prediction]) -> None:
        """Write rows, or keep them until the disk takes them.

        Raises:
            BrokenPipeError: the reader of a pipe has gone.
        """
        for prediction in predictions:
            if len(self._waiting) < self._room:
                self._waiting.append(prediction)
            else:
                self.lost += 1
        if self._failed_at is not None and self._clock() - self._failed_at < RETRY_SECONDS:
            return
        try:
            self._flush()
        except EdgettaError as error:
            if self._failed_at is None:
                self._tell(f"{error}; going on, and the rows wait")
            self._failed_at = self._clock()
            return
        if self._failed_at is not None:
            self._tell(f"the rows are written{f', but {self.lost:,} were lost' if self.lost else ''}")
            self._failed_at = None

    def close(self) -> None:
        """Write what waits, and close the file. Raises `StorageError` where that cannot be."""
        try:
            self._flush()
        finally:
            self._writer.close()

    def __enter__(self) -> PatientWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _flush(self) -> None:
        """All that waits in one write, which comes through whole or not at all."""
        if self._waiting:
            self._writer.write(self._waiting)
            self._waiting.clear()
