"""Live sources, which never end well: they are connected to again, and the newest frame is the one that counts.

A thread takes every picture as it comes and keeps the latest. So a step that takes longer than a frame lasts finds
what the camera sees now, not what it saw when the step began; pictures that were replaced meanwhile are counted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from edgetta.sources.source import Frame, FrameSource, Skipped, SourceError

FAILED_READS = 5
"""So many reads in a row without a picture, each of which may have waited seconds, are a lost connection."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds before the first try to connect again; each later one waits twice as long, up to the longest."""

GIVE_UP = 300.0
"""Seconds without a picture after which the source is given up."""

_LOOK = 1.0  # seconds between two looks at whether anything came, so that signals get a turn


class SourceGoneError(SourceError):
    """A live source that stayed away. Its exit code is one of its own (EX_TEMPFAIL): starting again may help."""

    exit_code = 75


class Connection:
    """Pictures of a live source, one after the other, whatever happens in between.

    name      what lines call the source; never holds a password
    start     opens the capture, or raises SourceError
    give_up   seconds without a picture after which `picture` raises
    tell      receives one line when the connection is lost, and one when it is there again
    clock     seconds that never go back
    pause     waits so many seconds, and returns True where the wait was cut short for good
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], Any],
        *,
        give_up: float = GIVE_UP,
        tell: Callable[[str], object] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], bool] | None = None,
    ) -> None:
        self.name = name
        self.tell = tell
        self.give_up = give_up
        self._start = start
        self._clock = clock
        self._stopped = threading.Event()
        self._pause = pause or self._stopped.wait
        self._capture: Any = start()

    def picture(self) -> np.ndarray | None:
        """The next picture; None where the connection was stopped meanwhile.

        Raises:
            SourceGoneError: none came for `give_up` seconds.
        """
        since, failures, wait, lost = self._clock(), 0, FIRST_PAUSE, False
        while not self._stopped.is_set():
            found = self.grab()
            if found is not None:
                if lost:
                    self.tell(f"{self.name} delivers again, after {self._clock() - since:.0f} s")
                return found
            failures += 1
            if self._clock() - since > self.give_up:
                raise SourceGoneError(
                    f"{self.name} delivered nothing for {self.give_up:.0f} s; check its cable, its power and the "
                    "network"
                )
            if self._capture is not None and failures < FAILED_READS:
                continue
            if not lost:
                self.tell(f"{self.name} stopped delivering frames; connecting again")
                lost = True
            self.release()
            if self._pause(wait):
                return None
            wait = min(2 * wait, LONGEST_PAUSE)
            failures = 0
            try:
                self._capture = self._start()
            except SourceError:
                self._capture = None
        return None

    def grab(self) -> np.ndarray | None:
        """One try, without waiting for another."""
        return None if self._capture is None else grab(self._capture)

    def stop(self) -> None:
        """Have `picture` return soon."""
        self._stopped.set()

    def release(self) -> None:
        """Give the camera or the connection back."""
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.release()


class NewestPicture:
    """A thread that reads a connection, and the latest picture that it read.

    `read` counts pictures, `dropped` those that a newer one replaced before anybody took them.
    """

    def __init__(self, connection: Connection) -> None:
        self.read = self.dropped = 0
        self._connection = connection
        self._change = threading.Condition()
        self._newest: tuple[int, np.ndarray] | None = None
        self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"reader of {connection.name}", daemon=True)
        self._thread.start()

    def take(self, waiting: Callable[[], object] = lambda: None) -> tuple[int, np.ndarray] | None:
        """The latest picture and its number, once there is one; None where the reader was stopped.

        waiting   is called about once a second as long as there is none
        Raises what the connection raised.
        """
        while True:
            with self._change:
                if self._newest is None and not self._ended:
                    self._change.wait(_LOOK)
                if self._newest is not None:
                    newest, self._newest = self._newest, None
                    return newest
                if self._error is not None:
                    raise self._error
                if self._ended:
                    return None
            waiting()

    def stop(self) -> None:
        """End the thread; a read that hangs in a driver is left to itself."""
        self._connection.stop()
        self._thread.join(2 * _LOOK)

    def _run(self) -> None:
        try:
            while (picture := self._connection.picture()) is not None:
                with self._change:
                    self.dropped += self._newest is not None
                    self._newest = (self.read, picture)
                    self.read += 1
                    self._change.notify()
        except BaseException as error:
            self._error = error
        finally:
            self._connection.release()
            with self._change:
                self._ended = True
                self._change.notify()


class LiveFrames(FrameSource):
    """Frames of a camera or a stream, the newest first of all.

    frame     makes a frame of a picture: its name, the picture, and its number
    waiting   is called about once a second while no frame comes; a service says there that it is alive
    `dropped` counts pictures that were replaced by newer ones; their numbers are left out.
    """

    def __init__(
        self, connection: Connection, frame: Callable[[str, np.ndarray, int], Frame | Skipped], title: str
    ) -> None:
        super().__init__(connection.name, description=connection.name, length=None)
        self.connection = connection
        self.waiting: Callable[[], object] = lambda: None
        self._frame = frame
        self._title = title
        # Read now, so that what cannot deliver is an error when it is opened and not in the middle of a run.
        tries = (connection.grab() for _ in range(FAILED_READS))
        self._first = next((picture for picture in tries if picture is not None), None)
        if self._first is None:
            connection.release()
            raise SourceError(f"{self.name} opens but delivers no frame; check that it plays elsewhere")
        self.description = f"{self.name}: frames of {self._first.shape[1]} x {self._first.shape[0]}"
        self._reader: NewestPicture | None = None
        self.dropped = 0

    def read(self) -> Iterator[Frame | Skipped]:
        """Frames until the source is closed, or stays away.

        Raises:
            SourceGoneError: as `Connection.picture`.
        """
        offset = 0
        if self._first is not None:
            first, self._first = self._first, None
            offset = 1
            yield self._frame(f"{self._title}[0]", first, 0)
        reader = self._reader = self._reader or NewestPicture(self.connection)
        while (taken := reader.take(self.waiting)) is not None:
            self.dropped = reader.dropped
            number = taken[0] + offset
            yield self._frame(f"{self._title}[{number}]", taken[1], number)

    def close(self) -> None:
        """Stop the reader, and give the camera or the connection back."""
        if self._reader is not None:
            self._reader.stop()
        else:
            self.connection.release()


def grab(capture: Any) -> np.ndarray | None:
    """One picture of an OpenCV capture; None where none was delivered."""
    import cv2

    try:
        delivered, picture = capture.read()
    except cv2.error:
        return None
    return picture if delivered and picture is not None and picture.size else None
