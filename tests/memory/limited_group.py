"""A control group with a memory limit around a runtime: functions that `test_limited_group.py` calls in a process."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

# limit, usage and the field of memory.stat that counts what cannot be taken back at once, by version of the groups
FILES = {
    1: ("memory.limit_in_bytes", "memory.max_usage_in_bytes", "total_rss"),
    2: ("memory.max", "memory.peak", "anon"),
}


def new_group(proc: Path = Path("/proc")) -> tuple[int, Path]:
    """The version and the folder of a new group below this process's own. Raises `OSError` where there can be none."""
    mounts = [line.split(" ") for line in (proc / "self/mountinfo").read_text().splitlines()]
    for line in (proc / "self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        version = 2 if number == "0" and not controllers else 1
        if version == 1 and "memory" not in controllers.split(","):
            continue
        kind = "cgroup2" if version == 2 else "cgroup"
        for fields in mounts:
            rest = fields[fields.index("-") + 1 :]
            if rest[0] != kind or (version == 1 and "memory" not in rest[-1].split(",")):
                continue
            folder = Path(fields[4]) / path.lstrip("/") / f"edgetta-test-{os.getpid()}"
            folder.mkdir()
            if (folder / FILES[version][0]).is_file():
                return version, folder
            folder.rmdir()  # a group of version 2 without the memory controller
    raise FileNotFoundError("no memory controller in the groups of this process")


def steps_in_a_group(bundle: str, budget: int, batch: int, steps: int, folder: str, version: int) -> dict[str, Any]:
    """Steps on batches of random size, of frames of random size, where the group leaves 1.1 times the plan."""
    group = Path(folder)
    (group / "cgroup.procs").write_text(str(os.getpid()))  # before torch: what it loads is the group's
    from edgetta.bundle import read_bundle
    from edgetta.memory.peak import give_back
    from edgetta.runtime import Runtime
    from edgetta.sources.resize import Resize

    opened = read_bundle(bundle)
    config = replace(opened.config, entropy_margin=1.0, when="always", small_batch=4, window=8)
    runtime = Runtime(opened, config=config, budget=budget, batch=batch)
    assert runtime.plan is not None
    limit_file, peak_file, held = FILES[version]
    size = opened.input_shape[1:]
    random = np.random.default_rng(0)
    give_back()
    level = _stat(group, held) + (_stat(group, "total_mapped_file") if version == 1 else _stat(group, "file_mapped"))
    limit = level + round(1.1 * runtime.plan.cost.peak)
    (group / limit_file).write_text(str(limit))
    for _ in range(steps):
        count, height, width = int(random.integers(1, batch + 1)), *map(int, random.integers(8, 65, 2))
        frame = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        fitted = Resize(size).array(frame)
        images = np.broadcast_to(fitted, (count, *fitted.shape)) ^ random.integers(0, 64, (count, 1, 1, 1), np.uint8)
        logits = runtime(images)
        assert logits.shape[0] == count and bool(np.isfinite(logits).all())
    record = runtime.keeper.record
    return {
        "level": level,
        "planned": runtime.plan.cost.peak,
        "limit": limit,
        "peak": int((group / peak_file).read_text()),
        "steps": record.steps,
        "updates": runtime.adapter.state.updates,
        "failures": record.failures,
        "over": record.over,
        "down": record.down,
        "choice": runtime.plan.choice.told(),
    }


def takes(megabytes: int, folder: str) -> int:
    """Memory in the group, to see that its limit kills."""
    (Path(folder) / "cgroup.procs").write_text(str(os.getpid()))
    return int(np.ones(megabytes << 20, np.uint8).sum())


def _stat(group: Path, field: str) -> int:
    found = re.search(rf"^{field} (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
    return 0 if found is None else int(found[1])
