"""One process at a time writes a file; the second is told which one does, and a killed one locks nobody out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgetta.process_lock import InUseError, process_lock

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")

HOLDER = """
import sys
from pathlib import Path
from edgetta.process_lock import process_lock
with process_lock(Path(sys.argv[1]), "the state"):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def refused(path: Path, words: str) -> str:
    """What is said where another one holds the lock."""
    with pytest.raises(InUseError, match=words) as error, process_lock(path, "the state"):
        pass
    return str(error.value)


def test_the_second_names_the_first(tmp_path: Path) -> None:
    path = tmp_path / "state"
    first = holder(path)
    try:
        refused(path, rf"the state .*state is in use by process {first.pid} \(")
    finally:
        first.communicate("")
    with process_lock(path, "the state"):
        pass
    assert list(tmp_path.iterdir()) == [], "nothing stays behind"


def test_a_killed_process_locks_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / "state"
    first = holder(path)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert (tmp_path / ".state.lock").exists()
    with process_lock(path, "the state"):
        facts = (tmp_path / ".state.lock").read_text()
        assert str(os.getpid()) in facts and str(first.pid) not in facts


def test_two_in_one_process(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with process_lock(path, "the state"):
        refused(path, f"process {os.getpid()}")
        with process_lock(tmp_path / "other", "the state"):
            pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with process_lock(tmp_path / "missing" / "state", "the state"):
        pass


def test_a_holder_that_says_nothing_or_escapes(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with process_lock(path, "the state"):
        for text in ("", '{"pid": 1, "program": "\\u001b[2J", "since": "\\n"}'):
            (tmp_path / ".state.lock").write_text(text)
            assert refused(path, "is in use by").isprintable()
