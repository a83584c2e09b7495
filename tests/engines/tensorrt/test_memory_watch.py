"""The most memory that something takes while it runs, main memory and the GPU's together."""

from __future__ import annotations

import threading

import pytest
import torch

from edgetta.engines.tensorrt import memory_watch
from edgetta.engines.tensorrt.memory_watch import MemoryWatch, watch_memory


def test_what_is_taken_and_given_back_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    resident, free = iter([100, 150, 120]), iter([1000, 1000, 700])
    monkeypatch.setattr(memory_watch, "_resident", lambda: next(resident))
    monkeypatch.setattr(memory_watch, "_free_on_gpu", lambda: next(free))
    watch = MemoryWatch()
    watch.look()
    assert watch.peak == 50
    watch.look()
    assert watch.peak == 320


def test_memory_of_this_process() -> None:
    with watch_memory() as watch:
        block = torch.ones(64 << 20)  # 256 MiB: more than was freed before and is taken again
    assert watch.peak >= 24 << 20
    assert block.sum() == 64 << 20


def test_the_watch_ends_with_its_block() -> None:
    with pytest.raises(ValueError, match="inside"), watch_memory():
        raise ValueError("inside")
    assert "memory watch" not in {thread.name for thread in threading.enumerate()}
