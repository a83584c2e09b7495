"""What the C library does with freed memory, in processes of their own: the switches last as long as a process."""

from __future__ import annotations

import pytest

from edgetta.memory.fresh_process import in_fresh_process

MB = 1 << 20


@pytest.mark.parametrize(
    ("switch", "least", "most"), [("return_freed_memory", -MB, MB), ("keep_freed_memory", 190 * MB, 200 * MB)]
)
def test_freed_memory_is_returned_or_kept_as_asked(switch: str, least: int, most: int) -> None:
    kept = in_fresh_process("tests.memory.targets:kept_of_freed_step", give_back=False, switch=switch)
    assert least <= kept <= most


def test_of_two_switches_the_last_counts() -> None:
    kept = in_fresh_process("tests.memory.targets:kept_of_freed_step", give_back=True, switch="keep_freed_memory")
    assert kept >= 190 * MB


def test_sessions_of_a_process_that_keeps_memory_share_an_arena() -> None:
    found = in_fresh_process("tests.memory.targets:same_with_an_arena", give_back=False)
    assert found == [False, True, True, True, True, True, False, True]
