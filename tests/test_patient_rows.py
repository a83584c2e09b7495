"""A full disk does not end a live stream, and costs no row as long as there is room in memory."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from edgetta import predictions
from edgetta.patient_rows import RETRY_SECONDS, PatientWriter
from edgetta.predictions import Prediction, open_writer
from edgetta.storage import StorageError


class Disk:
    """`os.write`, which fails while the disk is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        write = os.write

        def guarded(descriptor: int, data: bytes) -> int:
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(descriptor, data)

        monkeypatch.setattr(predictions.os, "write", guarded)


def row(index: int) -> Prediction:
    return Prediction(index, f"camera:0[{index}]", 0, 1.0, 0.0, False)


def indices(path: Path) -> list[int]:
    return [json.loads(line)["index"] for line in path.read_text().splitlines()]


def test_rows_wait_and_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, now, told = Disk(monkeypatch), [0.0], []
    path = tmp_path / "rows.jsonl"
    with PatientWriter(open_writer(path), told.append, lambda: now[0]) as writer:
        assert writer.next_index == 0 and writer.last_frame is None
        for number in range(100):
            disk.full = 10 <= number < 80
            writer.write([row(number)])
            now[0] += 1
        assert indices(path) == list(range(100)) and writer.rows == 100 and writer.lost == 0
    assert len(told) == 2 and "the disk is full" in told[0] and told[0].endswith("going on, and the rows wait")
    assert told[1] == "the rows are written" and RETRY_SECONDS == 5


def test_what_has_no_room_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, now, told = Disk(monkeypatch), [0.0], []
    path = tmp_path / "rows.jsonl"
    writer = PatientWriter(open_writer(path), told.append, lambda: now[0], waiting=20)
    disk.full = True
    for number in range(30):
        writer.write([row(number)])
    disk.full = False
    now[0] = 60
    writer.write([row(30)])
    assert indices(path) == list(range(20)) and writer.lost == 11
    assert told[-1] == "the rows are written, but 11 were lost"
    writer.write([row(31)])
    writer.close()
    assert indices(path) == [*range(20), 31]


def test_what_waits_at_the_end_is_written_or_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    for full, path in ((False, tmp_path / "a.jsonl"), (True, tmp_path / "b.jsonl")):
        writer = PatientWriter(open_writer(path))
        disk.full = True
        writer.write([row(0)])
        disk.full = full
        if full:
            with pytest.raises(StorageError, match="the disk is full"):
                writer.close()
        else:
            writer.close()
        disk.full = False
        assert indices(path) == ([] if full else [0])
