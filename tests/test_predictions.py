"""Prediction files: columns, formats, protection of what exists, full disks and interruptions."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgetta.errors import EdgettaError, UsageError
from edgetta.predictions import COLUMNS, Prediction, PredictionWriter, open_writer
from edgetta.printable import printable
from edgetta.storage import StorageError

ROWS = [
    Prediction(0, "a/cat.jpg", "cat", 0.987654321, 0.05, True),
    Prediction(1, 'comma, "quote".png', 7, np.float32(0.5), np.float64(1.25), np.bool_(False)),  # type: ignore[arg-type]
]


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_json_lines(tmp_path: Path) -> None:
    with open_writer(tmp_path / "out.jsonl") as writer:
        writer.write(ROWS)
        assert writer.rows == 2
    rows = rows_of(tmp_path / "out.jsonl")
    assert rows[0] == {
        "index": 0,
        "frame": "a/cat.jpg",
        "class": "cat",
        "confidence": 0.987654,
        "entropy": 0.05,
        "adapted": True,
        "time": "",
    }
    assert rows[1]["class"] == 7 and rows[1]["adapted"] is False and rows[1]["frame"] == 'comma, "quote".png'
    assert tuple(rows[0]) == COLUMNS


def test_csv(tmp_path: Path) -> None:
    with open_writer(tmp_path / "out.csv") as writer:
        writer.write(ROWS)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert rows[0] == {
        "index": "0",
        "frame": "a/cat.jpg",
        "class": "cat",
        "confidence": "0.987654",
        "entropy": "0.05",
        "adapted": "true",
        "time": "",
    }
    assert rows[1]["frame"] == 'comma, "quote".png' and rows[1]["adapted"] == "false"


def test_numpy_values_and_values_that_are_not_finite(tmp_path: Path) -> None:
    odd = Prediction(np.int64(3), "x", np.int64(2), float("nan"), float("inf"), True)  # type: ignore[arg-type]
    for name in ("out.jsonl", "out.csv"):
        with open_writer(tmp_path / name) as writer:
            writer.write([odd])
    assert rows_of(tmp_path / "out.jsonl") == [
        {"index": 3, "frame": "x", "class": 2, "confidence": None, "entropy": None, "adapted": True, "time": ""}
    ]
    assert (tmp_path / "out.csv").read_text().splitlines()[1] == "3,x,2,,,true,"


def test_names_in_any_script_and_names_that_are_no_unicode(tmp_path: Path) -> None:
    names = ["größe/猫.jpg", "\udcff.jpg"]
    for name in ("out.jsonl", "out.csv"):
        with open_writer(tmp_path / name) as writer:
            writer.write(Prediction(i, frame, 0, 1.0, 0.0, False) for i, frame in enumerate(names))
    assert [row["frame"] for row in rows_of(tmp_path / "out.jsonl")] == names
    assert "größe/猫.jpg" in (tmp_path / "out.csv").read_text(encoding="utf-8")
    assert "\\udcff.jpg" in (tmp_path / "out.csv").read_text(encoding="utf-8")


def test_every_batch_is_in_the_file_when_write_returns(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "out.jsonl")
    writer.write(ROWS[:1])
    assert len(rows_of(tmp_path / "out.jsonl")) == 1
    writer.write([])
    writer.write(ROWS[1:])
    assert len(rows_of(tmp_path / "out.jsonl")) == 2
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write(ROWS)


def test_an_existing_file_is_protected(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("precious\n")
    with pytest.raises(UsageError, match="--overwrite"):
        open_writer(target)
    assert target.read_text() == "precious\n"
    with open_writer(target, overwrite=True) as writer:
        writer.write(ROWS)
    assert len(rows_of(target)) == 2


def test_formats(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot tell the format of .*out\.txt"):
        open_writer(tmp_path / "out.txt")
    with pytest.raises(UsageError, match="no format 'xml'"):
        open_writer(tmp_path / "out.txt", "xml")
    assert list(tmp_path.iterdir()) == []
    with open_writer(tmp_path / "out.txt", "csv") as writer:
        writer.write(ROWS)
    assert (tmp_path / "out.txt").read_text().startswith("index,frame,class,")


def test_bad_places(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no folder"):
        open_writer(tmp_path / "nowhere" / "out.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(StorageError, match="it is a folder"):
        open_writer(tmp_path / "folder.csv")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_full_disk() -> None:
    with pytest.raises(StorageError, match="disk is full"):
        open_writer("/dev/full", "csv")
    writer = open_writer("/dev/full", "jsonl")
    with pytest.raises(EdgettaError, match=r"disk is full.*free some space"):
        writer.write(ROWS)
    writer.close()


def test_a_row_that_did_not_fit_is_cut_off_again(tmp_path: Path) -> None:
    """The system takes part of a batch and refuses the rest, as a disk does when it fills up."""
    program = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from edgetta.errors import EdgettaError\n"
        "from edgetta.predictions import Prediction, open_writer\n"
        "writer = open_writer(sys.argv[1])\n"
        "try:\n"
        "    for start in range(0, 100, 4):\n"
        "        writer.write([Prediction(i, 'frame', 0, 1.0, 0.0, False) for i in range(start, start + 4)])\n"
        "except EdgettaError as error:\n"
        "    print(writer.rows, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out.jsonl")], capture_output=True, text=True, check=True
    )
    kept = int(done.stdout.split()[0])
    assert kept == 8 and "the rows written before are intact" in done.stdout
    assert [row["index"] for row in rows_of(tmp_path / "out.jsonl")] == list(range(kept))


def test_rows_survive_a_kill(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from edgetta.predictions import Prediction, open_writer\n"
        "writer = open_writer(sys.argv[1])\n"
        "writer.write([Prediction(i, 'frame', 0, 1.0, 0.0, False) for i in range(5)])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "out.jsonl")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(rows_of(tmp_path / "out.jsonl")) == 5


def test_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with open_writer("-") as writer:
        writer.write(ROWS)
    lines = capfdbinary.readouterr().out.decode("utf-8").splitlines()
    assert [json.loads(line)["index"] for line in lines] == [0, 1]
    with open_writer("-", "csv") as writer:
        writer.write(ROWS)
    assert capfdbinary.readouterr().out.decode("utf-8").splitlines()[0] == ",".join(COLUMNS)
    os.write(1, b"still open")
    assert capfdbinary.readouterr().out == b"still open"


def test_an_interrupted_batch_leaves_whole_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer: PredictionWriter = open_writer(tmp_path / "out.jsonl")
    writer.write(ROWS)
    write = os.write

    def interrupted(descriptor: int, data: memoryview) -> int:
        write(descriptor, data[:10])
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.write(ROWS)
    monkeypatch.undo()
    assert len(rows_of(tmp_path / "out.jsonl")) == 2
    writer.write(ROWS)
    writer.close()
    assert [row["index"] for row in rows_of(tmp_path / "out.jsonl")] == [0, 1, 0, 1]


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
def test_rows_go_on_behind_those_that_are_there(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    for number in range(3):
        with open_writer(target, append=True) as writer:
            assert writer.next_index == 2 * number and writer.last_frame == (None if not number else "=b.png")
            rows = [Prediction(writer.next_index + i, f"{'=' * i}{'ab'[i]}.png", 0, 1.0, 0.0, False) for i in range(2)]
            writer.write(rows)
        with target.open("ab") as file:
            file.write(b'{"index": 7, "fra' if name == "out.jsonl" else b"7,half")  # killed in the middle of a row
    with open_writer(target, append=True) as writer:
        assert writer.next_index == 6
    text = target.read_text()
    assert text.count("\n") == (6 if name == "out.jsonl" else 7) and text.count("confidence") == (
        6 if name == "out.jsonl" else 1
    )
    assert text.endswith("\n") and "half" not in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("out.jsonl", b"precious\n"),
        ("out.jsonl", b'{"index": 1}\n'),
        ("out.jsonl", b"x" * 100_000),
        ("out.csv", b"a,b,c\n1,2,3\n"),
        ("out.csv", b"index,frame,class,confidence,entropy,adapted\n0,a,b,1,0,true\n"),
    ],
)
def test_what_is_no_file_of_predictions_is_not_appended_to(tmp_path: Path, name: str, content: bytes) -> None:
    target = tmp_path / name
    target.write_bytes(content)
    with pytest.raises(UsageError, match="does not end with a row of predictions"):
        open_writer(target, append=True)
    assert target.read_bytes() == content


def test_appending_to_what_is_empty_or_begun(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_bytes(b"")
    for name in ("empty.csv", "new.csv", "new.csv"):
        with open_writer(tmp_path / name, append=True) as writer:
            assert writer.next_index == 0 and writer.last_frame is None
        assert (tmp_path / name).read_text() == ",".join(COLUMNS) + "\n"


def test_cells_are_no_formulas(tmp_path: Path) -> None:
    cells = ['=HYPERLINK("http://evil")', "+1", "-1", "@SUM(A1)", "\tx", "a=b"]
    with open_writer(tmp_path / "out.csv") as writer:
        writer.write(Prediction(i, cell, cell, 1.0, 0.0, False) for i, cell in enumerate(cells))
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for cell, row in zip(cells, rows, strict=True):
        assert row["frame"] == row["class"] == (cell if cell == "a=b" else f"'{printable(cell)}")
    with open_writer(tmp_path / "out.jsonl") as writer:
        writer.write(Prediction(i, cell, cell, 1.0, 0.0, False) for i, cell in enumerate(cells))
    assert [row["class"] for row in rows_of(tmp_path / "out.jsonl")] == cells


def test_a_standard_output_that_was_closed_is_a_reader_that_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    closed = io.TextIOWrapper(io.BytesIO())
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    with pytest.raises(BrokenPipeError):
        open_writer("-").write(ROWS)
