"""The hard test: where the system kills at resident size plus 1.1 times the plan, a thousand steps are not killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from edgetta.memory.calibration import measure_cost_model
from edgetta.memory.fresh_process import MeasurementError, in_fresh_process
from tests.memory.limited_group import FILES, new_group
from tests.small_bundle import copy_of_it, edit_manifest, whole_bundle

BATCH, STEPS = 1536, 1000
MB = 1_000_000


@pytest.fixture
def group() -> Iterator[tuple[int, Path]]:
    """A new control group; skips where this user may make none."""
    try:
        version, folder = new_group()
    except OSError as error:
        pytest.skip(f"no control group with a memory limit can be made here ({error}); run it as root, or delegated")
    yield version, folder
    with suppress(OSError):
        folder.rmdir()


@pytest.mark.full
def test_a_thousand_steps_where_the_group_leaves_little_more_than_the_plan(
    group: tuple[int, Path], tmp_path: Path
) -> None:
    """Batches and frames of random size, the largest batch among them, on ONNX Runtime."""
    version, folder = group
    path = copy_of_it(tmp_path / "bundle")
    costs = measure_cost_model(str(whole_bundle()), ["onnxruntime"], threads=1)
    edit_manifest(path, lambda manifest: manifest.update(cost_model=costs.to_json()))
    found = in_fresh_process(
        "tests.memory.limited_group:steps_in_a_group",
        give_back=False,  # the runtime itself sees to it
        bundle=str(path),
        budget=150 * MB,
        batch=BATCH,
        steps=STEPS,
        folder=str(folder),
        version=version,
    )
    assert found["steps"] == STEPS and found["failures"] == 0, found
    assert found["updates"] > 0.9 * STEPS, found
    assert 75 * MB < found["planned"] <= 150 * MB and found["peak"] <= found["limit"], found
    assert found["peak"] > found["level"] + 0.5 * found["planned"], "and the steps did need it"


@pytest.mark.full
def test_the_limit_of_a_group_does_kill(group: tuple[int, Path]) -> None:
    version, folder = group
    (folder / FILES[version][0]).write_text(str(200 * MB))
    assert in_fresh_process("tests.memory.limited_group:takes", megabytes=20, folder=str(folder)) == 20 << 20
    with pytest.raises(MeasurementError, match="killed by the system: out of memory"):
        in_fresh_process("tests.memory.limited_group:takes", megabytes=400, folder=str(folder))
