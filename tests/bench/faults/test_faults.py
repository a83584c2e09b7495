"""`edgetta bench faults`, small: nothing is lost by kills, and every injected fault is recovered from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgetta.bench.faults.injected import Bench, faults
from edgetta.bench.faults.kills import kill_runs, kill_savers
from tests.small_bundle import whole_bundle


def check_savers(folder: Path, count: int) -> None:
    found = kill_savers(folder, count, seed=1)
    assert found.kills == count and found.inside_saves > count / 2
    assert found.states_lost == found.rows_lost == found.rows_broken == 0
    assert found.max_steps_lost <= 1, "the step that was being saved"


def test_savers_are_killed(tmp_path: Path) -> None:
    check_savers(tmp_path, 8)


@pytest.mark.full
def test_savers_are_killed_more_often(tmp_path: Path) -> None:
    check_savers(tmp_path, 50)


def test_runs_are_killed(tmp_path: Path) -> None:
    frames = tmp_path / "frames.npy"
    np.save(frames, np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8))
    found = kill_runs(whole_bundle(), frames, tmp_path, 1, seed=3)
    assert found.kills == 1 and found.states_lost == found.rows_lost == found.rows_broken == 0
    assert found.max_steps_lost <= 5


@pytest.mark.full
def test_every_fault_is_recovered_from(tmp_path: Path) -> None:
    rows = list(faults(Bench(whole_bundle(), tmp_path)))
    assert len(rows) >= 18 and [row["fault"] for row in rows if not row["recovered"]] == [], rows
