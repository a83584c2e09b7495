"""The peak of a call: what it allocates is seen, what came before is not, and the fallback says what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetta.errors import EdgettaError
from edgetta.memory import peak
from edgetta.memory.fresh_process import in_fresh_process

MB = 1 << 20


def test_a_call_shows_its_highest_level_and_what_it_leaves() -> None:
    """200 MB were taken and freed before, which must not show."""
    found = in_fresh_process("tests.memory.targets:peak_of_two_arrays")
    assert found["source"] == "high-water mark"
    assert 47 * MB <= found["peak"] <= 52 * MB
    assert 15 * MB <= found["held"] <= 20 * MB
    assert 0 < found["level"] < 150 * MB


def test_the_first_calls_do_not_count_and_the_highest_of_the_others_does() -> None:
    found, released = in_fresh_process(
        "tests.memory.targets:peaks_of_sizes", sizes=[90, 5, 40, 10], warm_up=1, repetitions=3
    )
    assert 39 * MB <= found <= 44 * MB
    assert released == 3


def test_where_the_mark_cannot_be_reset_it_is_sampled_and_said() -> None:
    found = in_fresh_process("tests.memory.targets:peak_of_two_arrays", sampled=True)
    assert found["source"] == "sampled"
    assert 15 * MB <= found["peak"] <= 52 * MB  # at least what is there at the end


def test_a_system_without_resident_memory_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peak, "_STATUS", tmp_path / "status")
    with pytest.raises(EdgettaError, match="measure memory on Linux"):
        peak.measure_peak(lambda: None)
