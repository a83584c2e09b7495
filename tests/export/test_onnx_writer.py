"""ONNX files: valid at opset 17 and IR 8, weights beside them, and in operators that TensorRT's parser takes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import save_file

from edgetta.errors import UsageError
from edgetta.export.batch_norm import settle
from edgetta.export.cut import cut
from edgetta.export.differentiate import differentiate
from edgetta.export.onnx_writer import to_onnx
from edgetta.export.trace import trace
from edgetta.segments.contract import SegmentGraphs
from edgetta.segments.graph import Graph
from edgetta.segments.onnxruntime_engine import OnnxProgram
from edgetta.segments.torch_engine import Program
from tests.export.autograd_reference import randomise, relative_error
from tests.export.small_networks import SMALL

VARIANTS = [("wide_resnet", "ema", True), ("vgg", "source", False), ("mobile", "batch", True)]
VARIANTS += [("gates", "ema", False), ("transformer", "source", True), ("convnext", "source", False)]
VARIANTS += [("odds", "source", True)]
# One output for MaxPool and LayerNormalization, no bit operators, nothing that ONNX has only since a later opset.
REFUSED_BY_TENSORRT = {"BitwiseAnd", "BitwiseOr", "BitShift", "LayerNormalization", "Gelu", "Loop", "If", "Scan"}


@functools.cache
def pieces(name: str, policy: Any, adapt_bias: bool) -> list[SegmentGraphs]:
    """Stem, parts and classifier."""
    torch.manual_seed(0)
    model = cut(trace(randomise(SMALL[name].build()).eval(), SMALL[name].input_shape), SMALL[name].cuts)
    stem = differentiate(settle(model.stem, policy), needs_gradient=False)
    parts = [differentiate(settle(part, policy, adapt_bias)) for part in model.parts]
    return [stem, *parts, differentiate(settle(model.classifier, policy))]


def every_graph(name: str, policy: Any, adapt_bias: bool) -> Iterator[tuple[str, Graph]]:
    for k, graphs in enumerate(pieces(name, policy, adapt_bias)):
        for direction in ("forward", "backward", "recompute"):
            graph = getattr(graphs, direction)
            if graph is not None:
                yield f"{name}_{k}_{direction}", graph


@pytest.mark.parametrize(("name", "policy", "adapt_bias"), VARIANTS)
def test_valid_at_opset_17_and_ir_8(name: str, policy: str, adapt_bias: bool) -> None:
    for title, graph in every_graph(name, policy, adapt_bias):
        model = to_onnx(graph, title)
        onnx.checker.check_model(model, full_check=True)
        assert (model.ir_version, [(o.domain, o.version) for o in model.opset_import]) == (8, [("", 17)])
        assert all(len(node.output) == 1 and node.op_type not in REFUSED_BY_TENSORRT for node in model.graph.node)
        assert [value.name for value in model.graph.output] == list(graph.outputs)
        for value in (*model.graph.input, *model.graph.output):
            described = graph.values[value.name]
            sizes = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            assert sizes == ["batch" if size == -1 else size for size in described.shape]
            kind = value.type.tensor_type.elem_type
            assert kind == (onnx.TensorProto.BOOL if described.dtype == "bool" else onnx.TensorProto.FLOAT)


@pytest.mark.parametrize("opset", [17, 18, 20])
def test_later_opsets_compute_the_same(opset: int) -> None:
    for title, graph in every_graph("gates", "ema", False):
        model = to_onnx(graph, title, opset=opset)
        onnx.checker.check_model(model, full_check=True)
        generator = torch.Generator().manual_seed(0)
        inputs = {
            name: torch.rand(graph.values[name].with_batch(3), generator=generator)
            if graph.values[name].dtype == "float"
            else torch.rand(graph.values[name].with_batch(3), generator=generator) < 0.5
            for name in graph.inputs
        }
        found = OnnxProgram(model.SerializeToString(), graph, threads=1).run(inputs, graph.outputs)
        for value, expected in zip(found, Program(graph).run(inputs), strict=True):
            assert relative_error(value.double(), expected.double()) <= 1e-5


@pytest.mark.parametrize("opset", [16, 9999])
def test_other_opsets_are_refused(opset: int) -> None:
    with pytest.raises(UsageError, match=f"opset {opset} cannot be written; choose one from 17 to"):
        to_onnx(pieces("wide_resnet", "source", False)[1].forward, "forward", opset=opset)


def test_weights_lie_in_the_safetensors_file(tmp_path: Path) -> None:
    graphs = pieces("wide_resnet", "ema", True)[2]
    assert graphs.backward is not None
    assert graphs.recompute is not None
    weights = tmp_path / "weights.safetensors"
    constants = {name: t.float().clone() for name, t in graphs.recompute.constants.items()}
    save_file(constants | {name: t.float().clone() for name, t in graphs.forward.constants.items()}, weights)
    for name, graph in (("forward", graphs.forward), ("backward", graphs.backward), ("recompute", graphs.recompute)):
        model = to_onnx(graph, name, weights)
        path = tmp_path / f"{name}.onnx"
        onnx.save(model, path)
        onnx.checker.check_model(path)
        stored = {t.name: t for t in model.graph.initializer}
        assert all(stored[c].data_location == onnx.TensorProto.EXTERNAL for c in graph.constants)
        assert {e.value for t in stored.values() for e in t.external_data if e.key == "location"} == {weights.name}
        inputs = {n: torch.rand(graph.values[n].with_batch(2)) for n in graph.inputs}
        inputs = {n: t < 0.5 if graph.values[n].dtype == "bool" else t for n, t in inputs.items()}
        inside = OnnxProgram(to_onnx(graph, name).SerializeToString(), graph, threads=1).run(inputs, graph.outputs)
        beside = OnnxProgram(str(path), graph, threads=1).run(inputs, graph.outputs)
        assert all(torch.equal(a, b) for a, b in zip(inside, beside, strict=True))
    assert path.stat().st_size < weights.stat().st_size


def test_a_weight_file_of_something_else_is_refused(tmp_path: Path) -> None:
    graph = pieces("wide_resnet", "source", False)[1].forward
    save_file({name: torch.zeros(3) for name in graph.constants}, tmp_path / "weights.safetensors")
    with pytest.raises(UsageError, match="is not the graph's float32 tensor"):
        to_onnx(graph, "forward", tmp_path / "weights.safetensors")


@pytest.mark.parametrize(("name", "policy", "adapt_bias"), VARIANTS)
def test_tensorrt_parses_every_graph(name: str, policy: str, adapt_bias: bool) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx: its parser works without a GPU")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    for title, graph in every_graph(name, policy, adapt_bias):
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, logger)
        parsed = parser.parse(to_onnx(graph, title).SerializeToString())
        assert parsed, f"{title}: {[parser.get_error(i).desc() for i in range(parser.num_errors)]}"
        assert network.num_outputs == len(graph.outputs)
