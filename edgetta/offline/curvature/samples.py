"""Samples that can be asked for by index: the same data, in the same order, for every product of a measurement."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from edgetta.errors import UsageError
from edgetta.offline.curvature.errors import DataSetTooSmallError


@runtime_checkable
class Samples(Protocol):
    """A finite data set in a fixed order."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def batch(self, indices: Sequence[int]) -> tuple[Any, Any]:
        """Inputs and targets of the samples at `indices`, with the sample axis first; targets may be None."""
        ...


class TensorSamples:
    """Inputs (and targets) that are already tensors in memory.

    Args:
        inputs: [N, ...].
        targets: [N, ...], or None for a loss without labels.

    Raises:
        UsageError: the two differ in length.
        DataSetTooSmallError: there is no sample.
    """

    def __init__(self, inputs: Tensor, targets: Tensor | None = None) -> None:
        if targets is not None and len(targets) != len(inputs):
            raise UsageError(f"{len(inputs)} inputs but {len(targets)} targets: give one target for each input")
        if len(inputs) == 0:
            raise DataSetTooSmallError("the data set is empty; give at least one sample")
        self.inputs = inputs
        self.targets = targets

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, indices: Sequence[int]) -> tuple[Any, Any]:
        if isinstance(indices, range) and indices.step == 1:
            key: Any = slice(indices.start, indices.stop)
        else:
            key = torch.as_tensor(list(indices), device=self.inputs.device)
        return self.inputs[key], None if self.targets is None else self.targets[key]


class DatasetSamples:
    """A map-style torch data set that yields `(input, target)`, read anew for every product.

    The data set must give the same sample for the same index each time: a random augmentation makes the operator
    answer differently from product to product, which Lanczos reports as `NotSymmetricError`.

    Args:
        dataset: has `__len__` and `__getitem__`.
        collate: how samples become a batch; the default of torch's DataLoader if None.
    """

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any] | None = None) -> None:
        if len(dataset) == 0:
            raise DataSetTooSmallError("the data set is empty; give at least one sample")
        self.dataset = dataset
        self.collate = collate or default_collate

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Sequence[int]) -> tuple[Any, Any]:
        batch = self.collate([self.dataset[i] for i in indices])
        if isinstance(batch, (tuple, list)) and len(batch) == 2:
            return batch[0], batch[1]
        return batch, None


class Subset:
    """Some samples of another data set, in the order given."""

    def __init__(self, samples: Samples, indices: Sequence[int]) -> None:
        if len(indices) == 0:
            raise DataSetTooSmallError("the subset is empty; give at least one sample")
        self.samples = samples
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Sequence[int]) -> tuple[Any, Any]:
        if isinstance(indices, range):
            return self.samples.batch(self.indices[indices.start : indices.stop : indices.step])
        return self.samples.batch([self.indices[i] for i in indices])


def as_samples(data: Any) -> Samples:
    """Read `data` as samples in a fixed order.

    Args:
        data: `Samples`; a tensor of inputs; a pair `(inputs, targets)` of tensors; a map-style data set; or a
            DataLoader, of which the data set and the collate function are used but neither the batch size nor the
            shuffling, because every product needs the same samples in the same order.

    Raises:
        UsageError: anything else, such as a stream that can be read only once.
    """
    if isinstance(data, Tensor):
        return TensorSamples(data)
    if isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[0], Tensor):
        return TensorSamples(data[0], data[1])
    if isinstance(data, Samples):
        return data
    if isinstance(data, DataLoader):
        if isinstance(data.dataset, IterableDataset):
            raise UsageError("a DataLoader over an IterableDataset has no fixed order; give a map-style data set")
        return DatasetSamples(data.dataset, data.collate_fn)
    if not isinstance(data, IterableDataset) and hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return DatasetSamples(data)
    raise UsageError(
        f"cannot read samples from {type(data).__name__}: curvature needs the same samples many times; give a pair of "
        "tensors (inputs, targets), a map-style data set or a DataLoader over one"
    )


def samples_digest(samples: Samples) -> str:
    """A short fingerprint of a data set, from its length and its first and last sample."""
    digest = hashlib.sha256(str(len(samples)).encode())
    for index in (0, len(samples) - 1):
        for part in samples.batch([index]):
            if isinstance(part, Tensor):
                digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
            else:
                digest.update(repr(part).encode())
    return digest.hexdigest()[:16]
