"""Sums over the processes of a torch.distributed group, so that each may hold a share of the data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from edgetta.offline.curvature.errors import CurvatureError


class Processes:
    """The processes that share one measurement: all of torch.distributed's default group, or this one alone.

    Every process must make the same calls in the same order.

    Args:
        together: True or False; None: together where torch.distributed has been initialised.
    """

    def __init__(self, together: bool | None = None) -> None:
        initialised = dist.is_available() and dist.is_initialized()
        if together and not initialised:
            raise CurvatureError("the processes cannot share work before torch.distributed.init_process_group()")
        self.together = initialised if together is None else together
        self.count = dist.get_world_size() if self.together else 1
        self.rank = dist.get_rank() if self.together else 0

    def share(self, length: int) -> range:
        """This process's contiguous share of `range(length)`; shares differ by one at most and may be empty."""
        return range(length * self.rank // self.count, length * (self.rank + 1) // self.count)

    def sum(self, value: Tensor, failure: Exception | None = None) -> Tensor:
        """The sum of `value` over the processes, bit for bit the same on each.

        A failure of one process is told to all, because the others would otherwise wait for ever.

        Args:
            value: of the same shape on every process.
            failure: what this process could not do, if so; its `value` is then ignored.

        Raises:
            CurvatureError: another process failed (this one raises its own `failure`).
        """
        if not self.together:
            if failure is not None:
                raise failure
            return value
        buffer = torch.cat([value.flatten(), value.new_zeros(1)])
        if failure is not None:
            buffer.zero_()
            buffer[-1] = 1
        dist.all_reduce(buffer)
        dist.broadcast(buffer, 0)  # all_reduce may round differently per process; decisions must not differ
        if failure is not None:
            raise failure
        if buffer[-1] != 0:
            raise CurvatureError("another process of this measurement failed; its own message says why")
        return buffer[:-1].view_as(value)

    def first(self, value: Any) -> Any:
        """The value of the first process, on each: for decisions that must not differ."""
        if not self.together:
            return value
        held = [value]
        dist.broadcast_object_list(held, 0)
        return held[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, in the order of the ranks."""
        if not self.together:
            return [value]
        gathered: list[Any] = [None] * self.count
        dist.all_gather_object(gathered, value)
        return gathered


@contextmanager
def launched_processes() -> Iterator[Processes]:
    """Join the group that `torchrun` prepared (nccl with CUDA, else gloo), leave it at the end; alone without one."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or not dist.is_available() or dist.is_initialized():
        yield Processes()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Processes()
        dist.barrier()  # the first process holds what the others meet at: it must not leave before them
    finally:
        dist.destroy_process_group()
