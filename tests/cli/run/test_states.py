"""`edgetta run` loses nothing: every end saves, damaged states and full disks end no run, rows go on."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetta.process_lock import process_lock
from edgetta.runtime import Runtime
from edgetta.state_files import Contents, StateFile
from edgetta.state_files.contents import read
from edgetta.storage import StorageError
from tests.cli.run.verb import Captured, error_of, rows_of, run
from tests.small_bundle import whole_bundle, write_small


def steps_of(path: Path) -> int:
    return int(read(path).info["counters"]["steps"])


def raising(monkeypatch: pytest.MonkeyPatch, what: Any, after: int) -> None:
    """Have the step behind `after` ones do something."""
    step = Runtime.step

    def trial(self: Runtime, images: Any) -> Any:
        if self.adapter.state.steps == after:
            what()
        return step(self, images)

    monkeypatch.setattr(Runtime, "step", trial)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("name", ["SIGHUP", "SIGQUIT", "SIGUSR1", "SIGXCPU"])
def test_signals_save(
    array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, name: str
) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    signal.signal(number, signal.SIG_DFL)
    raising(monkeypatch, lambda: signal.raise_signal(number), 2)
    out, state = tmp_path / "out.jsonl", tmp_path / "state"
    try:
        assert run(array, "-o", out, "--state", state, "--batch", 8) == 128 + number
    finally:
        signal.signal(number, before)
    printed = capsys.readouterr()
    assert printed.err.endswith(f"edgetta: ended by {name}\n") and f"until it was ended by {name}" in printed.out
    assert len(rows_of(out)) == 24 and steps_of(state) == 3


@pytest.mark.parametrize("error", [RuntimeError("foreign"), MemoryError(), SystemExit(9), AssertionError("ours")])
def test_errors_that_nobody_expects_save(
    array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, error: BaseException
) -> None:
    def fail() -> None:
        raise error

    raising(monkeypatch, fail, 2)
    out, state = tmp_path / "out.jsonl", tmp_path / "state"
    if isinstance(error, SystemExit):
        with pytest.raises(SystemExit):
            run(array, "-o", out, "--state", state, "--batch", 8)
    else:
        assert run(array, "-o", out, "--state", state, "--batch", 8) == (1 if isinstance(error, MemoryError) else 70)
    assert len(rows_of(out)) == 16 and steps_of(state) == 2


@pytest.mark.parametrize("damage", [b"", b"damaged"])
def test_a_damaged_state_ends_no_start(array: Path, tmp_path: Path, capsys: Captured, damage: bytes) -> None:
    state = tmp_path / "state"
    for _ in range(2):
        assert run(array, "--state", state, "--batch", 8, "--quiet") == 0
    state.write_bytes(damage)
    assert run(array, "--state", state, "--batch", 8, "--limit", 8) == 0
    lines = capsys.readouterr().err.splitlines()
    assert (
        "set aside as state.damaged-" in lines[0] and "continuing from" in lines[1] and "after 5 batches" in lines[1]
    )
    assert steps_of(state) == 6
    for path in StateFile(state).generations:
        path.write_bytes(damage)
    assert run(array, "--state", state, "--batch", 8, "--limit", 8, "--quiet") == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and lines[-1] == "edgetta: no save is whole: starting from what was shipped"
    assert steps_of(state) == 1


def test_a_state_of_another_bundle_is_refused_and_stays(array: Path, tmp_path: Path, capsys: Captured) -> None:
    other = write_small(tmp_path / "other", name="another")
    state = tmp_path / "state"
    assert run(array, "--state", state, "--quiet", bundle=other) == 0
    before = state.read_bytes()
    assert run(array, "--state", state, "--quiet") == 4
    assert "the state belongs to another bundle" in error_of(capsys) and state.read_bytes() == before


def test_a_disk_that_is_full_ends_no_run(
    array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    save, tries = StateFile.save, [0]

    def full(self: StateFile, contents: Contents, digest: str = "") -> int:
        tries[0] += 1
        if tries[0] < 4:
            raise StorageError("cannot write state: the disk is full")
        return save(self, contents, digest)

    monkeypatch.setattr(StateFile, "save", full)
    options = (
        "--state",
        tmp_path / "state",
        "--batch",
        1,
        "--save-seconds",
        1e-9,
        "--json",
        tmp_path / "summary.json",
    )
    assert run(array, *options) == 0
    error = capsys.readouterr().err
    assert error.count("the disk is full; going on without, and trying again") == 1
    assert error.count("the state is saved again, after 3 failed saves") == 1
    told = json.loads((tmp_path / "summary.json").read_text())
    assert told["frames"] == 40 and told["saves"]["failures"] == 3 and told["saves"]["saves"] >= 1
    assert steps_of(tmp_path / "state") == 40


def test_a_last_save_that_fails_is_an_error(array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: StateFile, contents: Contents, digest: str = "") -> int:
        raise StorageError("cannot write state: the disk is full")

    monkeypatch.setattr(StateFile, "save", full)
    assert run(array, "--state", tmp_path / "state", "--quiet") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
@pytest.mark.parametrize("option", ["--state", "-o"])
def test_a_second_process_is_refused(array: Path, tmp_path: Path, capsys: Captured, option: str) -> None:
    file = tmp_path / "held.jsonl"
    with process_lock(file, "it"):
        assert run(array, option, file) == 1
    assert f"is in use by process {os.getpid()}" in error_of(capsys) and not file.exists()


@pytest.mark.skipif(not Path("/dev/null").is_char_device(), reason="needs /dev/null")
def test_no_lock_is_put_beside_a_device(array: Path) -> None:
    (array.parent / "null.csv").symlink_to("/dev/null")
    assert run(array, "-o", array.parent / "null.csv", "--quiet") == 0
    assert not Path("/dev/.null.lock").exists() and not (array.parent / ".null.csv.lock").exists()


def test_rows_are_appended_with_index_and_time(array: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    for _ in range(2):
        assert run(array, "-o", out, "--append", "--limit", 16, "--quiet") == 0
    rows = rows_of(out)
    assert [row["index"] for row in rows] == list(range(32)) and rows[16]["frame"] == rows[0]["frame"]
    times = [row["time"] for row in rows]
    assert times == sorted(times) and all(time.endswith("Z") and len(time) == 24 for time in times)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_recorded_source_goes_on_behind_the_last_row(
    array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    out, state = tmp_path / f"out.{suffix}", tmp_path / "state"
    options = ("-o", out, "--state", state, "--batch", 8, "--resume", "--quiet")
    with monkeypatch.context() as context:
        raising(context, lambda: (_ for _ in ()).throw(RuntimeError("cut")), 2)
        assert run(array, *options) == 70
    with out.open("ab") as file:
        file.write(b"half a row")
    assert run(array, *options, "--json", tmp_path / "summary.json") == 0
    assert json.loads((tmp_path / "summary.json").read_text())["frames"] == 24
    lines = out.read_text().splitlines()[suffix == "csv" :]
    names = [line.split(",")[1] for line in lines] if suffix == "csv" else [json.loads(x)["frame"] for x in lines]
    assert names == [f"frames.npz[{number}]" for number in range(40)] and steps_of(state) == 5
    assert run(array, *options) == 0, "nothing is left to do"
    assert len(out.read_text().splitlines()) == len(lines) + (suffix == "csv") and steps_of(state) == 5


def test_rows_of_another_source_are_not_resumed_behind(array: Path, tmp_path: Path, capsys: Captured) -> None:
    np.save(tmp_path / "other.npy", np.load(array)["images"][:12])
    out = tmp_path / "out.jsonl"
    assert run(array, "-o", out, "--limit", 8, "--quiet") == 0
    assert run(tmp_path / "other.npy", "-o", out, "--resume", "--quiet") == 2
    assert "row 7 is of 'frames.npz[7]', and it is 'other.npy[7]' in the source" in error_of(capsys)
    assert len(rows_of(out)) == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--append",), "add -o FILE"),
        (("--resume", "-o", "-"), "add -o FILE"),
        (("--append", "--overwrite", "-o", "x.csv"), "leave one out"),
    ],
)
def test_options_that_do_not_go_together(array: Path, capsys: Captured, options: tuple[str, ...], words: str) -> None:
    assert run(array, *options, bundle=whole_bundle()) == 2
    assert words in error_of(capsys)


def test_leftovers_are_cleaned(array: Path, tmp_path: Path) -> None:
    left = tmp_path / ".state.0123abcd.tmp"
    left.write_bytes(b"half a state")
    os.utime(left, (0, 0))
    assert run(array, "--state", tmp_path / "state", "--limit", 8, "--quiet") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frames.npz", "state"]


def test_a_camera_that_stays_away_has_an_exit_code_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    from edgetta.sources import live
    from tests.cli.run.verb import picture
    from tests.sources.test_video import install

    monkeypatch.setattr(live, "FIRST_PAUSE", 1e-3)
    fake = install(monkeypatch, [picture(number) for number in range(3)])
    opened = fake.VideoCapture

    def once(target: object, backend: int | None = None) -> Any:
        fake.opens = not fake.captures
        return opened(target, backend)

    monkeypatch.setattr(fake, "VideoCapture", once)
    out, state = tmp_path / "out.jsonl", tmp_path / "state"
    assert run("camera:0", "-o", out, "--state", state, "--give-up", 0.01, "--quiet") == 75
    error = capsys.readouterr().err
    assert "camera:0 stopped delivering frames; connecting again" in error
    assert error.endswith("check its cable, its power and the network\n")
    assert steps_of(state) == len(rows_of(out)) >= 1


def test_a_full_disk_ends_no_live_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """A camera's rows wait; a recorded source would end, and be taken up again behind its last row."""
    from edgetta import predictions, sources
    from edgetta.sources import open_source
    from tests.cli.run.test_bad_input import _with
    from tests.cli.run.verb import picture

    np.save(tmp_path / "x.npy", picture(0, (12, 16, 16, 3)))
    write, calls = os.write, [0]

    def full(descriptor: int, data: bytes) -> int:
        calls[0] += 1
        if calls[0] == 3:
            raise OSError(28, os.strerror(28))
        return write(descriptor, data)

    def live(spec: str, **options: Any) -> Any:
        source = open_source(tmp_path / "x.npy", **options)
        source.length = None
        return source

    monkeypatch.setattr(predictions, "os", _with(os, write=full))
    out = tmp_path / "out.jsonl"
    assert run(tmp_path / "x.npy", "-o", out, "--batch", 2, "--quiet") == 1 and len(rows_of(out)) == 4
    monkeypatch.setattr(sources, "open_source", live)
    calls[0] = 0
    assert run("camera:0", "-o", out, "--overwrite", "--batch", 2, "--quiet") == 0
    assert [row["index"] for row in rows_of(out)] == list(range(12))
    assert capsys.readouterr().err.count("going on, and the rows wait") == 1
