"""From the files of a segment to its graphs, checked: sizes, the contract between graphs, the fit between segments.

That each operator gives the shape that a graph declares is checked by `Graph.from_json`; engines trust those shapes
when they reserve memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from edgetta.adaptation.meta_network import MetaSpec
from edgetta.adaptation.model import AdaptableModel
from edgetta.bounded_json import parse_json
from edgetta.bundle.files import BundleFiles
from edgetta.bundle.graph_limits import check_limits, check_sizes
from edgetta.bundle.manifest import SegmentEntry, describe_segment
from edgetta.errors import BundleError, one_line
from edgetta.segments.contract import Residual, ResidualKind, SegmentGraphs
from edgetta.segments.graph import BATCH, Graph
from edgetta.tensor_file import parse_tensors

MAX_GRAPH_BYTES = 8 << 20
_AGAIN = "export the bundle again"


def read_segment(files: BundleFiles, entry: SegmentEntry) -> SegmentGraphs:
    """The graphs of a segment. Raises `BundleError` naming the file that is malformed or disagrees with another."""
    where = f"{entry.graphs} in bundle {files.path}"
    tensors = read_tensors(files, entry.tensors, quantised=True)
    data = _load(files, entry.graphs)
    graphs = {d: _graph(data.get(d), tensors, f"{where} ({d})") for d in ("forward", "backward", "recompute")}
    try:
        forward = graphs["forward"]
        if forward is None:
            raise ValueError("it has no forward graph")
        segment = SegmentGraphs(
            forward,
            graphs["backward"],
            graphs["recompute"],
            tuple(_residual(item, forward) for item in data["residuals"]),
            {str(name): str(output) for name, output in data["state"].items()},
            {str(name): tensors[tensor] for name, tensor in data["initial_state"].items()},
            {str(name): tensors[tensor] for name, tensor in data["initial_affine"].items()},
        )
        _check_segment(segment)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{where} is malformed: {one_line(error)}; {_AGAIN}") from error
    _check_description(segment, entry, where)
    return segment


def read_source(files: BundleFiles, entry: SegmentEntry) -> Graph:
    """The graph of the whole unadapted backbone. Raises `BundleError` as `read_segment`."""
    where = f"{entry.graphs} in bundle {files.path}"
    graph = _graph(
        _load(files, entry.graphs).get("forward"), read_tensors(files, entry.tensors, quantised=True), where
    )
    if graph is None or graph.inputs != ("x",) or len(graph.outputs) != 1:
        raise BundleError(f"{where} is malformed: it must have one input and one output; {_AGAIN}")
    _check_description(SegmentGraphs(graph, None, None), entry, where)
    return graph


def read_tensors(files: BundleFiles, name: str, quantised: bool = False) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file: float32, and with `quantised` int8; in memory of this process alone."""
    try:
        arrays, _ = parse_tensors(files.read(name), ("F32", "I8") if quantised else ("F32",))
    except ValueError as error:
        raise BundleError(f"{name} in bundle {files.path} cannot be used: {error}; {_AGAIN}") from error
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def check_model(model: AdaptableModel, path: Path) -> None:
    """Segments follow on each other, meta-networks fit beside the parts. Raises `BundleError`."""
    shapes: list[tuple[int, ...]] = [(BATCH, *model.input_shape)]
    for name, graphs in model.segments().items():
        if graphs.input.shape != shapes[-1] or graphs.input.dtype != "float" or graphs.output.dtype != "float":
            raise BundleError(
                f"bundle {path}: segment {name} takes {graphs.input.shape} where {shapes[-1]} comes; {_AGAIN}"
            )
        if (graphs.backward is None) != (name == "stem") or (graphs.recompute is None) != (name == "stem"):
            raise BundleError(f"bundle {path}: segment {name} lacks a gradient, or has one that it must not; {_AGAIN}")
        shapes.append(graphs.output.shape)
    logits = (BATCH, model.classes)
    source = model.source
    entry, result = source.values["x"], source.values[source.outputs[0]]
    if shapes[-1] != logits or (entry.shape, result.shape) != (shapes[0], logits):
        raise BundleError(f"bundle {path}: the network returns {shapes[-1]} or its source differs; {_AGAIN}")
    for k, (spec, part) in enumerate(zip(model.metas, model.parts, strict=True), 1):
        if not _fits(spec, part.input.shape, part.output.shape):
            raise BundleError(f"bundle {path}: meta-network {k} does not fit beside part {k}; {_AGAIN}")


