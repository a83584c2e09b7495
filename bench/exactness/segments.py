"""From a module to the derived graphs of its parts, and their gradients on each engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgetta.export.batch_norm import EMA_MOMENTUM, Adapt, BatchNormPolicy, settle
from edgetta.export.cut import CutModel
from edgetta.export.differentiate import differentiate
from edgetta.export.onnx_writer import to_onnx
from edgetta.segments.contract import GradientMode, Residuals, SegmentGraphs
from edgetta.segments.graph import Graph
from edgetta.segments.onnxruntime_engine import OnnxProgram, OnnxRuntimeSegment
from edgetta.segments.torch_engine import Program, TorchSegment


@dataclass(frozen=True)
class Result:
    """What a derived segment returned, and what it kept in between: in bytes, and unpacked (`exact` only), by name."""

    y: Tensor
    grad_x: Tensor
    grad_biases: dict[str, Tensor]
    kept_bytes: int
    residuals: dict[str, Tensor]


def derive(
    model: CutModel, policy: BatchNormPolicy, adapt: Adapt = "meta", dtype: torch.dtype = torch.float32
) -> list[SegmentGraphs]:
    """The graphs of every part, then the classifier's (the stem, which has no backward, is left out)."""
    return [derive_one(graph, policy, adapt, dtype) for graph in (*model.parts, model.classifier)]


def derive_one(
    graph: Graph, policy: BatchNormPolicy, adapt: Adapt = "meta", dtype: torch.dtype = torch.float32
) -> SegmentGraphs:
    return differentiate(settle(graph.to(dtype), policy, adapt))


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
    threads: int = 1,
) -> TorchSegment | OnnxRuntimeSegment:
    if engine == "torch":
        return TorchSegment(graphs, gradient, dtype=dtype, pack=pack)
    return OnnxRuntimeSegment(graphs, models(graphs, gradient), gradient, threads)


def gradient_of(part: TorchSegment | OnnxRuntimeSegment, x: Tensor, grad_y: Tensor, momentum: float = 0.1) -> Result:
    """One forward and one backward."""
    y, residuals = part.forward(x, momentum=momentum)
    kept_bytes = residuals.kept_bytes()
    unpacked = _unpacked(part, residuals) if part.gradient == "exact" else {}
    grad_x, grad_biases = part.input_gradient(residuals, grad_y)
    return Result(y, grad_x, grad_biases, kept_bytes, unpacked)


def _unpacked(part: TorchSegment | OnnxRuntimeSegment, residuals: Residuals) -> dict[str, Tensor]:
    """Residuals as the backward graph takes them."""
    found = dict(residuals.shared)
    for residual in part.graphs.residuals:
        kept = residuals.kept.get(residual.value.name)
        if kept is not None:
            packed = residual.kind in ("mask", "code") and kept.dtype == torch.uint8
            found[residual.value.name] = residual.unpack(kept, residuals.batch) if packed else kept
    return found


def gradient_in_float64(graphs: SegmentGraphs, residuals: Mapping[str, Tensor], grad_y: Tensor) -> Tensor:
    """grad_x in float64 from residuals that were made elsewhere; `graphs` derived in float64."""
    assert graphs.backward is not None
    inputs = {r.value.name: residuals[r.value.name] for r in graphs.residuals}
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()} | {"grad_y": grad_y.double()}
    return Program(graphs.backward, dtype=torch.float64).run(inputs)[0]


def residuals_in_float64(graphs: SegmentGraphs, x: Tensor, momentum: float = 0.1) -> dict[str, Tensor]:
    """The residuals of `graphs` (derived in float64) on x, unpacked, by name."""
    inputs = {"x": x.double()}
    inputs |= {k: v.double() for k, v in {**graphs.initial_state, **graphs.initial_affine}.items()}
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
        outputs = program.run(inputs)
    return outputs[0], dict(zip(graphs.initial_affine, outputs[1:], strict=True))


def parameter_name(bias: str) -> str:
    """The network's parameter behind the bias input of a graph."""
    return bias.removeprefix("bias.").removesuffix(".folded")
