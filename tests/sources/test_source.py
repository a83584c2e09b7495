"""The contract of sources, batches, and repetition."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from edgetta.errors import UsageError
from edgetta.sources import Frame, FrameSource, Skipped, Source, SourceError, batches
from edgetta.sources.source import NAMED_SKIPS

SIZE = (2, 2)


class Counting(FrameSource):
    """`good` frames, each after a bad one."""

    def __init__(self, good: int, *, bad: int = 0, loop: bool = False) -> None:
        super().__init__("counting", description="counting", length=good, loop=loop)
        self.good, self.bad, self.passes = good, bad, 0

    def read(self) -> Iterator[Frame | Skipped]:
        self.passes += 1
        for index in range(self.bad):
            yield Skipped(f"bad[{index}]", "bad")
        for index in range(self.good):
            yield Frame(f"good[{index}]", np.zeros((*SIZE, 3), np.uint8), index)


def names(frames: list[Frame]) -> list[str]:
    return [frame.name for frame in frames]


def test_batches() -> None:
    assert [len(batch) for batch in batches(Counting(7), 3)] == [3, 3, 1]
    assert [len(batch) for batch in batches(Counting(6), 3)] == [3, 3]
    assert list(batches(Counting(0), 3)) == []
    assert [names(batch) for batch in batches(Counting(2, bad=2), 1)] == [["good[0]"], ["good[1]"]]
    with pytest.raises(UsageError, match="use 1 or more"):
        batches(Counting(1), 0)


def test_batches_are_made_as_they_are_asked_for() -> None:
    endless = batches(Counting(5, loop=True), 3)
    assert [names(batch)[0] for batch in itertools.islice(endless, 3)] == ["good[0]", "good[3]", "good[1]"]


def test_every_source_keeps_the_contract() -> None:
    source = Counting(3, bad=1)
    assert isinstance(source, Source)
    with source as opened:
        assert opened is source
        assert len(list(source)) == 3 and source.skipped == [Skipped("bad[0]", "bad")]
        assert len(list(source)) == 3 and source.skipped_count == 1, "a new pass counts anew"


def test_repetition() -> None:
    source = Counting(2, bad=1, loop=True)
    assert source.length is None
    assert names(list(itertools.islice(source, 5))) == ["good[0]", "good[1]", "good[0]", "good[1]", "good[0]"]
    assert source.passes == 3 and source.skipped_count == 3
    with pytest.raises(SourceError, match=r"no frame of counting can be used \(1 skipped; the first, bad\[0\]: bad\)"):
        list(Counting(0, bad=1, loop=True))


def test_an_endless_stream_of_bad_frames_stays_in_its_memory() -> None:
    source = Counting(1, bad=3 * NAMED_SKIPS)
    assert len(list(source)) == 1
    assert source.skipped_count == 3 * NAMED_SKIPS and len(source.skipped) == NAMED_SKIPS
