"""SIGKILL at random moments: of a process that does nothing but save, and of `edgetta run` itself."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetta.state_files import StateFile
from edgetta.state_files.contents import Contents

LONGEST = 0.15
"""Seconds at most from a process's first save to its end."""


@dataclass
class Kills:
    """What was lost. Steps are those that a row was written of, and that the next start did not know of."""

    kills: int = 0
    inside_saves: int = 0
    states_lost: int = 0
    max_steps_lost: int = 0
    rows_lost: int = 0
    rows_broken: int = 0

    def row(self, what: str) -> dict[str, Any]:
        """The row of the result file."""
        return {"process": what, **vars(self)}


def kill_savers(folder: Path, count: int, seed: int, progress: Callable[[int], object] = lambda done: None) -> Kills:
    """Kill a process that saves all the time, `count` times, and look each time at what is left."""
    rolled, found = random.Random(seed), Kills()
    for number in range(count):
        _kill_one_saver(folder, rolled, found)
        progress(number + 1)
    return found


def _kill_one_saver(folder: Path, rolled: random.Random, found: Kills) -> None:
    before = _known(folder)
    size = rolled.choice((1_000, 100_000, 1_000_000))
    process = subprocess.Popen(
        [sys.executable, "-m", "edgetta.bench.faults.child", str(folder), str(size)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = [process.stdout.readline()]
    while not lines[-1].startswith("saving"):
        lines.append(process.stdout.readline())
    time.sleep(rolled.uniform(0, LONGEST))
    process.kill()
    lines += process.stdout.read().splitlines()
    process.wait()
    said = [line.split() for line in lines if len(line.split()) == 3]
    written = max(int(row) for word, _, row in said if word != "from")
    saved = max((int(step) for word, step, _ in said if word == "saved"), default=before or 0)
    found.kills += 1
    found.inside_saves += said[-1][0] == "saving"
    step = _known(folder)
    rows, broken = _rows(folder / "rows.jsonl")
    found.states_lost += step is None and (before is not None or saved > 0)
    made = max(int(step) for word, step, _ in said if word != "from")
    found.max_steps_lost = max(found.max_steps_lost, made - (step or 0))
    found.rows_lost += max(0, written - rows)
    found.rows_broken += broken


def kill_runs(
    bundle: Path,
    frames: Path,
    folder: Path,
    count: int,
    seed: int,
    progress: Callable[[int], object] = lambda done: None,
) -> Kills:
    """Kill `edgetta run` until it was killed `count` times, starting it again on what is left, and let it end then.

    frames   an array of more frames than it can come through meanwhile; begun anew where it did
    """
    rolled, found = random.Random(seed), Kills()
    out, state = folder / "rows.jsonl", folder / "state"
    command = [sys.executable, "-m", "edgetta", "run", str(bundle), str(frames), "-o", str(out), "--state", str(state)]
    command += ["--resume", "--batch", "1", "--save-every", "5", "--engine", "torch", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    behind = 0
    while found.kills < count:
        rows = _rows(out)[0]
        process = subprocess.Popen(command, env=environment)
        while process.poll() is None and _rows(out)[0] == rows:
            time.sleep(0.02)
        time.sleep(rolled.uniform(0, 10 * LONGEST))
        ended = process.poll() is not None
        process.kill()
        process.wait()
        if ended:
            _check_rows(out, found, frames)
            out.unlink(missing_ok=True)
            for path in StateFile(state).generations:
                path.unlink(missing_ok=True)
            behind = 0
            continue
        found.kills += 1
        step, (rows, broken) = _known(folder, "steps"), _rows(out)
        found.states_lost += step is None and rows >= 10
        found.max_steps_lost = max(found.max_steps_lost, rows - (step or 0) - behind)
        behind = rows - (step or 0)  # the state knows of so many rows less; the next start adds to that
        found.rows_broken += broken
        progress(found.kills)
    subprocess.run(command, env=environment, check=True)
    _check_rows(out, found, frames)
    return found


def _check_rows(out: Path, found: Kills, frames: Path) -> None:
    """Every frame has one row, in its place."""
    import numpy as np

    count = len(np.load(frames, mmap_mode="r"))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    due = [(number, f"{frames.name}[{number}]") for number in range(count)]
    found.rows_lost += len(set(due) - {(row["index"], row["frame"]) for row in rows})
    found.rows_broken += max(0, len(rows) - count)


def _known(folder: Path, fact: str = "step") -> int | None:
    """How far the newest whole save got; None where there is none. Nothing is set aside."""
    file, steps = StateFile(folder / "state"), []

    def look(contents: Contents) -> None:
        steps.append(int(contents.info.get("counters", contents.info)[fact]))

    file.load(look)
    return steps[-1] if steps else None


def _rows(path: Path) -> tuple[int, int]:
    """Whole rows, and lines before the last that are none."""
    if not path.exists():
        return 0, 0
    lines = path.read_bytes().split(b"\n")[:-1]
    whole = 0
    for line in lines:
        try:
            whole += json.loads(line)["index"] == whole
        except ValueError:
            continue
    return whole, len(lines) - whole
