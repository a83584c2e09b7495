"""A frozen segment on a GPU, as programs of TensorRT or ONNX Runtime for its forward and its backward."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from edgetta.segments.contract import GradientMode, Residuals, SegmentGraphs
from edgetta.segments.graph import Graph

Keep = Callable[[str, Tensor], Tensor]

HEADROOM = 4
"""An incoming gradient's largest element is brought to between 2^3 and 2^4: 4,000 times below float16's largest number
and 100,000 times above its smallest normal one."""


class Runnable(Protocol):
    """A graph, or what is needed of it, on a GPU."""

    graph: Graph

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[str], keep: Keep | None = None) -> list[Tensor]:
        """The outputs named, in new tensors; `keep(name, tensor)` may replace each by something smaller."""
        ...


class GpuSegment:
    """A frozen segment on a GPU (see `contract.Segment`).

    engine     its name
    programs   by direction: "forward", and "backward" for exact or "recompute" for recompute. Where no gradient is
               ever asked for, `forward` may lack the residuals
    half       the directions that are computed in float16
    """

    def __init__(
        self,
        engine: str,
        graphs: SegmentGraphs,
        programs: Mapping[str, Runnable],
        gradient: GradientMode,
        device: torch.device,
        half: Collection[str] = (),
    ) -> None:
        self.engine = engine
        self.graphs = graphs
        self.gradient: GradientMode = gradient
        self.state = {name: tensor.to(device, copy=True) for name, tensor in graphs.initial_state.items()}
        self.affine = {name: tensor.to(device, copy=True) for name, tensor in graphs.initial_affine.items()}
        self._device = device
        self._plain = graphs.forward.outputs[: 1 + len(graphs.state)]
        self._residuals = {r.value.name: r for r in graphs.residuals}
        self._made = [r.value.name for r in graphs.residuals if r.value.name not in graphs.forward.inputs]
        self._forward = programs["forward"]
        direction = {"exact": "backward", "recompute": "recompute", "local": ""}[gradient]
        self._backward = programs.get(direction)
        self.half = bool(half)
        self._scale = GradientScale(device) if direction in half else None

    @property
    def overflows(self) -> int:
        """Gradients that overflowed in float16; each cost one update, and none was applied."""
        return 0 if self._scale is None else int(self._scale.overflows)

    def forward(self, x: Tensor, *, keep: bool = True, momentum: float = 0.1) -> tuple[Tensor, Residuals]:
        inputs = {"x": x, **self.state, **self.affine}
        if self.state:
            inputs["ema_momentum"] = torch.full((1,), momentum, device=self._device)
        residuals = Residuals(batch=x.shape[0])
        made = self._made if keep and self.gradient == "exact" else []
        outputs = self._forward.run(inputs, [*self._plain, *made], self._pack)
        residuals.kept = dict(zip(made, outputs[len(self._plain) :], strict=True))
        if keep and self.gradient == "recompute":
            residuals.kept = {k: v for k, v in inputs.items() if k in self.state or k == "ema_momentum"}
        if keep and (self.gradient == "recompute" or "x" in self._residuals):
            residuals.shared["x"] = x
        for name, tensor in zip(self.graphs.state, outputs[1 : len(self._plain)], strict=True):
            self.state[name] = tensor
        return outputs[0], residuals

    def input_gradient(self, residuals: Residuals, grad_y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if self._backward is None:
            raise RuntimeError(f"a segment in gradient mode {self.gradient!r} has no backward")
        inputs = {**residuals.shared}
        for name in list(residuals.kept):
            kept = residuals.kept.pop(name)
            residual = self._residuals.get(name) if self.gradient == "exact" else None
            inputs[name] = residual.unpack(kept, residuals.batch) if residual is not None else kept
        if self.gradient == "recompute":
            inputs.update(self.affine)
        program = self._backward

        def backward(grad: Tensor) -> list[Tensor]:
            return program.run({**inputs, "grad_y": grad}, program.graph.outputs)

        gradients = backward(grad_y) if self._scale is None else self._scale.through(grad_y, backward)
        return gradients[0], dict(zip(self.affine, gradients[1:], strict=True))

    def _pack(self, name: str, tensor: Tensor) -> Tensor:
        residual = self._residuals.get(name)
        return tensor if residual is None else residual.pack(tensor)


class GradientScale:
    """Brings gradients, which are mostly too small for float16, into its range by a power of two, and back.

    All of it happens on the device: nothing waits for a number. What still overflows comes out as infinite, so that
    the update is refused; from then on the segment is given gradients that are 16 times smaller.
    """

    def __init__(self, device: torch.device) -> None:
        self.overflows = torch.zeros((), dtype=torch.int64, device=device)
        self._exponent = torch.full((), HEADROOM, dtype=torch.int32, device=device)

    def through(self, grad: Tensor, backward: Callable[[Tensor], list[Tensor]]) -> list[Tensor]:
        """What `backward` makes of a gradient, as if it had not been scaled. Overflows are counted.

        A gradient that is zero or not finite is passed on as it is.
        """
        largest = grad.abs().amax()
        sound = torch.isfinite(largest)
        _, exponent = torch.frexp(largest)
        scale = torch.ldexp(torch.ones_like(largest), (self._exponent - exponent).clamp(-120, 120))
        scale = torch.where(sound & (largest > 0), scale, torch.ones_like(scale))
        gradients = backward(grad * scale)
        finite = torch.stack([torch.isfinite(gradient).all() for gradient in gradients]).all()
        lost = sound & ~finite
        self.overflows += lost
        self._exponent -= 4 * lost.to(torch.int32)
        return [gradient / scale for gradient in gradients]
