"""float16 written into the graph: typed as TensorRT 10 and 11 want it, and close to float32."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import Tensor

from edgetta.engines.tensorrt.half import single_nodes, to_half
from edgetta.export.onnx_writer import to_onnx
from edgetta.segments.contract import SegmentGraphs
from edgetta.segments.graph import BATCH, Graph, GraphBuilder
from edgetta.segments.onnx_model import OnnxModel, parse_onnx
from edgetta.segments.torch_engine import Program
from tests.engines.tensorrt.test_engine import part

CASES = [("wide_resnet", "source"), ("wide_resnet", "ema"), ("vgg", "batch"), ("mobile", "ema"), ("gates", "source")]
CASES += [("transformer", "source"), ("convnext", "source")]
HALF = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def read(graph: Graph) -> OnnxModel:
    return parse_onnx(to_onnx(graph, "graph").SerializeToString())


def directions(graphs: SegmentGraphs) -> list[Graph]:
    return [graph for graph in (graphs.forward, graphs.backward, graphs.recompute) if graph is not None]


def inputs(graph: Graph, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name in graph.inputs:
        value = graph.values[name]
        tensor = torch.rand(value.with_batch(4), generator=generator)
        if name == "ema_momentum":
            tensor = torch.full((1,), 0.2)
        made[name] = tensor < 0.5 if value.dtype == "bool" else scale * (tensor + 0.1)
    return made


def run(model: OnnxModel, given: dict[str, Tensor]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model.to_bytes(), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_outputs()]
    feeds = {entry.name: given[entry.name].numpy() for entry in session.get_inputs()}
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_close_to_float32_and_typed_throughout(name: str, policy: str) -> None:
    for graph in directions(part(name, policy)):
        model = to_half(read(graph).only([o for o in graph.outputs if o not in graph.inputs]))
        onnx.checker.check_model(model.to_bytes(), full_check=True)  # infers every type, and they must agree
        typed = onnx.shape_inference.infer_shapes(onnx.load_from_string(model.to_bytes()), strict_mode=True)
        kinds = {v.name: v.type.tensor_type.elem_type for v in (*typed.graph.value_info, *typed.graph.output)}
        for value in (*typed.graph.input, *typed.graph.output):
            assert value.type.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.BOOL)
        for node in typed.graph.node:
            if node.op_type in HALF:
                assert kinds[node.output[0]] == TensorProto.FLOAT16, node.name
            elif node.op_type in ("ReduceMean", "ReduceSum", "Sqrt", "Reciprocal", "Div", "Erf", "Softmax", "Exp"):
                assert kinds[node.output[0]] == TensorProto.FLOAT, node.name
        given = inputs(graph)
        expected = dict(zip(graph.outputs, Program(graph).run(given), strict=True))
        for output, found in run(model, given).items():
            other = expected[output].numpy()
            if other.dtype == np.bool_:
                assert (found != other).mean() < 5e-3
            else:
                assert np.linalg.norm(found - other) <= 1e-2 * np.linalg.norm(other) + 1e-5


def test_folded_networks_stay_in_float16_from_end_to_end() -> None:
    """One cast in, one out, and no other between float types: nothing is read or written wider than needed."""
    graphs = part("vgg", "source", "meta")
    assert graphs.backward is not None
    for graph in (graphs.forward, graphs.backward):
        model = read(graph)
        masks = sum(node.op == "Cast" for node in model.nodes)
        casts = Counter(node.integer("to") for node in to_half(model).nodes if node.op == "Cast")
        assert casts == {TensorProto.FLOAT: 1, TensorProto.FLOAT16: 1 + masks}


def test_statistics_stay_in_float32() -> None:
    """In float16 the squares of activations would overflow, and small variances vanish."""
    graph = part("wide_resnet", "batch").forward
    given = inputs(graph, scale=3000.0)
    state = {name: t / 3000 for name, t in given.items() if name != "x"} | {"x": given["x"]}
    model = to_half(read(graph))
    expected = dict(zip(graph.outputs, Program(graph).run(state), strict=True))
    for output, found in run(model, state).items():
        other = expected[output].numpy()
        if other.dtype != np.bool_:
            assert np.linalg.norm(found - other) <= 1e-2 * np.linalg.norm(other)


def test_single_nodes_are_those_that_are_left() -> None:
    model = read(part("wide_resnet", "ema").forward)
    named = single_nodes(model)
    ops = {node.name: node.op for node in model.nodes}
    assert {"ReduceMean", "Sqrt"} <= {ops[name] for name in named}
    assert not HALF & {ops[name] for name in named}
    folded = read(part("vgg", "source", "meta").forward)
    assert {node.op for node in folded.nodes if node.name in single_nodes(folded)} == {"ReduceMean"}


def test_numbers_beyond_float16_are_brought_to_its_edge() -> None:
    """Stand-ins for infinity must not become infinite: 0 times infinity is not a number."""
    builder = GraphBuilder()
    x = builder.input("x", (BATCH, 2, 4, 4))
    padded = builder.emit("Pad", x, pads=[0, 0, 1, 1, 0, 0, 1, 1], value=-3.0e38)
    weight = builder.constant("w", torch.ones(2, 2, 1, 1))
    inner = builder.emit("Slice", padded, axes=[2, 3], starts=[1, 1], ends=[5, 5], steps=[1, 1])
    y = builder.emit("Conv", inner, weight, strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1], group=1)
    graph = builder.graph([padded, y])
    found = run(to_half(read(graph)), {"x": torch.ones(1, 2, 4, 4)})
    assert np.isfinite(found[padded]).all() and found[padded].min() == -65504
    assert (found[y] == 2).all()


def test_an_output_that_is_used_inside_keeps_its_name_outside() -> None:
    builder = GraphBuilder()
    x = builder.input("x", (BATCH, 2, 4, 4))
    weight = builder.constant("w", torch.full((2, 2, 1, 1), 0.5))
    first = builder.emit("Conv", x, weight, strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1], group=1)
    mean = builder.emit("ReduceMean", first, axes=[2, 3], keepdims=0)  # wants it in float32
    second = builder.emit("Relu", first)  # takes it in float16
    mask = builder.emit("Greater", second, builder.scalar(0.0))
    graph = builder.graph([first, mean, second, mask])
    model = to_half(read(graph))
    assert [value.name for value in model.outputs] == [first, mean, second, mask]
    found = run(model, {"x": torch.full((1, 2, 4, 4), 3.0)})
    assert (found[first] == 3).all() and (found[mean] == 3).all() and (found[second] == 3).all() and found[mask].all()
    assert found[first].dtype == found[second].dtype == np.float32


def test_names_that_are_taken_are_avoided() -> None:
    builder = GraphBuilder()
    x = builder.input("x", (BATCH, 2))
    builder.values["x.half"] = builder.values.pop("x")
    builder.inputs[0] = "x.half"
    builder.values["x.half"] = type(builder.values["x.half"])("x.half", (BATCH, 2))
    weight = builder.constant("x.half.half", torch.eye(2))
    y = builder.emit("MatMul", "x.half", weight)
    assert x == "x"
    found = run(to_half(read(builder.graph([y]))), {"x.half": torch.tensor([[1.0, 2.0]])})
    assert found[y].tolist() == [[1.0, 2.0]]
