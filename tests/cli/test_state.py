"""`edgetta state`: saves are listed, shown, compared, restored and exported."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from edgetta.cli import main
from edgetta.process_lock import process_lock
from edgetta.state_files import Contents, StateFile
from edgetta.state_files.contents import read

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "learnt"
    for number in range(3):
        arrays = {"weights": np.full((2, 2), 1.0 + number, np.float32), "still": np.ones(3, np.float32)}
        StateFile(path).save(Contents(arrays, {"bundle": "b\x1b[2J", "counters": {"steps": number, "updates": 7}}))
    return path


def test_list(state: Path, capsys: Captured) -> None:
    StateFile(state).generations[1].write_bytes(b"damaged")
    assert main(["state", "list", str(state), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["batches"] for row in told["saves"]] == [2, None, 0] and told["set_aside"] == []
    assert told["saves"][0]["state"] == "whole" and "cut short" in told["saves"][1]["state"]
    StateFile(state).generations[1].rename(state.with_name("learnt.damaged-1"))
    assert main(["state", "list", str(state)]) == 0
    assert "set aside: learnt.damaged-1" in capsys.readouterr().out
    assert main(["state", "list", str(state.with_name("none"))]) == 4


def test_show(state: Path, capsys: Captured) -> None:
    assert main(["state", "show", str(state)]) == 0
    out = capsys.readouterr().out
    assert "weights" in out and "[2, 2]" in out and "\x1b[2J" not in out and "\\x1b[2J" in out
    assert main(["state", "show", str(state), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["info"]["counters"]["steps"] == 2
    assert told["arrays"][1] == {"array": "weights", "shape": [2, 2], "norm": 6.0, "low": 3.0, "high": 3.0}


def test_diff(state: Path, capsys: Captured) -> None:
    assert main(["state", "diff", f"{state}.2", str(state), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0] == {"array": "weights", "distance": 4.0, "relative": 2.0, "note": ""}
    assert rows[1]["array"] == "still" and rows[1]["distance"] == 0.0
    assert main(["state", "diff", f"{state}.2", str(state)]) == 0
    assert "1 of 2 arrays differ" in capsys.readouterr().out
    other = state.with_name("other")
    StateFile(other).save(Contents({"weights": np.ones(4, np.float32), "more": np.ones(1, np.float32)}, {}))
    assert main(["state", "diff", str(state), str(other), "--json"]) == 0
    notes = {row["array"]: row["note"] for row in json.loads(capsys.readouterr().out)}
    assert notes == {"weights": "(2, 2) and (4,)", "more": "only in the second", "still": "only in the first"}


def test_restore(state: Path, capsys: Captured) -> None:
    assert main(["state", "restore", str(state), "2"]) == 0
    assert [read(path).info["counters"]["steps"] for path in StateFile(state).generations] == [0, 2, 1]
    assert main(["state", "restore", str(state), "7"]) == 4
    assert "there is no generation 7" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_a_state_that_a_process_writes_is_not_restored(state: Path, capsys: Captured) -> None:
    with process_lock(StateFile(state).path, "the state"):
        assert main(["state", "restore", str(state), "1"]) == 1
    assert "is in use by process" in capsys.readouterr().err
    assert read(state).info["counters"]["steps"] == 2


def test_export(state: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "copy"
    state.write_bytes(b"damaged")
    assert main(["state", "export", str(state), str(out)]) == 0
    assert read(out).info["counters"]["steps"] == 1
    assert main(["state", "export", str(state), str(out)]) == 2
    assert main(["state", "export", str(state), str(out), "--overwrite"]) == 0
    for path in StateFile(state).generations:
        path.write_bytes(b"damaged")
    assert main(["state", "export", str(state), str(tmp_path / "none")]) == 4
    assert "no save that is whole" in capsys.readouterr().err