def _fits(spec: MetaSpec, source: Sequence[int], target: Sequence[int]) -> bool:
    if spec.tokens:
        same = len(source) == len(target) == 3 and source[1] == target[1]
        return (
            same
            and (spec.kernel, spec.stride) == (1, 1)
            and (source[2], target[2])
            == (
                spec.in_channels,
                spec.out_channels,
            )
        )
    if len(source) != 4 or len(target) != 4 or (source[1], target[1]) != (spec.in_channels, spec.out_channels):
        return False
    return all((size - 1) // spec.stride + 1 == out for size, out in zip(source[2:], target[2:], strict=True))


def _load(files: BundleFiles, name: str) -> dict[str, Any]:
    where = f"{name} in bundle {files.path}"
    if files.manifest.files[name].size > MAX_GRAPH_BYTES:
        raise BundleError(f"{where} is larger than the {MAX_GRAPH_BYTES} bytes allowed; {_AGAIN}")
    try:
        data = parse_json(files.read(name))
    except ValueError as error:
        raise BundleError(f"{where} is not JSON of edgetta ({error}); {_AGAIN}") from error
    if not isinstance(data, dict):
        raise BundleError(f"{where} holds no graphs; {_AGAIN}")
    return data


def _graph(data: Any, tensors: Mapping[str, Tensor], where: str) -> Graph | None:
    if data is None:
        return None
    try:
        check_sizes(len(data["nodes"]), len(data["values"]), len(data["constants"]))
        graph = Graph.from_json(data, tensors)
        check_limits(graph)
    except BundleError as error:
        raise BundleError(f"{where}: {one_line(error)}") from error
    except Exception as error:  # attributes of the wrong kind fail in the operator, each in its own way
        raise BundleError(f"{where} is malformed: {one_line(error)}; {_AGAIN}") from error
    return graph


def _residual(item: Mapping[str, Any], forward: Graph) -> Residual:
    name, kind, low, high = item["name"], item["kind"], float(item["low"]), float(item["high"])
    value = forward.values[name]
    if kind not in get_args(ResidualKind) or not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"residual {name!r} has kind {kind!r} and range {low} to {high}")
    if (kind == "mask") != (value.dtype == "bool"):
        raise ValueError(f"residual {name!r} of kind {kind} has dtype {value.dtype}")
    return Residual(value, kind, low, high)


def _check_segment(segment: SegmentGraphs) -> None:
    """Engines give inputs by name and take outputs by position: names, order and shapes are those of the contract."""
    forward = segment.forward
    affine, residuals = tuple(segment.initial_affine), tuple(r.value.name for r in segment.residuals)
    momentum = ("ema_momentum",) if segment.state else ()
    _among("inputs of forward", forward.inputs, ("x", *segment.state, *momentum, *affine))
    missing = {"x", *segment.state, *momentum, *affine} - set(forward.values)
    if missing:
        raise ValueError(f"forward lacks {sorted(missing)[0][:120]!r}")
    _same("outputs of forward", forward.outputs[1:], (*segment.state.values(), *residuals))
    _same("state", tuple(segment.initial_state), tuple(segment.state))
    if momentum:
        _same("shape of ema_momentum", forward.values["ema_momentum"].shape, (1,))
    for name, tensor in {**segment.initial_state, **segment.initial_affine}.items():
        _same(f"shape of {name!r}", forward.values[name].shape, tuple(tensor.shape))
        _same(f"type of {name!r}", tensor.is_floating_point(), True)
    for name, output in segment.state.items():
        _same(f"shape of the new {name!r}", forward.values[output].shape, forward.values[name].shape)
    gradients = [segment.input.shape, *(forward.values[name].shape for name in affine)]
    for graph, inputs in ((segment.backward, residuals), (segment.recompute, forward.inputs)):
        if graph is None:
            continue
        _among("inputs of a gradient graph", graph.inputs, (*inputs, "grad_y"))
        _same("outputs of a gradient graph", [graph.values[n].shape for n in graph.outputs], gradients)
        if "grad_y" in graph.inputs:
            _same("shape of grad_y", graph.values["grad_y"].shape, segment.output.shape)
        for name in set(inputs).intersection(graph.inputs):
            _same(f"value {name!r}", graph.values[name], forward.values[name])


def _among(what: str, found: Sequence[str], expected: Sequence[str]) -> None:
    odd = sorted(set(found) - set(expected))
    if odd or len(set(found)) != len(found):
        raise ValueError(f"{what}: {', '.join(odd)[:120] or 'a name occurs twice'}")


def _same(what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise ValueError(f"{what}: {str(found)[:120]} where {str(expected)[:120]} is expected")


def _check_description(segment: SegmentGraphs, entry: SegmentEntry, where: str) -> None:
    described = describe_segment(segment)
    if described != entry.described or set(described["signatures"]) != set(entry.onnx):
        raise BundleError(f"{where} is not the segment {entry.name!r} that the manifest describes; {_AGAIN}")
