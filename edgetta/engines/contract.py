"""What an engine runs: five programs of one network, over plain numpy arrays, and the words in which they speak.

A program holds the whole network: stem, parts, meta-networks, classifier. It is stateless: the same inputs give the
same outputs. What adapts (`parameters`) and what every BatchNorm normalises with (`Statistics`) come in as flat
vectors, in the order of a `Layout`, and gradients and moments leave in the same order. All policies (whose statistics,
what share of the stream in them, when to learn) belong to the host.

Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edgetta.segments.contract import Residual
    from edgetta.segments.graph import Graph

Array = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """Names and shapes of arrays that lie one after another in one flat vector."""

    shapes: Mapping[str, tuple[int, ...]]

    @cached_property
    def size(self) -> int:
        """Numbers in the vector."""
        return sum(map(math.prod, self.shapes.values()))

    @cached_property
    def slices(self) -> Mapping[str, slice]:
        """Where each array lies."""
        found, start = {}, 0
        for name, shape in self.shapes.items():
            found[name] = slice(start, start + math.prod(shape))
            start = found[name].stop
        return found

    def slice(self, name: str) -> slice:
        """Where the array called `name` lies; raises `KeyError` where there is none."""
        return self.slices[name]

    def split(self, vector: Array) -> dict[str, Array]:
        """The arrays of a vector (size,), as views of it."""
        self._check(vector)
        return {name: vector[self.slices[name]].reshape(shape) for name, shape in self.shapes.items()}

    def join(self, arrays: Mapping[str, Array] | Sequence[Array]) -> Array:
        """The vector (size,) of arrays by name, or in the layout's order; `ValueError` where they do not fit."""
        ordered = [arrays[name] for name in self.shapes] if isinstance(arrays, Mapping) else list(arrays)
        if len(ordered) != len(self.shapes):
            raise ValueError(f"{len(ordered)} arrays came where the layout has {len(self.shapes)}")
        for array, (name, shape) in zip(ordered, self.shapes.items(), strict=True):
            if math.prod(array.shape) != math.prod(shape):
                raise ValueError(f"{name!r} has shape {tuple(array.shape)}, not {shape}")
        if not ordered:
            return np.zeros(0, np.float32)
        return np.concatenate([np.reshape(array, -1) for array in ordered])

    def _check(self, vector: Array) -> None:
        if vector.shape != (self.size,):
            raise ValueError(f"a vector of shape {vector.shape} came where the layout has {self.size} numbers")


@dataclass(frozen=True)
class Statistics:
    """What every BatchNorm normalises with, all layers one after another: (T,) each."""

    mean: Array
    variance: Array


@dataclass(frozen=True)
class Moments:
    """A batch's own biased moments at every BatchNorm, all layers one after another: (T,) each."""

    mean: Array
    variance: Array


@dataclass(frozen=True)
class Mixing:
    """How `measure` makes the statistics of each layer, from those before and the batch's own, on the way.

    With s = share, (m0, v0) = before and (bm, bv) the batch's own moments at a layer, the mixed moments are

        m = (1 - s) m0 + s bm        v = (1 - s) v0 + s bv + s (1 - s) (bm - m0)^2

    and the layer normalises with mean = gain * m + offset and variance = factor * (v + floor) ** power.
    """

    before: Moments
    share: float  # in [0, 1]
    gain: Array  # (T,), as the next three
    offset: Array
    factor: Array
    power: Array
    floor: Array  # above 0 where the power is not whole, or a channel without variance would be blown up

    @staticmethod
    def plain(before: Moments, share: float) -> Mixing:
        """Layers normalise with the mixed moments themselves."""
        one, zero = np.ones_like(before.mean), np.zeros_like(before.mean)
        return Mixing(before, share, one, zero, one, one, zero)


@dataclass(frozen=True)
class ProgramSet:
    """The programs of one network as graphs, the same for every engine.

    Inputs and outputs of the graphs, by name, a layer's name being that in `statistics`, a parameter's that in
    `parameters`:

    predict    "x", parameters, "mean.LAYER", "variance.LAYER"                              -> logits
    measure    "x", parameters, "before.mean.LAYER", "before.variance.LAYER", "share" (1,), "gain.LAYER",
               "offset.LAYER", "factor.LAYER", "power.LAYER", "floor.LAYER"
               -> logits, own mean of every layer, own variance of every
    forward    inputs of predict -> logits, distance of each part (N,), own means, own variances, residuals
    backward   residuals, "grad_logits", "regulariser" (1,), parameters                     -> gradients
    recompute  inputs of predict, "grad_logits", "regulariser"                              -> gradients

    A graph lacks the inputs that it does not read; gradients come in the order of `parameters`. The distance of part k
    is mean |x~_k - x_k| of each image. Statistics come in, so a batch may run in slices of images, one after another:
    logits are the same and gradients add up (the regulariser times the slice's share of the images), but for the
    gradient through statistics, which each slice takes from its own images. What a slice of 16 small images leaves on
    the way still fits a processor's cache, and backwards are quicker for it.

    shipped   parameters as shipped, (P,)
    source    statistics of training
    """

    predict: Graph
    measure: Graph
    forward: Graph
    backward: Graph
    recompute: Graph
    residuals: tuple[Residual, ...]
    parameters: Layout
    statistics: Layout
    shipped: Array
    source: Statistics
    input_shape: tuple[int, int, int]
    classes: int


@dataclass
class Residuals:
    """What a forward left for its backward: by name, as the engine keeps it (masks as bits). Used up by `backward`."""

    batch: int
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(int(array.nbytes) for array in self.kept.values())


@dataclass(frozen=True)
class Passed:
    """What `forward` makes of a batch.

    logits     (N, classes)
    distance   sum over the parts of mean |x~_k - x_k|: the regulariser's value
    moments    the batch's own; None where they were not asked for
    residuals  for `backward`
    """

    logits: Array
    distance: float
    moments: Moments | None
    residuals: Residuals


class Engine(Protocol):
    """Runs a `ProgramSet`. Arrays are numpy float32; images are (N, C, H, W) in [0, 1], N at least 1."""

    programs: ProgramSet
    name: str

    def predict(self, images: Array, parameters: Array, statistics: Statistics) -> Array:
        """Logits (N, classes)."""
        ...

    def measure(self, images: Array, parameters: Array, mixing: Mixing) -> tuple[Array, Moments]:
        """Logits (N, classes) with statistics that are mixed on the way, and the batch's own moments."""
        ...

    def forward(self, images: Array, parameters: Array, statistics: Statistics, moments: bool = True) -> Passed:
        """Logits, and what `backward` needs; without `moments` the batch's own are not computed."""
        ...

    def backward(self, residuals: Residuals, grad_logits: Array, regulariser: float, parameters: Array) -> Array:
        """Gradients (P,) of the objective whose gradient by the logits is `grad_logits` (N, classes), and of

        `regulariser * sum_k mean |x~_k - x_k|`, which reaches its own meta-network only.
        """
        ...

    def recompute(
        self, images: Array, grad_logits: Array, regulariser: float, parameters: Array, statistics: Statistics
    ) -> Array:
        """As `forward` and `backward`, with nothing kept between them."""
        ...
