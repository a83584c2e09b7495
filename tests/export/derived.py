"""From a module to the derived graphs of its parts, and their gradients on each engine, for the tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgetta.export.batch_norm import EMA_MOMENTUM, BatchNormPolicy, settle
from edgetta.export.cut import CutModel
from edgetta.export.differentiate import differentiate
from edgetta.export.onnx_writer import to_onnx
from edgetta.segments.contract import GradientMode, SegmentGraphs
from edgetta.segments.graph import Graph
from edgetta.segments.onnxruntime_engine import OnnxProgram, OnnxRuntimeSegment
from edgetta.segments.torch_engine import Program, TorchSegment


@dataclass(frozen=True)
class Result:
    """What a derived segment returned, and what it kept in between: bytes, and the masks among it."""

    y: Tensor
    grad_x: Tensor
    grad_biases: dict[str, Tensor]
    kept_bytes: int
    masks: dict[str, Tensor]


def derive(
    model: CutModel, policy: BatchNormPolicy, adapt_bias: bool = False, dtype: torch.dtype = torch.float32
) -> list[SegmentGraphs]:
    """The graphs of every part, then the classifier's (the stem, which has no backward, is left out)."""
    return [derive_one(graph, policy, adapt_bias, dtype) for graph in (*model.parts, model.classifier)]


def derive_one(
    graph: Graph, policy: BatchNormPolicy, adapt_bias: bool = False, dtype: torch.dtype = torch.float32
) -> SegmentGraphs:
    return differentiate(settle(graph.to(dtype), policy, adapt_bias))


def models(graphs: SegmentGraphs, gradient: GradientMode) -> dict[str, bytes]:
    """The ONNX files that a gradient mode needs, in memory."""
    found = {"forward": graphs.forward}
    if gradient == "exact" and graphs.backward is not None:
        found["backward"] = graphs.backward
    if gradient == "recompute" and graphs.recompute is not None:
        found["recompute"] = graphs.recompute
    return {name: to_onnx(graph, name).SerializeToString() for name, graph in found.items()}


def segment(
    graphs: SegmentGraphs,
    engine: str,
    gradient: GradientMode = "exact",
    dtype: torch.dtype = torch.float32,
    pack: bool = True,
) -> TorchSegment | OnnxRuntimeSegment:
    if engine == "torch":
        return TorchSegment(graphs, gradient, dtype=dtype, pack=pack)
    return OnnxRuntimeSegment(graphs, models(graphs, gradient), gradient, threads=1)


def gradient_of(part: TorchSegment | OnnxRuntimeSegment, x: Tensor, grad_y: Tensor, momentum: float = 0.1) -> Result:
    """One forward and one backward."""
    y, residuals = part.forward(x, momentum=momentum)
    kept = residuals.kept_bytes()
    masks = [r for r in part.graphs.residuals if r.kind == "mask" and r.value.name in residuals.kept]
    own = {r.value.name: residuals.kept[r.value.name] for r in masks}
    unpacked = {
        r.value.name: r.unpack(own[r.value.name], len(x)) for r in masks if own[r.value.name].dtype != torch.bool
    }
    grad_x, grad_biases = part.input_gradient(residuals, grad_y)
    return Result(y, grad_x, grad_biases, kept, own | unpacked)


def own_masks_bound(masks: Mapping[str, Tensor], residuals: Mapping[str, Tensor], usual: float) -> float:
    """How far off a gradient may be that an engine computed with its own masks, given those of float64.

    A few masks per ten million fall on the other side of zero. Each changes one element of a gradient: next to nothing
    in a large map, and in a small one more than the `usual` bound.
    """
    flipped = [(int((masks[name] != residuals[name]).sum()), masks[name].numel()) for name in masks]
    assert sum(f for f, _ in flipped) <= 3 + 1e-6 * sum(n for _, n in flipped)
    return max(usual, 6.0 * sum(2.0 * f / n for f, n in flipped) ** 0.5)


def residuals_in_float64(graphs: SegmentGraphs, x: Tensor, momentum: float = 0.1) -> dict[str, Tensor]:
    """The residuals of `graphs` (derived in float64) on x, unpacked, by name."""
    inputs = {"x": x.double()}
    inputs |= {k: v.double() for k, v in {**graphs.initial_state, **graphs.initial_biases}.items()}
    if graphs.state:
        inputs[EMA_MOMENTUM] = torch.full((1,), momentum, dtype=torch.float64)
    outputs = Program(graphs.forward, dtype=torch.float64).run(inputs)
    return dict(zip(graphs.forward.outputs, outputs, strict=True)) | {"x": x.double()}


def gradient_with_imposed(
    graphs: SegmentGraphs, engine: str, residuals: Mapping[str, Tensor], grad_y: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """grad_x and the bias gradients in float32 on `engine`, from residuals that were made elsewhere."""
    assert graphs.backward is not None
    inputs = {r.value.name: residuals[r.value.name] for r in graphs.residuals}
    inputs = {k: v.float() if v.is_floating_point() else v for k, v in inputs.items()} | {"grad_y": grad_y.float()}
    if engine == "torch":
        outputs = Program(graphs.backward).run(inputs)
    else:
        program = OnnxProgram(to_onnx(graphs.backward, "backward").SerializeToString(), graphs.backward, threads=1)
        outputs = program.run(inputs, graphs.backward.outputs)
    return outputs[0], dict(zip(graphs.initial_biases, outputs[1:], strict=True))


def parameter_name(bias: str) -> str:
    """The network's parameter behind the bias input of a graph."""
    return bias.removeprefix("bias.").removesuffix(".folded")
