"""How many samples fit a memory limit: measured from what autograd keeps for a few samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from edgetta.offline.curvature.errors import MemoryLimitError

TRANSIENT = 2.25
"""Peak over what autograd keeps: 1.2 to 1.7 was measured for convolutional networks, 2.2 for a transformer layer."""


def largest_micro_batch(
    bytes_for: Callable[[int], int], *, limit: int, batch_size: int, samples: int, splittable: bool
) -> int:
    """The largest number of samples, up to `batch_size`, for which a product keeps the limit.

    Products on one and two samples (two and four where a batch must stay whole) give the bytes per sample and the
    bytes that do not depend on it.

    Args:
        bytes_for: bytes that a product on so many samples is planned to hold.
        limit: bytes that it may hold.
        batch_size: samples of a whole batch.
        samples: how many there are to measure with.
        splittable: whether a batch may be evaluated in pieces.

    Raises:
        MemoryLimitError: one sample, or a batch that must stay whole, needs more than the limit.
    """
    few = min(1 if splittable else 2, batch_size)
    many = min(2 * few, samples)
    small, large = bytes_for(few), bytes_for(many)
    per_sample = max(1, (large - small) // max(1, many - few))
    fixed = max(0, small - few * per_sample)
    whole = fixed + batch_size * per_sample
    if not splittable:
        if whole > limit:
            raise MemoryLimitError(
                f"a batch of {batch_size} needs about {whole / 2**20:.1f} MiB and the limit is "
                f"{limit / 2**20:.1f} MiB; it cannot be split, because its samples are coupled (batch statistics, or "
                "a loss that is no mean over samples): raise the limit, choose a smaller batch size (another matrix), "
                "or use the 'source' BatchNorm policy"
            )
        return batch_size
    if fixed + per_sample > limit:
        raise MemoryLimitError(
            f"one sample needs about {(fixed + per_sample) / 2**20:.1f} MiB and the limit is {limit / 2**20:.1f} MiB; "
            "raise the limit or choose fewer parameters"
        )
    return int(min(batch_size, (limit - fixed) // per_sample))


def planned_bytes(evaluate: Callable[[], object], parameters: Iterable[Tensor]) -> int:
    """Bytes to plan for what autograd keeps while `evaluate` runs, beside the parameters: see `TRANSIENT`."""
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice while counting

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor.detach()  # a saved output that kept its own graph would be a reference cycle

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        evaluate()
    return int(TRANSIENT * sum(storage.nbytes() for storage in kept.values()))
