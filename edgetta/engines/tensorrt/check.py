"""Test one engine against the torch engine: outputs, masks and gradients, on given images.

An engine may compute something else than its program without any error: in float16 above all, where sums overflow and
small numbers vanish. Engines that do are not used.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgetta.engines.contract import Array, Mixing, Moments, ProgramSet
from edgetta.engines.feeding import Feeding
from edgetta.engines.gpu import GradientScale, Runnable
from edgetta.engines.tensorrt.build import BuildOptions
from edgetta.segments.graph import Graph
from edgetta.segments.torch_engine import Program

TOLERANCE = {"fp32": 1e-3, "tf32": 1e-2, "fp16": 1e-2}
"""Relative L2 error of an output, and share of a mask's elements that may differ."""

RECOMPUTE_TOLERANCE = {"fp32": 3e-2, "tf32": 4e-1, "fp16": 4e-1}
"""Of gradients whose masks an engine makes itself: those that flip on the way are no error of it, and in float16 they
change gradients by tens of percent. As in the self-test of a bundle."""

SHARE = 0.5  # of the images in the statistics of `measure`: all operators take part
REGULARISER = 0.1
_MOVED = 0.3  # of a meta-network's vectors, so that its output differs from its input in more than rounding
_FLOOR = 1e-2  # gradients smaller than this share of the largest are compared with that share
_GRADIENTS = ("backward", "recompute")


@dataclass(frozen=True)
class Reference:
    """Inputs of one program, and what the torch engine makes of them, by name; errors are relative to no less than

    the floor of an output.
    """

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    floors: Mapping[str, float]

    def only(self, names: Collection[str]) -> Reference:
        """Without the outputs that are not among `names`."""
        return Reference(self.inputs, {n: tensor for n, tensor in self.outputs.items() if n in names}, self.floors)


def program_reference(programs: ProgramSet, name: str, images: Array) -> Reference:
    """What the program called `name` makes of images (N, C, H, W), with the network as shipped, but for its

    meta-networks, which are moved away from their identity. The backward gets the masks of the torch engine.
    """
    feeding = Feeding(programs)
    graph: Graph = getattr(programs, name)
    source = programs.source
    arrays = {"x": feeding.images(images), **feeding.parameters(_moved(programs), graph)}
    if name == "measure":
        arrays |= feeding.mixing(Mixing.plain(Moments(source.mean, source.variance), SHARE))
    else:
        arrays |= feeding.statistics(source, graph)
    inputs = {key: torch.from_numpy(np.array(array)) for key, array in arrays.items()}
    if name in _GRADIENTS:
        forward = program_reference(programs, "forward", images)
        logits = forward.outputs[programs.forward.outputs[0]]
        incoming = feeding.gradient(_pattern(logits.numpy()), REGULARISER)
        inputs |= {**forward.outputs, **{key: torch.from_numpy(array) for key, array in incoming.items()}}
    given = {key: inputs[key] for key in graph.inputs}
    with torch.no_grad():
        outputs = dict(zip(graph.outputs, Program(graph).run(given), strict=True))
    return Reference(given, outputs, _floors(feeding, name, outputs))


def engine_errors(program: Runnable, reference: Reference, device: torch.device, half: bool) -> dict[str, float]:
    """The error of each output that the reference has: infinite where a value is not finite."""
    inputs = {name: tensor.to(device) for name, tensor in reference.inputs.items()}
    names = list(reference.outputs)
    if half and "grad_logits" in inputs:
        shape = inputs["grad_logits"].shape
        joined = torch.cat([inputs["grad_logits"].reshape(-1), inputs["regulariser"]])

        def run(joined: Tensor) -> list[Tensor]:
            incoming = {"grad_logits": joined[:-1].view(shape), "regulariser": joined[-1:]}
            return program.run({**inputs, **incoming}, names)

        found = GradientScale(device).through(joined, run)
    else:
        found = program.run(inputs, names)
    expected = list(reference.outputs.values())
    return {
        name: _error(a.cpu(), b, reference.floors.get(name, 0.0))
        for name, a, b in zip(names, found, expected, strict=True)
    }


def verdict(name: str, errors: Mapping[str, float], options: BuildOptions) -> str:
    """Why an engine of the program `name` with these errors must not be used; "" where it may."""
    tolerance = RECOMPUTE_TOLERANCE if name == "recompute" else TOLERANCE
    limit = tolerance["tf32" if options.tf32 and options.precision == "fp32" else options.precision]
    output, worst = max(errors.items(), key=lambda item: item[1])
    if worst <= limit:
        return ""
    if worst == float("inf"):
        return f"its {output!r} is not finite"
    return f"its {output!r} is off by {worst:.1e}, and {limit:.0e} is allowed"


def _moved(programs: ProgramSet) -> Array:
    """The parameters as shipped, vectors of meta-networks moved by numbers of both signs that repeat nowhere."""
    arrays = programs.parameters.split(programs.shipped)
    numbers = np.cos(0.7 + np.arange(programs.parameters.size))
    moves = programs.parameters.split(_MOVED * numbers)
    return programs.parameters.join(
        {
            name: array + moves[name] if name.startswith("metas.") and array.ndim < 2 else array
            for name, array in arrays.items()
        }
    ).astype(np.float32)


def _pattern(logits: Array) -> Array:
    """A gradient by logits (N, classes)."""
    numbers = np.arange(logits.size, dtype=np.float64)
    return (np.cos(0.7 + numbers) / len(logits)).reshape(logits.shape).astype(np.float32)


def _floors(feeding: Feeding, name: str, outputs: Mapping[str, Tensor]) -> dict[str, float]:
    """Gradients are compared with a share of the largest, means at least with the deviation of what they are of."""
    if name in _GRADIENTS:
        return dict.fromkeys(outputs, _FLOOR * max(float(value.norm()) for value in outputs.values()))
    names, floors = list(outputs), {}
    if name in ("measure", "forward"):
        moments = feeding.moments if name == "forward" else names[1:]
        for mean, variance in zip(moments[: feeding.layers], moments[feeding.layers :], strict=True):
            floors[mean] = float(outputs[variance].sqrt().norm())
    return floors


def _error(value: Tensor, expected: Tensor, floor: float) -> float:
    if value.shape != expected.shape:
        return float("inf")
    if expected.dtype == torch.bool:
        return float((value != expected).double().mean())
    if not bool(torch.isfinite(value).all()):
        return float("inf")
    difference = float((value.double() - expected.double()).norm())
    return difference / max(float(expected.double().norm()), floor, 1e-12)
