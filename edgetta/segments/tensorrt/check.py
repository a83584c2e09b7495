"""Test one engine against the torch engine: outputs, masks and gradients, on given inputs.

An engine may compute something else than its graph without any error: in float16 above all, where sums overflow and
small numbers vanish. Engines that do are not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgetta.segments.contract import SegmentGraphs
from edgetta.segments.gpu_segment import GradientScale, Runnable
from edgetta.segments.graph import Graph
from edgetta.segments.tensorrt.build import BuildOptions
from edgetta.segments.torch_engine import Program

TOLERANCE = {"fp32": 1e-3, "tf32": 1e-2, "fp16": 1e-2}
"""Relative L2 error of an output, and share of a mask's elements that may differ. Measured on segments of four
networks with float16 rounded at every operator: errors up to 1.5e-3, masks up to 7e-4. float32 rounds 1,000
times less."""

_FLOOR = 1e-2  # gradients smaller than this share of the largest are compared with that share


@dataclass(frozen=True)
class Reference:
    """Inputs of one graph, and what the torch engine makes of them, by name."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


def forward_reference(graphs: SegmentGraphs, x: Tensor, state: Mapping[str, Tensor], momentum: float) -> Reference:
    """For the forward graph of a segment: `x` is (N, ...), `state` its running statistics and adaptable biases."""
    inputs = {"x": x, **state}
    if graphs.state:
        inputs["ema_momentum"] = torch.full((1,), momentum)
    return _reference(graphs.forward, inputs)


def gradient_reference(graphs: SegmentGraphs, direction: str, forward: Reference) -> Reference:
    """For "backward" or "recompute", with the masks that the torch engine made: a mask that flips is no error here."""
    graph = {"backward": graphs.backward, "recompute": graphs.recompute}[direction]
    assert graph is not None
    y = forward.outputs[graphs.forward.outputs[0]]
    numbers = torch.arange(y.numel(), dtype=torch.float64)
    grad_y = (torch.cos(0.7 + numbers) / y.shape[0]).view(y.shape).float()  # of both signs, repeating nowhere
    return _reference(graph, {**forward.inputs, **forward.outputs, "grad_y": grad_y})


def engine_errors(program: Runnable, reference: Reference, device: torch.device, half: bool) -> dict[str, float]:
    """The error of each output that the reference has: infinite where a value is not finite."""
    inputs = {name: tensor.to(device) for name, tensor in reference.inputs.items()}
    names = list(reference.outputs)
    if half and "grad_y" in inputs:
        found = GradientScale(device).through(
            inputs["grad_y"], lambda grad: program.run({**inputs, "grad_y": grad}, names)
        )
    else:
        found = program.run(inputs, names)
    expected = list(reference.outputs.values())
    largest = max((float(value.norm()) for value in expected if value.dtype != torch.bool), default=0.0)
    floor = _FLOOR * largest if "grad_y" in inputs else 0.0
    return {name: _error(a.cpu(), b, floor) for name, a, b in zip(names, found, expected, strict=True)}


def verdict(errors: Mapping[str, float], options: BuildOptions) -> str:
    """Why an engine with these errors must not be used; "" where it may."""
    limit = TOLERANCE["tf32" if options.tf32 and options.precision == "fp32" else options.precision]
    name, worst = max(errors.items(), key=lambda item: item[1])
    if worst <= limit:
        return ""
    if worst == float("inf"):
        return f"its {name!r} is not finite"
    return f"its {name!r} is off by {worst:.1e}, and {limit:.0e} is allowed"


def _reference(graph: Graph, inputs: Mapping[str, Tensor]) -> Reference:
    given = {name: inputs[name] for name in graph.inputs}
    with torch.no_grad():
        return Reference(given, dict(zip(graph.outputs, Program(graph).run(given), strict=True)))


def _error(value: Tensor, expected: Tensor, floor: float) -> float:
    if value.shape != expected.shape:
        return float("inf")
    if expected.dtype == torch.bool:
        return float((value != expected).double().mean())
    if not bool(torch.isfinite(value).all()):
        return float("inf")
    difference = float((value.double() - expected.double()).norm())
    return difference / max(float(expected.double().norm()), floor, 1e-12)
