"""Programs on an NVIDIA GPU, as engines of TensorRT or sessions of ONNX Runtime: numpy in, numpy out, torch between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from edgetta.engines.contract import Array, Mixing, Moments, Passed, ProgramSet, Residuals, Statistics
from edgetta.engines.feeding import Feeding
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


Make = Callable[[str], tuple[Runnable, bool]]


class GpuEngine:
    """An `engines.contract.Engine` on a GPU. Residuals stay there, masks as bits; everything else comes back.

    name        of the engine, as in `ENGINES`
    make        the program called "predict", "measure", ..., and whether it computes in float16: asked once for each
                that is used
    precision   what programs compute in at their coarsest: "fp32", "tf32" or "fp16"
    """

    def __init__(
        self, programs: ProgramSet, name: str, make: Make, device: torch.device, precision: str = "fp32"
    ) -> None:
        self.programs = programs
        self.name = name
        self.precision = precision
        self._make = make
        self._device = device
        self._feeding = Feeding(programs)
        self._residuals = {residual.value.name: residual for residual in programs.residuals}
        self._made: dict[str, tuple[Runnable, GradientScale | None]] = {}

    @property
    def overflows(self) -> int:
        """Gradients that overflowed in float16; each cost one update, and none was applied."""
        return sum(int(scale.overflows) for _, scale in self._made.values() if scale is not None)

    def predict(self, images: Array, parameters: Array, statistics: Statistics) -> Array:
        return self._arrays("predict", self._inputs("predict", images, parameters, statistics))[0]

    def measure(self, images: Array, parameters: Array, mixing: Mixing) -> tuple[Array, Moments]:
        feeding = self._feeding
        inputs = {
            "x": feeding.images(images),
            **feeding.parameters(parameters, self.programs.measure),
            **feeding.mixing(mixing),
        }
        logits, *moments = self._arrays("measure", inputs)
        return logits, feeding.moments_of(moments)

    def forward(self, images: Array, parameters: Array, statistics: Statistics, moments: bool = True) -> Passed:
        feeding, graph = self._feeding, self.programs.forward
        given = self._tensors(self._inputs("forward", images, parameters, statistics))
        names = [name for name in graph.outputs if moments or name not in feeding.moments]
        program, _ = self._program("forward")
        with torch.no_grad():
            found = dict(zip(names, program.run(given, names, self._keep), strict=True))
        kept = {name: found[name] for name in feeding.residuals}
        if "x" in self._residuals:
            kept["x"] = given["x"]
        distance = float(sum(found[name].mean() for name in feeding.distances))
        own = feeding.moments_of([_array(found[name]) for name in feeding.moments]) if moments else None
        return Passed(_array(found[graph.outputs[0]]), distance, own, Residuals(len(images), kept))

    def backward(self, residuals: Residuals, grad_logits: Array, regulariser: float, parameters: Array) -> Array:
        inputs = self._tensors(self._feeding.parameters(parameters, self.programs.backward))
        for name in list(residuals.kept):
            kept = residuals.kept.pop(name)
            inputs[name] = kept if name == "x" else self._residuals[name].unpack(kept, residuals.batch)
        return self._gradients("backward", inputs, grad_logits, regulariser)

    def recompute(
        self, images: Array, grad_logits: Array, regulariser: float, parameters: Array, statistics: Statistics
    ) -> Array:
        inputs = self._tensors(self._inputs("recompute", images, parameters, statistics))
        return self._gradients("recompute", inputs, grad_logits, regulariser)

    def _gradients(self, name: str, inputs: dict[str, Tensor], grad_logits: Array, regulariser: float) -> Array:
        """What a program makes of what comes back: both of it scaled alike where it computes in float16."""
        program, scale = self._program(name)
        incoming = self._tensors(self._feeding.gradient(grad_logits, regulariser))
        shape = incoming["grad_logits"].shape
        joined = torch.cat([incoming["grad_logits"].reshape(-1), incoming["regulariser"]])

        def run(joined: Tensor) -> list[Tensor]:
            incoming = {"grad_logits": joined[:-1].view(shape), "regulariser": joined[-1:]}
            return program.run({**inputs, **incoming}, program.graph.outputs)

        with torch.no_grad():
            gradients = run(joined) if scale is None else scale.through(joined, run)
        return self._feeding.gradients([_array(gradient) for gradient in gradients])

    def _keep(self, name: str, tensor: Tensor) -> Tensor:
        residual = self._residuals.get(name)
        return tensor if residual is None else residual.pack(tensor)

    def _inputs(self, program: str, images: Array, parameters: Array, statistics: Statistics) -> dict[str, Array]:
        graph: Graph = getattr(self.programs, program)
        return {
            "x": self._feeding.images(images),
            **self._feeding.parameters(parameters, graph),
            **self._feeding.statistics(statistics, graph),
        }

    def _arrays(self, name: str, inputs: Mapping[str, Array]) -> list[Array]:
        program, _ = self._program(name)
        with torch.no_grad():
            return [_array(tensor) for tensor in program.run(self._tensors(inputs), program.graph.outputs)]

    def _program(self, name: str) -> tuple[Runnable, GradientScale | None]:
        if name not in self._made:
            program, half = self._make(name)
            self._made[name] = (program, GradientScale(self._device) if half else None)
        return self._made[name]

    def _tensors(self, arrays: Mapping[str, Array]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(array).to(self._device) for name, array in arrays.items()}


class GradientScale:
    """Brings gradients, which are mostly too small for float16, into its range by a power of two, and back.

    All of it happens on the device: nothing waits for a number. What still overflows comes out as infinite, so that
    the update is refused; from then on the program is given gradients that are 16 times smaller.
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


def _array(tensor: Tensor) -> Array:
    array: Array = tensor.cpu().numpy()
    return array
