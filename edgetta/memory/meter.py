"""What is kept between forward and backward, counted twice and independently.

`contract`  what the tape says it keeps, tensor by tensor
`alive`     what the interpreter can still reach when the backward would start and could not before the forward:
            storages of torch tensors and memory of numpy arrays; engine outputs are bound to torch tensors
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgetta.adaptation.network import AdaptiveNetwork


@dataclass(frozen=True)
class Kept:
    """Bytes kept for one backward."""

    by_owner: dict[str, int]  # from the contract
    contract: int
    alive: int


def measure_kept(network: AdaptiveNetwork, images: Tensor) -> Kept:
    """Run one forward that keeps, and count. The network's statistics and parameters are as before afterwards."""
    snapshot = network.statistics_snapshot()
    network.forward(images)  # what an engine allocates once is not kept
    network.restore_statistics(snapshot)
    state = tuple(network.state_dict().values())
    before = reachable_memory()
    logits, tape = network.forward(images)
    del logits
    after = reachable_memory()
    network.restore_statistics(snapshot)
    by_owner = tape.kept_bytes()
    moved = {tensor.untyped_storage().data_ptr() for tensor in state}
    alive = sum(size for address, size in after.items() if address not in before and address not in moved)
    return Kept(by_owner, sum(by_owner.values()), alive)


def stock_saved_bytes(forward: Callable[[], Tensor], ignore: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd saves for the backward of `forward`, each storage once, without those of `ignore`."""
    ignored = {tensor.untyped_storage().data_ptr() for tensor in ignore}
    saved: dict[int, int] = {}
    held: list[Tensor] = []  # so that no address is reused

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ignored:
            saved[storage.data_ptr()] = storage.nbytes()
            held.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(saved.values())


def reachable_memory() -> dict[int, int]:
    """Address -> bytes of every tensor storage and numpy array that Python objects can reach."""
    gc.collect()
    found: dict[int, int] = {}
    objects = gc.get_objects()
    for item in _arrays_and_tensors(objects):
        if isinstance(item, Tensor):
            with contextlib.suppress(RuntimeError):  # fake and sparse tensors have no memory of their own
                storage = item.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
        else:
            base: Any = item
            while isinstance(base.base, np.ndarray):
                base = base.base
            if base.base is None:
                found[base.ctypes.data] = base.nbytes
    found.pop(0, None)
    return found


def _arrays_and_tensors(objects: list[Any]) -> Iterable[Any]:
    for item in objects:
        kind = type(item)  # not isinstance, which wakes lazy proxies
        if issubclass(kind, Tensor):
            yield item
        elif kind in (list, tuple, dict, set):
            for inner in item.values() if kind is dict else item:
                if issubclass(type(inner), np.ndarray):
                    yield inner
