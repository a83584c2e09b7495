"""Saves by time, where something was learnt, and again after a failure: each said once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgetta.state_files import Contents, Saver, StateFile
from edgetta.storage import StorageError


class Stream:
    """A clock, and a state that learns when it is told to."""

    def __init__(self, path: Path) -> None:
        self.now = 0.0
        self.learnt = 0
        self.steps = 0
        self.told: list[str] = []
        self.file = StateFile(path)
        self.saver = Saver(self.file, self.contents, seconds=60, tell=self.told.append, clock=lambda: self.now)

    def contents(self) -> Contents:
        return Contents({"w": np.full(1000, self.learnt, np.float32)}, {"steps": self.steps})

    def batch(self, seconds: float, learns: bool = True) -> None:
        self.now += seconds
        self.steps += 1
        self.learnt += learns
        self.saver.when_due()


@pytest.fixture
def stream(tmp_path: Path) -> Stream:
    return Stream(tmp_path / "state")


def test_once_a_minute_at_thirty_frames_a_second(stream: Stream) -> None:
    for _ in range(30 * 600):
        stream.batch(1 / 30)
    assert stream.saver.saves in (9, 10)
    size = stream.file.path.stat().st_size
    assert stream.saver.written == stream.saver.saves * size
    assert 0.8 * 1440 * size < stream.saver.bytes_a_day < 1.1 * 1440 * size


def test_nothing_is_written_where_nothing_was_learnt(stream: Stream) -> None:
    stream.batch(61)
    for _ in range(100):
        stream.batch(61, learns=False)
    assert stream.saver.saves == 1
    stream.saver.save()
    assert stream.saver.saves == 1
    stream.saver.save(always=True)
    assert stream.saver.saves == 2 and stream.saver.failures == 0 and stream.told == []


def test_a_mark_tells_what_was_learnt(tmp_path: Path) -> None:
    """Counters that move with every batch are no reason to write."""
    stream = Stream(tmp_path / "state")
    taken: list[int] = []

    def contents() -> Contents:
        taken.append(stream.steps)
        return Contents({"steps": np.array(stream.steps)}, {})

    stream.saver = Saver(stream.file, contents, learnt=lambda: stream.learnt, clock=lambda: stream.now)
    stream.batch(61, learns=False)
    assert taken == [] and stream.saver.saves == 0
    stream.batch(61)
    stream.batch(61, learns=False)
    assert taken == [2] and stream.saver.saves == 1
    stream.batch(1)
    assert stream.saver.saves == 1
    stream.saver.when_due(early=True)
    assert stream.saver.saves == 2


def test_what_is_on_disk_already_is_not_written_again(stream: Stream) -> None:
    stream.saver.saw(stream.contents())
    stream.saver.save()
    assert stream.saver.saves == 0 and stream.saver.bytes_a_day == 0


def test_a_disk_that_is_full_for_a_day(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    save = StateFile.save

    def full(self: StateFile, contents: Contents, digest: str = "") -> int:
        raise StorageError("cannot write state: the disk is full")

    monkeypatch.setattr(StateFile, "save", full)
    for _ in range(24 * 60):
        stream.batch(60)
    assert stream.told == ["cannot write state: the disk is full; going on without, and trying again"]
    assert 24 <= stream.saver.failures <= 32, "less and less often, but once an hour at least"
    with pytest.raises(StorageError):
        stream.saver.save()
    monkeypatch.setattr(StateFile, "save", save)
    failures = stream.saver.failures
    for _ in range(61):
        stream.batch(60)
    assert stream.saver.saves >= 1 and stream.saver.failures == failures
    assert stream.told[1:] == [f"the state is saved again, after {failures:,} failed saves"]
