"""Memory does not grow with every new batch size under a budget; what the environment says wins."""

from __future__ import annotations

import os

import pytest

from edgetta.memory.fresh_process import in_fresh_process
from edgetta.memory.kernel_cache import limit_kernel_cache

VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def test_what_the_environment_says_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLES[0], raising=False)
    monkeypatch.setenv(VARIABLES[1], "5")
    limit_kernel_cache()
    assert [os.environ[name] for name in VARIABLES] == ["512", "5"]


def test_convolutions_of_many_sizes_leave_little_behind() -> None:
    """Sixty sizes of a batch, of which each leaves kernels; what the few that are kept leave is mostly the heap's."""
    free, few = (in_fresh_process("tests.memory.targets:kept_of_convolutions", few=few) for few in (False, True))
    assert few < 0.75 * free, (few, free)
