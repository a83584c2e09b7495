"""`edgetta bench fuzz`, small: no crash, no traceback, no hang, and most inputs reach a reader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetta.bench.fuzzing.command import Settings, fuzz
from edgetta.cli import main
from tests.small_bundle import whole_bundle


def check(tmp_path: Path, inputs: int, seed: int) -> None:
    tally = fuzz(whole_bundle(), tmp_path, Settings(inputs=inputs, seed=seed))
    row = tally.row()
    assert tally.failures == 0 and row["out_of_memory"] == 0, tally.samples
    assert row["caught_by_the_last_net"] == 0, tally.samples
    assert row["inputs"] == inputs and row["reached_readers"] > inputs / 2
    assert row["largest_bytes"] < 512 << 20


def test_two_hundred(tmp_path: Path) -> None:
    check(tmp_path, 200, 1)


@pytest.mark.full
def test_a_thousand(tmp_path: Path) -> None:
    check(tmp_path, 1000, 2)


def test_a_process_that_dies_or_hangs_is_counted_and_gone_on_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is replaced by one that dies at input 2 and sleeps for ever at input 4."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys\n"
        "first, last = int(sys.argv[4]), int(sys.argv[5])\n"
        "for n in range(first, last):\n"
        "    print(json.dumps({'number': n}), flush=True)\n"
        "    if n == 2: os.abort()\n"
        "    if n == 4: sys.stdin.read()\n"
        "    print(json.dumps({'outcome': 'refused', 'reached': True, 'grown': n}), flush=True)\n"
    )
    import subprocess
    import sys

    real = subprocess.Popen

    def popen(command: list[str], **options: object) -> object:
        return real([sys.executable, str(script), *command[3:]], stdin=subprocess.PIPE, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("edgetta.bench.fuzzing.command.subprocess.Popen", popen)
    tally = fuzz(whole_bundle(), tmp_path, Settings(inputs=6, seconds=2))
    row = tally.row()
    assert (row["inputs"], row["crashes"], row["hangs"], row["refused"]) == (6, 1, 1, 4)
    assert [sample["number"] for sample in tally.samples] == [2, 4] and tally.failures == 2
    assert row["largest_bytes"] == 5


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "fuzz.json"
    assert main(["bench", "fuzz", "--inputs", "20", "--bundle", str(whole_bundle()), "--json", str(path)]) == 0
    written = json.loads(path.read_text())
    assert written["rows"][0]["inputs"] == 20 and written["settings"]["seed"] == 0 and "date" in written
    assert "reached_readers" in capsys.readouterr().out
