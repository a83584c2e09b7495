"""The CUDA stream on which engines run, in order with what torch enqueues."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_streams: dict[torch.device, Any] = {}


@contextmanager
def engine_stream(device: torch.device) -> Iterator[int]:
    """The handle of a stream that waits for torch's current one, and that the current one waits for afterwards.

    It is always the same one: ONNX Runtime binds a session to a stream once and for all. And it is never the default
    stream, on which TensorRT would synchronise the whole device around every engine.
    """
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    side, current = _streams[device], torch.cuda.current_stream(device)
    side.wait_stream(current)
    yield side.cuda_stream
    current.wait_stream(side)
