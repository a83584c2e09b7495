"""The peak of a call: what it allocates is seen, what came before is not, and the fallback says what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgetta.errors import EdgettaError
from edgetta.memory import peak as module
from edgetta.memory.peak import measure_peak, resident

MB = 1 << 20


def touch(megabytes: int) -> np.ndarray:
    return np.ones(megabytes * MB, np.uint8)


def test_a_call_shows_its_highest_level_and_what_it_leaves() -> None:
    def run() -> np.ndarray:
        touch(48)  # freed at once
        return touch(16)

    touch(200)  # earlier, and none of this call's business
    found = measure_peak(run)
    assert found.source == "high-water mark"
    assert 47 * MB <= found.peak <= 56 * MB
    assert 15 * MB <= found.held <= 24 * MB
    assert 0 < found.level <= resident() + 8 * MB


def test_the_first_calls_do_not_count_and_the_highest_of_the_others_does() -> None:
    sizes = iter([90, 5, 40, 10])
    released = []
    found = measure_peak(
        lambda: touch(next(sizes)), warm_up=1, repetitions=3, release=lambda: released.append(resident())
    )
    assert 39 * MB <= found.peak <= 48 * MB
    assert len(released) == 3


def test_where_the_mark_cannot_be_reset_it_is_sampled_and_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_CLEAR_REFS", tmp_path / "missing" / "clear_refs")
    found = measure_peak(lambda: touch(32))
    assert found.source == "sampled"
    assert 31 * MB <= found.peak <= 40 * MB


def test_a_system_without_resident_memory_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_STATUS", tmp_path / "status")
    with pytest.raises(EdgettaError, match="measure memory on Linux"):
        measure_peak(lambda: None)
