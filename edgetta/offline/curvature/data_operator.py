"""A curvature matrix averaged over a data set, known through its products: batches, weights, memory, processes."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from edgetta.errors import EdgettaError, UsageError
from edgetta.offline.curvature.errors import (
    DataSetTooSmallError,
    MemoryLimitError,
    NotFiniteError,
    NotTwiceDifferentiableError,
)
from edgetta.offline.curvature.micro_batch import largest_micro_batch, planned_bytes
from edgetta.offline.curvature.parallel import Processes
from edgetta.offline.curvature.samples import Subset, as_samples, samples_digest
from edgetta.offline.curvature.surface import LossSurface, to_device


class LinearOperator(Protocol):
    """A symmetric matrix that is known only through its products."""

    dimension: int
    dtype: torch.dtype
    device: torch.device

    def product(self, vectors: Tensor) -> Tensor:
        """The matrix times a vector [P], or times each column of [P, k]."""
        ...


class DataOperator(ABC):
    """A curvature matrix of a loss surface, averaged over a data set.

    The matrix is sum_B (n_B / N) A_B over batches of `batch_size` (the last may be smaller and counts by its size).
    Where the loss is a mean over samples (`surface.splittable`) the result does not depend on `batch_size`, and
    batches are split further to keep a memory limit. Under batch statistics the batches, taken in the order of the
    data, are part of the definition: they are never split, and a limit that they do not fit is an error.

    Under torch.distributed each process evaluates its share of the samples (of the batches, where these must stay
    whole) and products are summed; every process must make the same calls.

    Args:
        surface: model, loss, parameters and BatchNorm policy.
        data: anything that `as_samples` reads.
        batch_size: samples per batch.
        memory_limit: bytes that one pass may hold for its graphs; None: whole batches.
        distributed: None: where torch.distributed is initialised; True or False to insist.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        surface: LossSurface,
        data: Any,
        *,
        batch_size: int = 256,
        memory_limit: int | None = None,
        distributed: bool | None = None,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch size {batch_size} is not possible; give 1 or more")
        self.surface = surface
        self.dimension, self.dtype, self.device = surface.dimension, surface.dtype, surface.device
        self.samples = as_samples(data)
        self.batch_size = min(batch_size, len(self.samples))
        self.memory_limit = memory_limit
        self.processes = Processes(distributed)
        self.products = 0
        self._micro_batch: int | None = None
        self._graph_is_sound = False

    def product(self, vectors: Tensor) -> Tensor:
        """The matrix times a vector [P], or times each column of [P, k] (cheaper than k single products).

        Raises:
            NotTwiceDifferentiableError: an operation has no second derivative.
            NotFiniteError: a loss or the product is NaN or infinite.
            MemoryLimitError: the memory limit, or the memory of the GPU, is too small.
        """
        if vectors.shape[0] != self.dimension or vectors.dim() > 2:
            raise UsageError(f"a vector of length {self.dimension} is needed, not of shape {tuple(vectors.shape)}")
        vectors = vectors.to(self.device, self.dtype)
        columns = vectors.unsqueeze(1) if vectors.dim() == 1 else vectors
        directions = [self.surface.unflatten(column.contiguous()) for column in columns.unbind(1)]
        total = torch.zeros_like(columns)
        failure: Exception | None = None
        try:
            for inputs, targets, weight in self._batches():
                parts = self.products_on(inputs, targets, directions)
                total += weight * torch.stack([self.surface.flatten(part) for part in parts], dim=1)
            if not torch.isfinite(total).all():
                raise NotFiniteError(
                    "a product with the curvature matrix is NaN or infinite although the loss is finite; look for a "
                    "square root or a norm at zero in the loss, or measure in float64 with model.double()"
                )
        except Exception as error:  # told to the other processes by sum(), which raises it again
            failure = error
        self.products += columns.shape[1]
        return self.processes.sum(total, failure).view_as(vectors)

    def loss(self) -> float:
        """The loss over the data set."""
        start = torch.zeros(1, dtype=torch.float64, device=self.device)
        return float(self._mean(start, lambda loss, leaves: loss.detach().double()))

    def gradient(self) -> Tensor:
        """The gradient [P] of the loss over the data set."""
        start = torch.zeros(self.dimension, dtype=self.dtype, device=self.device)
        return self._mean(
            start, lambda loss, leaves: self.surface.flatten(torch.autograd.grad(loss, leaves, allow_unused=True))
        )

    def on_batch(self, indices: Sequence[int]) -> DataOperator:
        """The same matrix on one batch of these samples, on this process alone.

        Raises:
            DataSetTooSmallError: no index is given.
        """
        return type(self)(
            self.surface,
            Subset(self.samples, indices),
            batch_size=len(indices),
            memory_limit=self.memory_limit,
            distributed=False,
        )

    def with_model(self, model: nn.Module) -> DataOperator:
        """The same matrix of another model of the same structure, such as a copy that a trial run may change."""
        return type(self)(
            self.surface.on(model),
            self.samples,
            batch_size=self.batch_size,
            memory_limit=self.memory_limit,
            distributed=self.processes.together,
        )

    def as_kind(self, kind: type[DataOperator]) -> DataOperator:
        """Another matrix of the same surface, data and batches."""
        return kind(
            self.surface,
            self.samples,
            batch_size=self.batch_size,
            memory_limit=self.memory_limit,
            distributed=self.processes.together,
        )

    def fingerprint(self) -> str:
        """A short name of the very matrix (model state, data, batches, policy), by which a saved run is recognised."""
        batches = 0 if self.surface.splittable else self.batch_size
        text = f"{self.kind} {self.surface.digest()} {samples_digest(self.samples)} {batches} {self.dtype}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @abstractmethod
    def _products(
        self, leaves: tuple[Tensor, ...], inputs: Any, targets: Any, directions: Sequence[Sequence[Tensor]]
    ) -> list[Sequence[Tensor | None]]:
        """The products with one batch's matrix, one per direction, each as one tensor per parameter."""

    def products_on(self, inputs: Any, targets: Any, directions: Sequence[Sequence[Tensor]]) -> list[Any]:
        """The products with the matrix of one batch, each as one tensor (or None for zeros) per parameter."""
        with self._guard():
            return list(self._products(self.surface.leaves(), inputs, targets, directions))

    def _check_graph(self, gradients: Sequence[Tensor | None]) -> None:
        """Refuse, once per operator, gradients behind a function whose backward pass ends the graph.

        Asked for the derivative by the parameters, autograd takes such a place for a constant and says nothing.

        Raises:
            NotTwiceDifferentiableError: there is one.
        """
        if self._graph_is_sound:
            return
        pending: list[Any] = [gradient.grad_fn for gradient in gradients if gradient is not None]
        seen: set[Any] = set()
        while pending:
            node = pending.pop()
            if node is None or node in seen:
                continue
            if node.name() == "torch::autograd::Error":
                raise NotTwiceDifferentiableError(
                    "the model or the loss cannot be differentiated twice: it uses an autograd function that is "
                    "marked once_differentiable; replace it by operations of torch"
                )
            seen.add(node)
            pending.extend(following for following, _ in node.next_functions)
        self._graph_is_sound = True

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """The surface's evaluation, with the errors of autograd said in the user's words."""
        try:
            with self.surface.evaluation():
                yield
        except torch.cuda.OutOfMemoryError as error:
            raise MemoryLimitError(
                f"the GPU's memory is too small for {self._micro_batch or self.batch_size} samples at once; give a "
                "memory_limit or a smaller batch size"
            ) from error
        except (RuntimeError, NotImplementedError, ValueError) as error:
            explained = _explained(error)
            if explained is None:
                raise
            raise explained from error

    @property
    def micro_batch(self) -> int:
        """Samples evaluated at once: the batch size, or fewer where the memory limit asks for it.

        Raises:
            MemoryLimitError: not even one sample fits, or batches that must stay whole do not.
        """
        if self._micro_batch is None and self.memory_limit is not None:
            self._micro_batch = largest_micro_batch(
                self.product_bytes,
                limit=self.memory_limit,
                batch_size=self.batch_size,
                samples=len(self.samples),
                splittable=self.surface.splittable,
            )
        return self._micro_batch or self.batch_size

    def product_bytes(self, count: int) -> int:
        """Bytes that a product on the first `count` samples is planned to hold, beside the model."""
        inputs, targets = self.moved(range(count))
        vector = torch.zeros(self.dimension, dtype=self.dtype, device=self.device)
        directions = [self.surface.unflatten(vector)]
        graphs = planned_bytes(lambda: self.products_on(inputs, targets, directions), self.surface.model.parameters())
        return graphs + 4 * self.dimension * vector.element_size()

    def _batches(self) -> Iterator[tuple[Any, Any, float]]:
        """Inputs, targets and weight n/N of each batch that this process evaluates."""
        count, step = len(self.samples), self.micro_batch
        if self.surface.splittable:
            own = self.processes.share(count)
            ranges = [range(start, min(start + step, own.stop)) for start in range(own.start, own.stop, step)]
        else:
            batches = [range(start, min(start + step, count)) for start in range(0, count, step)]
            own = self.processes.share(len(batches))
            ranges = batches[own.start : own.stop]
        for indices in ranges:
            yield *self.moved(indices), len(indices) / count

    def moved(self, indices: Sequence[int]) -> tuple[Any, Any]:
        """Inputs and targets of some samples, on the surface's device and in its type."""
        inputs, targets = self.samples.batch(indices)
        return to_device(inputs, self.device, self.dtype), to_device(targets, self.device, self.dtype)

    def _mean(self, total: Tensor, evaluate: Callable[[Tensor, tuple[Tensor, ...]], Tensor]) -> Tensor:
        failure: Exception | None = None
        try:
            for inputs, targets, weight in self._batches():
                with self._guard():
                    leaves = self.surface.leaves()
                    loss = self.surface.value(self.surface.outputs(leaves, inputs), targets)
                    total += weight * evaluate(loss, leaves)
        except Exception as error:  # told to the other processes by sum(), which raises it again
            failure = error
        return self.processes.sum(total, failure)


def _explained(error: Exception) -> EdgettaError | None:
    text = str(error)
    if any(sign in text for sign in ("once_differentiable", "is not implemented", "double backward")):
        return NotTwiceDifferentiableError(
            f"the model or the loss cannot be differentiated twice ({text.splitlines()[0]}); replace that operation "
            "by one that can (for a cuDNN recurrent layer: torch.backends.cudnn.enabled = False)"
        )
    if "does not require grad" in text:
        return UsageError("the loss does not depend on the chosen parameters; choose others")
    if "more than 1 value per channel" in text:
        return DataSetTooSmallError(
            "BatchNorm with batch statistics met a batch of one value per channel; choose a batch size that leaves no "
            "single sample over, or drop that sample"
        )
    return None
