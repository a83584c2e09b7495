"""Live sources: lost, connected to again, given up in the end; the newest picture is the one that is taken."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edgetta.sources import Frame, SourceError
from edgetta.sources.live import FAILED_READS, Connection, LiveFrames, NewestPicture, SourceGoneError

Script = list[np.ndarray | None]


def picture(number: int) -> np.ndarray:
    return np.full((2, 3, 3), number, np.uint8)


class Camera:
    """Captures that play one script each; a script that is None cannot be opened. Time passes when somebody waits."""

    def __init__(self, *scripts: Script | None) -> None:
        self.scripts = list(scripts)
        self.now = 0.0
        self.pauses: list[float] = []
        self.told: list[str] = []
        self.open = 0

    def start(self) -> Any:
        script = self.scripts.pop(0) if self.scripts else None
        if script is None:
            raise SourceError("cannot open it")
        self.open += 1
        return Capture(self, iter(script))

    def pause(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        self.now += seconds
        return False

    def connection(self, give_up: float = 100.0) -> Connection:
        return Connection(
            "camera:0", self.start, give_up=give_up, tell=self.told.append, clock=lambda: self.now, pause=self.pause
        )


class Capture:
    def __init__(self, camera: Camera, script: Iterator[np.ndarray | None]) -> None:
        self.camera, self.script = camera, script

    def read(self) -> tuple[bool, np.ndarray | None]:
        found = next(self.script, None)
        return found is not None, found

    def release(self) -> None:
        self.camera.open -= 1


@pytest.fixture(autouse=True)
def opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much of it as is needed where it is not installed."""
    import sys
    from types import ModuleType

    fake = ModuleType("cv2")
    fake.error = type("error", (Exception,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cv2", fake)


def value(found: np.ndarray | None) -> int:
    assert found is not None
    return int(found[0, 0, 0])


def test_a_hiccup_is_no_loss() -> None:
    camera = Camera([picture(1), *[None] * (FAILED_READS - 1), picture(2)])
    connection = camera.connection()
    assert [value(connection.picture()) for _ in range(2)] == [1, 2]
    assert camera.told == camera.pauses == []


def test_a_lost_one_is_connected_to_again() -> None:
    camera = Camera([picture(1)], None, None, [], [picture(2)], [picture(3)])
    connection = camera.connection()
    assert value(connection.picture()) == 1
    assert value(connection.picture()) == 2
    assert camera.pauses == [1, 2, 4, 8] and camera.open == 1, "every earlier capture was released"
    assert camera.told == [
        "camera:0 stopped delivering frames; connecting again",
        "camera:0 delivers again, after 15 s",
    ]
    assert value(connection.picture()) == 3
    assert len(camera.told) == 4 and camera.pauses[4:] == [1], "patience is as long as at first"


def test_one_that_stays_away_is_given_up() -> None:
    camera = Camera([picture(1)])
    connection = camera.connection(give_up=100)
    connection.picture()
    with pytest.raises(SourceGoneError, match="camera:0 delivered nothing for 100 s; check its cable") as error:
        connection.picture()
    assert error.value.exit_code == 75 and camera.open == 0
    assert camera.pauses == [1, 2, 4, 8, 16, 30, 30, 30] and len(camera.told) == 1


class Turns:
    """A connection whose pictures come when they are called for."""

    name = "camera:0"

    def __init__(self) -> None:
        self.due: list[np.ndarray | BaseException | None] = []
        self.come = threading.Semaphore(0)
        self.asked = threading.Semaphore(0)
        self.released = False

    def give(self, *found: np.ndarray | BaseException | None) -> None:
        """Let the reader have these, and wait until it has come back for more."""
        for one in found:
            self.due.append(one)
            self.come.release()
            if isinstance(one, np.ndarray):
                assert self.asked.acquire(timeout=60)

    def picture(self) -> np.ndarray | None:
        self.asked.release()
        self.come.acquire()
        found = self.due.pop(0)
        if isinstance(found, BaseException):
            raise found
        return found

    def stop(self) -> None:
        self.give(None)

    def release(self) -> None:
        self.released = True


def test_the_newest_picture_is_taken_and_stale_ones_are_counted() -> None:
    turns = Turns()
    reader = NewestPicture(turns)  # type: ignore[arg-type]
    assert turns.asked.acquire(timeout=60)
    turns.give(picture(0))
    assert reader.take()[0] == 0  # type: ignore[index]
    turns.give(picture(1), picture(2), picture(3))
    number, found = reader.take()  # type: ignore[misc]
    assert (number, value(found), reader.dropped, reader.read) == (3, 3, 2, 4)
    turns.give(picture(4), SourceGoneError("gone"))
    assert reader.take()[0] == 4, "what came before the end is taken"  # type: ignore[index]
    with pytest.raises(SourceGoneError, match="gone"):
        reader.take()
    assert turns.released


def test_waiting_is_told_and_a_stopped_reader_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgetta.sources.live._LOOK", 1e-3)
    turns, waits = Turns(), [0]
    reader = NewestPicture(turns)  # type: ignore[arg-type]

    def waiting() -> None:
        waits[0] += 1
        if waits[0] == 3:
            turns.stop()

    assert reader.take(waiting) is None and waits[0] >= 3


def frames_of(camera: Camera, seen: Callable[[Frame], object] = lambda frame: None) -> LiveFrames:
    def frame(name: str, picture: np.ndarray, index: int) -> Frame:
        made = Frame(name, picture, index)
        seen(made)
        return made

    return LiveFrames(camera.connection(), frame, "camera:0")


def test_frames_are_numbered_as_they_were_read() -> None:
    camera = Camera([None, *(picture(number) for number in range(50))])
    source = frames_of(camera)
    assert source.length is None and source.description == "camera:0: frames of 3 x 2"
    indices = []
    with pytest.raises(SourceGoneError):
        for frame in source:
            assert frame.index == value(frame.image) and frame.name == f"camera:0[{frame.index}]"
            indices.append(frame.index)
    assert indices == sorted(set(indices)) and indices[0] == 0 and indices[-1] == 49
    assert len(indices) + source.dropped == 50
    source.close()
    assert camera.open == 0


def test_one_that_opens_and_delivers_nothing() -> None:
    camera = Camera([None] * FAILED_READS)
    with pytest.raises(SourceError, match="opens but delivers no frame"):
        frames_of(camera)
    assert camera.open == 0
