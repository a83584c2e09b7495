"""The stream of the engines: who waits for whom, with stand-ins for CUDA's streams."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from edgetta.engines import cuda_stream
from edgetta.engines.cuda_stream import engine_stream


class Stream:
    """A CUDA stream that writes down what it waits for."""

    def __init__(self, handle: int, log: list[tuple[int, int]]) -> None:
        self.cuda_stream = handle
        self._log = log

    def wait_stream(self, other: Stream) -> None:
        self._log.append((self.cuda_stream, other.cuda_stream))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """Pairs (who waits, for whom). The default stream is 0, the new one 5."""
    log: list[tuple[int, int]] = []
    default = Stream(0, log)
    monkeypatch.setattr(cuda_stream, "_streams", {})
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: default)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: default)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(5, log))
    yield log


def test_both_wait_for_each_other(waits: list[tuple[int, int]]) -> None:
    for _ in range(2):
        with engine_stream(torch.device("cuda", 0)) as handle:
            assert handle == 5
            assert waits[-1] == (5, 0), "the engine waits for what torch has enqueued"
        assert waits[-1] == (0, 5), "torch waits for the engine"
    assert len(waits) == 4


def test_it_is_one_stream_whatever_the_current_one(
    waits: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session of ONNX Runtime is bound to its stream when it is made."""
    for current in (0, 9):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device, c=current: Stream(c, waits))
        with engine_stream(torch.device("cuda", 0)) as handle:
            assert handle == 5
    assert waits == [(5, 0), (0, 5), (5, 9), (9, 5)]
