"""Each measurement runs in a process of its own, and whatever becomes of that is told in one line."""

from __future__ import annotations

import os

import pytest

from edgetta.memory.fresh_process import MeasurementError, in_fresh_process

TARGETS = "tests.memory.targets:"


def test_arguments_and_results_travel() -> None:
    first, second = (in_fresh_process(TARGETS + "add", a=1, b=2) for _ in range(2))
    assert first["sum"] == 3
    assert len({first["process"], second["process"], os.getpid()}) == 3


def test_freed_memory_is_given_back_unless_told_otherwise() -> None:
    """Blocks below glibc's start value for mapping grow the heap; one behind them keeps it from shrinking."""
    kept = in_fresh_process(TARGETS + "kept_of_freed_blocks", give_back=False)
    assert in_fresh_process(TARGETS + "kept_of_freed_blocks") < 4 << 20 < 12 << 20 < kept


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("refuse", "^batch 0 is none"),
        ("fail", "ZeroDivisionError: nothing to divide by"),
        ("exhaust", "out of memory"),
        ("killed", "killed by the system: out of memory; choose a smaller batch"),
        ("crashed", "ended by SIGSEGV"),
    ],
)
def test_failures_are_told_in_one_line(name: str, words: str) -> None:
    with pytest.raises(MeasurementError, match=words) as error:
        in_fresh_process(TARGETS + name)
    assert "\n" not in str(error.value)


def test_a_process_that_hangs_is_ended() -> None:
    with pytest.raises(MeasurementError, match="not done after 1 s"):
        in_fresh_process(TARGETS + "wait", timeout=1)
