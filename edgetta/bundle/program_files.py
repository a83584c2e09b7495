"""The whole-network programs of a bundle: read and checked. Nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np

from edgetta.bounded_json import parse_json
from edgetta.bundle.files import BundleFiles
from edgetta.bundle.graph_limits import check_limits, check_sizes
from edgetta.bundle.manifest import ProgramsEntry
from edgetta.engines.contract import Array, Layout, ProgramSet, Statistics
from edgetta.errors import BundleError, one_line
from edgetta.segments.contract import Residual, ResidualKind, describe
from edgetta.segments.graph import BATCH, Graph
from edgetta.tensor_file import parse_tensors

SHIPPED, SOURCE_MEAN, SOURCE_VARIANCE = "shipped", "source.mean", "source.variance"
MAX_NUMBERS = 1 << 30  # of all parameters
_AGAIN = "export the bundle again"


def read_programs(
    files: BundleFiles, entry: ProgramsEntry, input_shape: tuple[int, int, int], classes: int
) -> ProgramSet:
    """The programs, checked: every graph, and the fit between them. Raises `BundleError`."""
    where = f"{entry.layout} in bundle {files.path}"
    arrays = _arrays(files, entry.tensors)
    graphs = {name: _graph(files, file, arrays) for name, file in entry.graphs.items()}
    data = _load(files, entry.layout)
    try:
        programs = ProgramSet(
            **graphs,
            residuals=tuple(_residual(item, graphs["forward"]) for item in data["residuals"]),
            parameters=_layout(data["parameters"]),
            statistics=_layout(data["statistics"]),
            shipped=arrays[SHIPPED],
            source=Statistics(arrays[SOURCE_MEAN], arrays[SOURCE_VARIANCE]),
            input_shape=input_shape,
            classes=classes,
        )
        check_programs(programs)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{where} is malformed: {one_line(error)}; {_AGAIN}") from error
    return programs


def describe_layout(programs: ProgramSet) -> dict[str, Any]:
    """What the programs have in common, their weights apart: JSON-compatible."""
    return {
        "residuals": describe(programs.residuals),
        "parameters": [[name, list(shape)] for name, shape in programs.parameters.shapes.items()],
        "statistics": [[name, list(shape)] for name, shape in programs.statistics.shapes.items()],
    }


def check_programs(programs: ProgramSet) -> None:
    """Engines feed inputs by name and take outputs by position: both are those of the contract, or `ValueError`."""
    parameters, layers = programs.parameters, programs.statistics
    image, logits = (BATCH, *programs.input_shape), (BATCH, programs.classes)
    shapes: dict[str, tuple[int, ...]] = {"x": image, **parameters.shapes}
    given = {f"{kind}.{n}": s for kind in ("mean", "variance") for n, s in layers.shapes.items()}
    maps = ("before.mean", "before.variance", "gain", "offset", "factor", "power", "floor")
    mixed = {"share": (1,), **{f"{kind}.{n}": s for kind in maps for n, s in layers.shapes.items()}}
    cotangents = {"grad_logits": logits, "regulariser": (1,)}
    residuals = {residual.value.name: residual.value.shape for residual in programs.residuals}
    if any(len(shape) != 1 for shape in layers.shapes.values()):
        raise ValueError("a layer's statistics are not one number per channel")
    _inputs(programs.predict, {**shapes, **given})
    _inputs(programs.measure, {**shapes, **mixed})
    _inputs(programs.forward, {**shapes, **given})
    _inputs(programs.backward, {**parameters.shapes, **residuals, **cotangents})
    _inputs(programs.recompute, {**shapes, **given, **cotangents})
    moments = [*layers.shapes.values()] * 2
    made = [shape for name, shape in residuals.items() if name not in programs.forward.inputs]
    parts = len(programs.forward.outputs) - 1 - len(moments) - len(made)
    _outputs("predict", programs.predict, [logits])
    _outputs("measure", programs.measure, [logits, *moments])
    _outputs("forward", programs.forward, [logits, *[(BATCH,)] * max(parts, 0), *moments, *made])
    for name in ("backward", "recompute"):
        _outputs(name, getattr(programs, name), list(parameters.shapes.values()))
    for residual in programs.residuals:
        if programs.forward.values[residual.value.name] != residual.value:
            raise ValueError(f"residual {residual.value.name!r} differs between the programs")
    for what, array, size in (
        ("shipped parameters", programs.shipped, parameters.size),
        ("mean", programs.source.mean, layers.size),
        ("variance", programs.source.variance, layers.size),
    ):
        if array.shape != (size,) or array.dtype != np.float32 or not bool(np.isfinite(array).all()):
            raise ValueError(f"the {what} are not {size} finite numbers")


def _inputs(graph: Graph, allowed: Mapping[str, tuple[int, ...]]) -> None:
    for name in graph.inputs:
        if name not in allowed or graph.values[name].shape != allowed[name]:
            raise ValueError(f"an input {name!r} of shape {graph.values[name].shape} is not one of the contract")
    if len(set(graph.inputs)) != len(graph.inputs):
        raise ValueError("an input occurs twice")


def _outputs(name: str, graph: Graph, shapes: Sequence[tuple[int, ...]]) -> None:
    found = [graph.values[output].shape for output in graph.outputs]
    if found != list(shapes):
        raise ValueError(f"the outputs of {name} are not those of the contract")


def _layout(pairs: Any) -> Layout:
    shapes = {str(name): tuple(_size(size) for size in shape) for name, shape in pairs}
    if len(shapes) != len(pairs):
        raise ValueError("a name occurs twice")
    layout = Layout(shapes)
    if layout.size > MAX_NUMBERS:
        raise ValueError(f"{layout.size} numbers are more than the {MAX_NUMBERS} allowed")
    return layout


def _size(size: Any) -> int:
    if type(size) is not int or size < 1:
        raise ValueError(f"{size!r} is no size")
    return size


def _load(files: BundleFiles, name: str) -> Any:
    try:
        return parse_json(files.read(name))
    except ValueError as error:
        raise BundleError(f"{name} in bundle {files.path} cannot be used: {error}; {_AGAIN}") from error


def _graph(files: BundleFiles, name: str, arrays: Mapping[str, Array]) -> Graph:
    where, data = f"{name} in bundle {files.path}", _load(files, name)
    try:
        check_sizes(*(len(data[part]) for part in ("nodes", "values", "constants")))
        graph = Graph.from_json(data, arrays)
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


def _arrays(files: BundleFiles, name: str) -> dict[str, Array]:
    try:
        return parse_tensors(files.read(name), ("F32", "I8"))[0]
    except ValueError as error:
        raise BundleError(f"{name} in bundle {files.path} cannot be used: {error}; {_AGAIN}") from error
