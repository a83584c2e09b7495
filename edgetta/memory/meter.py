"""What is kept between a forward and its backward, as it is alive in this process; and what stock autograd saves.

What an engine says that it keeps (`Residuals.nbytes`) is a count from the contract. `alive_bytes` knows nothing of
it: it is by how much the process has grown while the result of a forward is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from edgetta.memory.peak import give_back, resident

if TYPE_CHECKING:
    from torch import Tensor


def alive_bytes(forward: Callable[[], object]) -> int:
    """By how much the process grows while what `forward` returns is held; run it in a fresh process."""
    forward()  # what an engine allocates once is not kept
    give_back()
    before = resident()
    held = forward()
    give_back()
    grown = resident() - before
    del held
    return max(0, grown)


def stock_saved_bytes(forward: Callable[[], Tensor], ignore: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd saves for the backward of `forward`, each storage once, without those of `ignore`."""
    import torch

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
