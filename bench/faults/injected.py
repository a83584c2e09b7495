"""Faults that are put in on purpose, one after another, each with what must be true of the run that met it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from edgetta.state_files import StateFile
from edgetta.state_files.contents import StateError, read

FRAMES, BATCH = 40, 8
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGXCPU")


@dataclass(frozen=True)
class Bench:
    """A bundle, and a folder to run it in."""

    bundle: Path
    folder: Path

    @property
    def frames(self) -> Path:
        """Forty frames, made once."""
        path = self.folder / "frames.npy"
        if not path.exists():
            np.save(path, np.random.default_rng(0).integers(0, 256, (FRAMES, 16, 16, 3), dtype=np.uint8))
        return path

    def place(self, name: str) -> Path:
        """A folder of its own for a fault."""
        path = self.folder / name.replace(" ", "-").replace(",", "")
        path.mkdir(exist_ok=True)
        return path

    def arguments(self, place: Path, *more: object) -> list[str]:
        """Of `edgetta run` there."""
        fixed = [self.bundle, self.frames, "--state", place / "state", "-o", place / "rows.jsonl", "--append"]
        return ["run", *map(str, [*fixed, "--batch", BATCH, "--engine", "torch", "--quiet", *more])]

    def run(self, place: Path, *more: object) -> tuple[int, str]:
        """Run it in this process: its exit code, and what it said."""
        from edgetta.cli import main

        said = StringIO()
        with redirect_stderr(said), redirect_stdout(StringIO()):
            code = main(self.arguments(place, *more))
        return code, said.getvalue()


def faults(bench: Bench) -> Iterator[dict[str, Any]]:
    """A row per fault: what it was, whether the run recovered as it must, and what it said."""
    made: list[tuple[str, Callable[[Bench, Path], tuple[bool, str]]]] = [
        ("state: one bit flipped", lambda b, p: _damaged(b, p, 1, _flipped)),
        ("state: emptied", lambda b, p: _damaged(b, p, 1, lambda data: b"")),
        ("state: cut short", lambda b, p: _damaged(b, p, 1, lambda data: data[: len(data) // 2])),
        ("state: every save damaged", lambda b, p: _damaged(b, p, 3, _flipped)),
        ("disk full while it saves", lambda b, p: _disk(b, p, errno.ENOSPC, 3)),
        ("disk read-only while it saves", lambda b, p: _disk(b, p, errno.EROFS, 3)),
        ("foreign error in a step", lambda b, p: _in_a_step(b, p, RuntimeError("foreign"), 70)),
        ("want of memory outside of an update", lambda b, p: _in_a_step(b, p, MemoryError(), 1)),
        ("want of memory in an update", _in_an_update),
        *((f"signal {name}", _signalled(name)) for name in SIGNALS),
        ("standard output closed", _closed),
        ("a second process on the state", _second),
        ("leftovers of a killed process", _leftovers),
        ("bundle cut short under a running process", _bundle_cut),
    ]
    for name, inject in made:
        started = time.perf_counter()
        recovered, said = inject(bench, bench.place(name))
        seconds = round(time.perf_counter() - started, 2)
        said = " ".join(said.replace(f"{bench.folder}/", "").split())
        yield {"fault": name, "recovered": recovered, "said": said[:200], "seconds": seconds}


def _steps(place: Path) -> int | None:
    try:
        return int(read(place / "state").info["counters"]["steps"])
    except (StateError, KeyError):
        return None


def _rows(place: Path) -> int:
    path = place / "rows.jsonl"
    return len([json.loads(line) for line in path.read_text().splitlines()]) if path.exists() else 0


def _flipped(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 8]) + data[-2:]


def _damaged(bench: Bench, place: Path, generations: int, damage: Callable[[bytes], bytes]) -> tuple[bool, str]:
    for _ in range(3):
        bench.run(place)
    for path in StateFile(place / "state").generations[:generations]:
        path.write_bytes(damage(path.read_bytes()))
    code, said = bench.run(place)
    due = (3 if generations == 1 else 1) * FRAMES // BATCH
    return code == 0 and _rows(place) == 4 * FRAMES and _steps(place) == due and "set aside" in said, said


def _disk(bench: Bench, place: Path, number: int, failures: int) -> tuple[bool, str]:
    save, tries = StateFile.save, [0]

    def failing(self: StateFile, *arguments: Any) -> int:
        tries[0] += 1
        if tries[0] > failures:
            return save(self, *arguments)
        with mock.patch("edgetta.storage.os.fsync", side_effect=OSError(number, os.strerror(number))):
            return save(self, *arguments)

    with mock.patch.object(StateFile, "save", failing):
        code, said = bench.run(place, "--save-seconds", 1e-9)
    told = said.count("going on without, and trying again") == 1
    return code == 0 and told and _rows(place) == FRAMES and _steps(place) == FRAMES // BATCH, said


@contextmanager
def _step_that_fails(error: BaseException, at: int) -> Iterator[None]:
    from edgetta.runtime import Runtime

    step, calls = Runtime.step, [0]

    def failing(self: Runtime, images: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            raise error
        return step(self, images)

    with mock.patch.object(Runtime, "step", failing):
        yield


def _in_a_step(bench: Bench, place: Path, error: BaseException, expected: int) -> tuple[bool, str]:
    with _step_that_fails(error, 3):
        code, said = bench.run(place)
    whole = _steps(place) == 2 and _rows(place) == 2 * BATCH
    again, _ = bench.run(place, "--resume")
    return code == expected and whole and again == 0 and _rows(place) == FRAMES, said.splitlines()[-1]


def _in_an_update(bench: Bench, place: Path) -> tuple[bool, str]:
    """The step is undone, its images are predicted all the same, and the next ones learn."""
    from edgetta.adaptation.adapter import Adapter

    step, calls = Adapter.step, [0]

    def scarce(self: Adapter, *arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise MemoryError
        return step(self, *arguments, **options)

    with mock.patch.object(Adapter, "step", scarce):
        code, said = bench.run(place)
    return code == 0 and _rows(place) == FRAMES and calls[0] >= FRAMES // BATCH, said


def _signalled(name: str) -> Callable[[Bench, Path], tuple[bool, str]]:
    number = int(getattr(signal, name))

    def inject(bench: Bench, place: Path) -> tuple[bool, str]:
        process, rows = _started(bench, place)
        process.send_signal(number)
        said = process.communicate()[1]
        whole = _steps(place) == _rows(place) == _long_rows(rows, place)
        return process.returncode == 128 + number and whole, said.strip()

    return inject


def _long_rows(seen: int, place: Path) -> int:
    """The rows that are there, at least those that were seen."""
    return max(seen, _rows(place))


def _started(bench: Bench, place: Path, *more: str) -> tuple[subprocess.Popen[str], int]:
    """A process in the middle of a long stream, one frame a step."""
    long = bench.folder / "long.npy"
    if not long.exists():
        np.save(long, np.random.default_rng(0).integers(0, 256, (20_000, 16, 16, 3), dtype=np.uint8))
    arguments = bench.arguments(place, "--batch", 1, *more)
    arguments[2] = str(long)
    process = subprocess.Popen(
        [sys.executable, "-m", "edgetta", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=_listens,
    )
    while process.poll() is None and _rows(place) < 5:
        time.sleep(0.05)
    return process, _rows(place)


def _listens() -> None:
    """A shell starts what runs in its background with Ctrl-C ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _closed(bench: Bench, place: Path) -> tuple[bool, str]:
    arguments = bench.arguments(place)
    arguments[arguments.index("-o") + 1] = "-"
    arguments.remove("--append")
    process = subprocess.Popen(
        [sys.executable, "-m", "edgetta", *arguments, "--batch", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read().decode()
    process.wait()
    steps = _steps(place)
    return process.returncode in (0, 141) and (
        _steps(place) or 0
    ) >= 1, f"exit code {process.returncode}, {steps} steps {said}"


def _second(bench: Bench, place: Path) -> tuple[bool, str]:
    process, _ = _started(bench, place)
    code, said = bench.run(place)
    process.terminate()
    process.communicate()
    named = f"in use by process {process.pid}" in said
    return code == 1 and named and _steps(place) == _rows(place), said.strip()


def _leftovers(bench: Bench, place: Path) -> tuple[bool, str]:
    left = place / ".state.0123abcd.tmp"
    left.write_bytes(b"half a state")
    os.utime(left, (0, 0))
    code, said = bench.run(place)
    names = sorted(path.name for path in place.iterdir())
    return code == 0 and names == ["rows.jsonl", "state"], said or ", ".join(names)


def _bundle_cut(bench: Bench, place: Path) -> tuple[bool, str]:
    import shutil

    bundle = place / "bundle"
    shutil.copytree(bench.bundle, bundle)
    process, _ = _started(Bench(bundle, bench.folder), place)
    for path in bundle.rglob("*"):
        if path.is_file():
            os.truncate(path, 10)
    before = _rows(place)
    while process.poll() is None and _rows(place) < before + 20:
        time.sleep(0.05)
    process.terminate()
    said = process.communicate()[1]
    return process.returncode == 143 and _rows(place) >= before + 20 and _steps(place) == _rows(place), said.strip()
