"""How many samples fit a memory limit: measured from what autograd keeps for a few samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edgetta.offline.curvature.errors import MemoryLimitError

if TYPE_CHECKING:
    from edgetta.offline.curvature.data_operator import DataOperator

TRANSIENT = 2.25
"""Peak over what autograd keeps: 1.2 to 1.7 was measured for convolutional networks, 2.2 for a transformer layer."""


def largest_micro_batch(operator: DataOperator) -> int:
    """The largest number of samples, up to the operator's batch size, whose product keeps the operator's memory limit.

    Two products on one and two samples (two and four under batch statistics) give the bytes per sample and the bytes
    that do not depend on it; what autograd keeps is counted, and `TRANSIENT` times that is planned for.

    Raises:
        MemoryLimitError: one sample, or a batch that must stay whole, needs more than the limit.
    """
    limit = operator.memory_limit
    assert limit is not None
    few = min(1 if operator.surface.splittable else 2, operator.batch_size)
    many = min(2 * few, len(operator.samples))
    small, large = product_bytes(operator, few), product_bytes(operator, many)
    per_sample = max(1, (large - small) // max(1, many - few))
    fixed = max(0, small - few * per_sample)
    whole = fixed + operator.batch_size * per_sample
    if not operator.surface.splittable:
        if whole > limit:
            raise MemoryLimitError(
                f"a batch of {operator.batch_size} needs about {whole / 2**20:.1f} MiB and the limit is "
                f"{limit / 2**20:.1f} MiB; it cannot be split, because its samples are coupled (batch statistics, or "
                "a loss that is no mean over samples): raise the limit, choose a smaller batch size (another matrix), "
                "or use the 'source' BatchNorm policy"
            )
        return operator.batch_size
    if fixed + per_sample > limit:
        raise MemoryLimitError(
            f"one sample needs about {(fixed + per_sample) / 2**20:.1f} MiB and the limit is {limit / 2**20:.1f} MiB; "
            "raise the limit or choose fewer parameters"
        )
    return int(min(operator.batch_size, (limit - fixed) // per_sample))


def product_bytes(operator: DataOperator, count: int) -> int:
    """Bytes that a product on the first `count` samples is planned to hold, beside the model: see `TRANSIENT`."""
    inputs, targets = operator.moved(range(count))
    own = {parameter.untyped_storage().data_ptr() for parameter in operator.surface.model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice while counting

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor.detach()  # a saved output that kept its own graph would be a reference cycle

    vector = torch.zeros(operator.dimension, dtype=operator.dtype, device=operator.device)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        operator.products_on(inputs, targets, [operator.surface.unflatten(vector)])
    vectors = 4 * operator.dimension * vector.element_size()
    return int(TRANSIENT * sum(storage.nbytes() for storage in kept.values())) + vectors
