"""The one contract of every engine: `forward(x) -> (y, residuals)` and `input_gradient(residuals, grad_y) -> grad_x`.

A segment is a frozen part of the backbone. Between forward and backward it keeps residuals, as few bits as the exact
gradient needs: a mask per ReLU, a scale per normalised channel. Engines hand over masks as booleans; `packing.py`
keeps them as bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from edgetta.segments.graph import Graph, Value

if TYPE_CHECKING:
    import torch
    from torch import Tensor

GradientMode = Literal["exact", "recompute", "local"]
ResidualKind = Literal["mask", "code", "scale", "float"]


@dataclass(frozen=True)
class Residual:
    """A value that the forward graph gives to the backward graph.

    kind   mask: one bit per element; code: eight bits per element, a number in [low, high] rounded to steps of
           (high - low) / 255; scale: a small per-channel tensor, kept as it is; float: an activation, kept as it is
    """

    value: Value
    kind: ResidualKind
    low: float = 0.0
    high: float = 1.0

    @property
    def error_bound(self) -> float:
        """Largest absolute rounding error of one element once packed (0 for masks, scales and floats)."""
        return (self.high - self.low) / 510.0 if self.kind == "code" else 0.0

    def pack(self, tensor: Tensor) -> Tensor:
        """The tensor as it is kept: bits for a mask, bytes for a code."""
        from edgetta.segments.packing import pack_code, pack_mask

        if self.kind == "mask":
            return pack_mask(tensor)
        return pack_code(tensor, self.low, self.high) if self.kind == "code" else tensor

    def unpack(self, kept: Tensor, batch: int, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor as the backward graph takes it, float32 by default."""
        from edgetta.segments.packing import unpack_code, unpack_mask

        if self.kind == "mask":
            return unpack_mask(kept, self.value.with_batch(batch))
        return unpack_code(kept, self.low, self.high, *([dtype] if dtype else [])) if self.kind == "code" else kept

    def rows(self, kept: Tensor, batch: int, start: int, stop: int) -> Tensor:
        """What is kept of the images from `start` to `stop`, of what is kept of a batch."""
        if not self.value.per_sample:
            return kept
        axis = next(i for i, size in enumerate(self.value.shape) if size < 0)
        each = -self.value.shape[axis]  # rows of one image
        if self.kind != "mask" or str(kept.dtype) == "torch.bool":  # an engine may keep masks as they are
            return kept.narrow(axis, start * each, (stop - start) * each)
        size = self.value.elements(1)
        from edgetta.segments.packing import pack_mask, unpack_mask

        if axis or start * size % 8 or (stop < batch and stop * size % 8):  # bits of two images share a byte
            whole = unpack_mask(kept, self.value.with_batch(batch))
            return pack_mask(whole.narrow(axis, start * each, (stop - start) * each).contiguous())
        return kept[start * size // 8 : (stop * size + 7) // 8]

    def kept_bytes(self, batch: int, float_bytes: int = 4) -> int:
        """Bytes kept between forward and backward for a batch."""
        elements = self.value.elements(batch)
        if self.kind == "mask":
            return (elements + 7) // 8
        return elements if self.kind == "code" else elements * float_bytes


@dataclass(frozen=True)
class SegmentGraphs:
    """The derived graphs of one frozen part, the same for every engine.

    forward    inputs "x", the state, "ema_momentum" where there is state, the biases and weights that adapt;
               outputs y, the new state in the order of `state`, then the residuals
    backward   inputs the residuals and "grad_y"; outputs grad_x, then the gradients of what adapts
    recompute  inputs those of `forward` and "grad_y"; outputs as `backward`, rebuilding the residuals on the way
    """

    forward: Graph
    backward: Graph | None
    recompute: Graph | None
    residuals: tuple[Residual, ...] = ()
    state: Mapping[str, str] = field(default_factory=dict)
    initial_state: Mapping[str, Tensor] = field(default_factory=dict)
    initial_affine: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def input(self) -> Value:
        return self.forward.values["x"]

    @property
    def output(self) -> Value:
        return self.forward.values[self.forward.outputs[0]]

    def kept_bytes(self, batch: int, gradient: GradientMode, float_bytes: int = 4) -> int:
        """Bytes that this segment itself keeps; its input is its neighbour's to count."""
        if gradient == "exact":
            return sum(r.kept_bytes(batch, float_bytes) for r in self.residuals if r.value.name != "x")
        if gradient == "recompute" and self.state:
            return (
                sum(tensor.numel() for tensor in self.initial_state.values()) + 1
            ) * float_bytes  # and the momentum
        return 0


@dataclass
class Residuals:
    """What one forward left for its backward, by name: masks and codes packed, the rest as it is.

    `shared` holds what somebody else keeps anyway (the segment's input, which is the meta-network's input too).
    """

    kept: dict[str, Tensor] = field(default_factory=dict)
    shared: dict[str, Tensor] = field(default_factory=dict)
    batch: int = 0

    def rows(self, graphs: SegmentGraphs, start: int, stop: int) -> Residuals:
        """The residuals of the images from `start` to `stop`; what is not per image is the same for all."""
        by_name = {residual.value.name: residual for residual in graphs.residuals}
        kept = {
            name: by_name[name].rows(tensor, self.batch, start, stop) if name in by_name else tensor
            for name, tensor in self.kept.items()
        }
        return Residuals(kept, {name: tensor[start:stop] for name, tensor in self.shared.items()}, stop - start)

    def kept_bytes(self) -> int:
        """Bytes held for this segment alone."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.kept.values())


class Segment(Protocol):
    """A frozen part in some engine. All tensors are torch tensors on the engine's device."""

    graphs: SegmentGraphs
    gradient: GradientMode
    state: dict[str, Tensor]
    affine: dict[str, Tensor]  # biases and weights that adapt

    def forward(self, x: Tensor, *, keep: bool = True, momentum: float = 0.1) -> tuple[Tensor, Residuals]:
        """y for x (N, ...), and the residuals when `keep` is set; running statistics move by `momentum`."""
        ...

    def input_gradient(self, residuals: Residuals, grad_y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """grad_x for grad_y, and the gradients of what adapts by name."""
        ...


def describe(residuals: Sequence[Residual]) -> list[dict[str, Any]]:
    """Residuals as JSON-compatible data."""
    return [
        {
            "name": r.value.name,
            "shape": list(r.value.shape),
            "dtype": r.value.dtype,
            "kind": r.kind,
            "low": r.low,
            "high": r.high,
        }
        for r in residuals
    ]
