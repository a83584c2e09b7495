"""`edgetta run` is interrupted: rows and state are those of whole steps, and the exit code says what ended it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetta.bundle import read_bundle
from edgetta.runtime import Runtime
from tests.cli.run.verb import Captured, picture, rows_of, run
from tests.small_bundle import whole_bundle


def _hears_ctrl_c() -> None:
    """A shell starts what runs in its background with Ctrl-C ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_in_the_middle(tmp_path: Path) -> None:
    np.save(tmp_path / "frames.npy", picture(0, (20_000, 16, 16, 3)))
    options = ["--batch", "1", "--when", "always", "-o", "-", "--state", str(tmp_path / "state")]
    process = subprocess.Popen(
        [sys.executable, "-m", "edgetta", "run", str(whole_bundle()), str(tmp_path / "frames.npy"), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=_hears_ctrl_c,
    )
    assert process.stdout is not None and process.stderr is not None
    first = [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    rest, errors = process.stdout.read(), process.stderr.read()  # `communicate` would miss what is read ahead
    process.wait(timeout=120)
    rows = [json.loads(line) for line in "".join([*first, rest]).splitlines()]
    assert process.returncode == 130 and errors.endswith("edgetta: interrupted\n")
    assert [row["index"] for row in rows] == list(range(len(rows))) and 3 <= len(rows) < 20_000
    assert f"{len(rows):,} predicted until it was interrupted" in errors
    runtime = Runtime(read_bundle(whole_bundle()), "torch", check=False)
    runtime.load_state(tmp_path / "state")
    assert runtime.adapter.state.steps == len(rows), "state and rows are of the same steps"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_sigterm_in_the_middle_of_a_step(
    array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    step = Runtime.step

    def terminated(self: Runtime, images: Any) -> Any:
        if self.adapter.state.steps == 2:
            signal.raise_signal(signal.SIGTERM)
        return step(self, images)

    monkeypatch.setattr(Runtime, "step", terminated)
    out, state = tmp_path / "out.jsonl", tmp_path / "state"
    assert run(array, "-o", out, "--state", state, "--batch", 8) == 143
    printed = capsys.readouterr()
    assert printed.err.endswith("edgetta: terminated\n") and "24 predicted until it was terminated" in printed.out
    assert len(rows_of(out)) == 24, "the step was finished first"
    runtime = Runtime(read_bundle(whole_bundle()), "torch", check=False)
    runtime.load_state(state)
    assert runtime.adapter.state.steps == 3


def test_a_reader_that_has_gone_still_saves_the_state(
    array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgetta import predictions

    written: list[bytes] = []

    def write(self: object, data: bytes) -> None:
        if written:
            raise BrokenPipeError
        written.append(data)

    monkeypatch.setattr(predictions._StandardOutput, "write", write)
    assert run(array, "-o", "-", "--state", tmp_path / "state", "--batch", 8) == 0
    runtime = Runtime(read_bundle(whole_bundle()), "torch", check=False)
    runtime.load_state(tmp_path / "state")
    assert runtime.adapter.state.steps == 2
