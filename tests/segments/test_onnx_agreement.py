"""What runs is what was checked: an ONNX model that differs from its graph in anything is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from edgetta.segments.graph import Graph
from edgetta.segments.onnx_agreement import check_agreement, read_agreeing
from edgetta.segments.onnx_memory import freeing_early
from edgetta.segments.onnx_model import OnnxModel, OnnxNode, attribute
from edgetta.segments.onnx_spelling import spelled
from tests.engines.tensorrt.test_engine import part


def forward() -> Graph:
    return part("wide_resnet", "ema").forward


@pytest.mark.parametrize("opset", [17, 18, 20])
@pytest.mark.parametrize("name", ["wide_resnet", "gates", "transformer"])
def test_every_graph_agrees_with_its_spelling(name: str, opset: int) -> None:
    graphs = part(name, "ema" if name == "wide_resnet" else "source")
    for graph in (graphs.forward, graphs.backward, graphs.recompute):
        assert graph is not None
        model = read_agreeing(spelled(graph, opset).to_bytes(), graph)
        assert model.opset == opset
        for constant in graph.constants:
            assert model.weights[constant].dtype in (np.float32, np.int8)


def weights(model: OnnxModel, name: str, array: np.ndarray) -> OnnxModel:
    return replace(model, weights={**model.weights, name: array})


def node(model: OnnxModel, at: int, **changes: object) -> OnnxModel:
    changed = replace(model.nodes[at], **changes)  # type: ignore[arg-type]
    return replace(model, nodes=(*model.nodes[:at], changed, *model.nodes[at + 1 :]))


def conv(model: OnnxModel) -> int:
    return next(i for i, n in enumerate(model.nodes) if n.op == "Conv")


BOMB = OnnxNode("ConstantOfShape", "bomb", ("size",), ("gibibyte",))
FORGERIES: dict[str, tuple[Callable[[OnnxModel], OnnxModel], str]] = {
    "one more": (lambda m: replace(m, nodes=(*m.nodes, BOMB)), "is one that its graph does not have"),
    "one more in front": (lambda m: replace(m, nodes=(BOMB, *m.nodes)), "node 0 is 'ConstantOfShape'"),
    "one less": (lambda m: replace(m, nodes=m.nodes[:-1]), "is missing"),
    "another operator": (lambda m: node(m, conv(m), op="Loop"), "is 'Loop' where its graph has 'Conv'"),
    "other inputs": (lambda m: node(m, conv(m), inputs=m.nodes[conv(m)].inputs[:1]), "other inputs"),
    "another attribute": (
        lambda m: node(m, conv(m), attributes={**m.nodes[conv(m)].attributes, "group": attribute("group", 3)}),
        "other attributes",
    ),
    "one more attribute": (
        lambda m: node(m, conv(m), attributes={**m.nodes[conv(m)].attributes, "a": attribute("a", 3)}),
        "other attributes",
    ),
    "another order": (lambda m: replace(m, nodes=m.nodes[::-1]), "node 0"),
    "one more weight": (lambda m: weights(m, "more", np.zeros(3, np.float32)), "'more' is not in its graph"),
    "one less weight": (lambda m: replace(m, weights=dict(list(m.weights.items())[1:])), "is missing"),
    "another small weight": (
        lambda m: weights(m, next(n for n in m.weights if n.startswith("int.")), np.array([7], np.int64)),
        "is not that of its graph",
    ),
    "no inputs": (lambda m: replace(m, inputs=()), "its inputs"),
    "another output": (lambda m: replace(m, outputs=m.outputs[:1]), "its outputs"),
    "an older opset": (lambda m: replace(m, opset=9), "of opset 9"),
    "a later opset": (lambda m: replace(m, opset=99), "of opset 99"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries(name: str) -> None:
    forge, words = FORGERIES[name]
    graph = forward()
    with pytest.raises(ValueError, match=words):
        check_agreement(graph, forge(spelled(graph)))


def test_a_weight_that_the_file_holds_itself_is_the_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = forward()
    model = spelled(graph)
    name = next(n for n in graph.constants if "conv" in n)
    read = read_agreeing(weights(model, name, model.weights[name] + 1).to_bytes(), graph)
    assert np.array_equal(read.weights[name], model.weights[name])


def test_a_file_that_was_rewritten_for_an_engine() -> None:
    graph = forward()
    data = freeing_early(spelled(graph)).to_bytes()
    with pytest.raises(ValueError, match=r"its (outputs|node)"):
        read_agreeing(data, graph)
    read_agreeing(data, graph, rewritten=freeing_early)


def test_a_file_that_is_larger_than_its_graph_is_not_read() -> None:
    graph = forward()
    data = spelled(graph).to_bytes()
    with pytest.raises(ValueError, match="needs no more than"):
        read_agreeing(data + b"\x30\x00" * len(data), graph)
