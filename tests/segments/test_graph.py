"""Graphs: what they hold comes back from JSON, and nothing malformed does."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from edgetta.errors import BundleError
from edgetta.segments.graph import BATCH, Graph, GraphBuilder, Value, load_graph, reshaping
from edgetta.segments.torch_engine import Program


def small() -> Graph:
    """conv -> relu -> plus its own mean, and a mask."""
    builder = GraphBuilder()
    x = builder.input("x", (BATCH, 3, 8, 8))
    weight = builder.constant("conv.weight", torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)))
    y = builder.emit("Conv", x, weight, strides=[1, 1], pads=[1, 1, 1, 1], dilations=[1, 1], group=1)
    y = builder.emit("Relu", y)
    mask = builder.emit("Greater", y, builder.scalar(0.0))
    total = builder.emit("Add", y, builder.emit("ReduceMean", y, axes=[2, 3], keepdims=1))
    return builder.graph([total, mask])


def test_shapes_and_types_are_inferred() -> None:
    graph = small()
    shapes = {node.op: (graph.values[node.output].shape, graph.values[node.output].dtype) for node in graph.nodes}
    assert shapes == {
        "Conv": ((BATCH, 4, 8, 8), "float"),
        "Relu": ((BATCH, 4, 8, 8), "float"),
        "Greater": ((BATCH, 4, 8, 8), "bool"),
        "ReduceMean": ((BATCH, 4, 1, 1), "float"),
        "Add": ((BATCH, 4, 8, 8), "float"),
    }
    value = graph.values[graph.outputs[1]]
    assert (value.with_batch(5), value.elements(5), value.per_sample) == ((5, 4, 8, 8), 5 * 256, True)


def test_round_trip_through_json() -> None:
    graph = small()
    again = load_graph(json.dumps(graph.to_json()), graph.constants)
    assert again == graph
    x = torch.rand(2, 3, 8, 8)
    for a, b in zip(Program(again).run({"x": x}), Program(graph).run({"x": x}), strict=True):
        assert torch.equal(a, b)


def test_pruning_leaves_what_the_outputs_need() -> None:
    graph = small()
    pruned = Graph(graph.inputs, graph.outputs[1:], graph.nodes, graph.values, graph.constants).pruned()
    assert [node.op for node in pruned.nodes] == ["Conv", "Relu", "Greater"]
    assert set(pruned.values) == {"x", *(node.output for node in pruned.nodes)}
    assert set(pruned.constants) == set(graph.constants)


def test_a_builder_stores_equal_weights_once_and_keeps_names_apart() -> None:
    builder = GraphBuilder()
    builder.input("x", (BATCH, 2))
    one = builder.constant("w", torch.ones(2))
    assert builder.constant("w", torch.ones(2)) == one
    assert builder.constant("w", torch.zeros(2)) not in ("w", "x")
    assert builder.constant("x", torch.zeros(2)) != "x"
    assert builder.constant("v1", torch.zeros(2)) == "v1"
    assert builder.emit("Add", "x", "w") not in ("v1", "x", "w")


def test_every_output_is_a_value_of_its_own() -> None:
    builder = GraphBuilder()
    x = builder.input("x", (BATCH, 2))
    weight, y = builder.constant("w", torch.ones(1, 2)), builder.emit("Neg", x)
    graph = builder.graph([y, x, y, weight])
    assert len(set(graph.outputs)) == 4 and not {x, weight} & set(graph.outputs)
    images = torch.rand(3, 2)
    found = Program(graph).run({"x": images})
    for tensor, wanted in zip(found, (-images, images, -images, torch.ones(1, 2)), strict=True):
        assert torch.equal(tensor, wanted)
    assert len({tensor.data_ptr() for tensor in (images, *found)}) == 5
    assert builder.graph([y, x], lent=("x",)).outputs == (y, x)


def test_the_batch_may_be_merged_with_what_lies_behind_it() -> None:
    builder = GraphBuilder()
    merged = builder.emit("Reshape", builder.input("x", (BATCH, 3, 4)), shape=[-1, 4])
    value = builder.values[merged]
    assert value.shape == (3 * BATCH, 4) and value.with_batch(5) == (15, 4)
    assert value.per_sample and value.elements(5) == 60
    back = builder.emit("Reshape", merged, shape=reshaping(value.shape, (BATCH, 3, 4)))
    graph = builder.graph([back])
    assert load_graph(json.dumps(graph.to_json()), {}) == graph
    x = torch.rand(5, 3, 4)
    assert torch.equal(Program(graph).run({"x": x})[0], x)


def test_merging_the_batch_with_what_lies_before_it_is_an_error() -> None:
    builder = GraphBuilder()
    x = builder.input("x", (3, BATCH, 4))
    with pytest.raises(ValueError, match="merges the batch"):
        builder.emit("Reshape", x, shape=[-1, 4])


def change(path: list[Any], value: Any) -> Callable[[dict[str, Any]], Any]:
    def apply(data: dict[str, Any]) -> Any:
        place: Any = data
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        return data

    return apply


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda data: {k: v for k, v in data.items() if k != key}


MALFORMED: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{f"no {key}": without(key) for key in ("inputs", "outputs", "constants", "values", "nodes")},
    "no dictionary": lambda data: [data],
    "nothing": lambda data: None,
    "a number of inputs": change(["inputs"], 3),
    "no such operator": change(["nodes", 1, 0], "System"),
    "no such input": change(["nodes", 1, 1], ["nowhere"]),
    "an input from later": change(["nodes", 0, 1], ["v4", "conv.weight"]),
    "a missing argument": change(["nodes", 0, 1], ["x"]),
    "an empty argument": change(["nodes", 1, 1], [""]),
    "the same output twice": change(["nodes", 1, 2], "v1"),
    "an output that is an input": change(["nodes", 1, 2], "x"),
    "a node cut short": change(["nodes", 0], ["Conv"]),
    "an attribute that does not exist": change(["nodes", 1, 3], {"speed": 3}),
    "an attribute of another kind": change(["nodes", 0, 3, "strides"], "two"),
    "an attribute that is no integer": change(["nodes", 0, 3, "strides"], [1.5, 1.5]),
    "an attribute in lists": change(["nodes", 0, 3, "strides"], [[1], [1]]),
    "an attribute that does not fit": change(["nodes", 0, 3, "group"], 2),
    "a missing attribute": change(["nodes", 0, 3], {}),
    "a stride of zero": change(["nodes", 0, 3, "strides"], [0, 0]),
    "a wrong shape": change(["values", 1, 1], [-1, 4, 9, 9]),
    "a wrong type": change(["values", 1, 2], "bool"),
    "a type that does not exist": change(["values", 1, 2], "int8"),
    "a negative size": change(["values", 0, 1], [-1, 3, -8, 8]),
    "a size that is no number": change(["values", 0, 1], [-1, 3, "wide", 8]),
    "an undefined output": change(["outputs"], ["nowhere"]),
    "an empty output": change(["outputs"], [""]),
    "an undefined input": change(["inputs"], ["x", "z"]),
    "a weight that is not there": change(["constants"], ["conv.weight", "another"]),
    "a weight of another shape": change(["constants"], ["scalar.0.0"]),
    "an input called as a weight": change(["inputs"], ["x", "conv.weight"]),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_graphs_are_refused(name: str) -> None:
    graph = small()
    data = json.loads(json.dumps(graph.to_json()))
    with pytest.raises(BundleError, match="bundle"):
        Graph.from_json(MALFORMED[name](copy.deepcopy(data)), graph.constants)
    assert Graph.from_json(data, graph.constants) == graph


def test_weights_of_another_shape_are_refused() -> None:
    graph = small()
    weights = dict(graph.constants) | {"conv.weight": torch.zeros(4, 5, 3, 3)}
    with pytest.raises(BundleError, match="Conv cannot make"):
        Graph.from_json(graph.to_json(), weights)


@pytest.mark.parametrize("text", ["", "{", "nodes", '{"nodes": [1, 2'])
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match="is not JSON"):
        load_graph(text, {})


def test_a_value_is_what_it_says() -> None:
    assert Value("a", (BATCH, 2)).dtype == "float"
    assert not Value("a", (3, 2)).per_sample
