"""ONNX files: valid at opset 17 and IR 8, weights beside them, and in operators that TensorRT's parser takes."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from edgetta.bench.exactness.reference import randomise, relative_error
from edgetta.errors import UsageError
from edgetta.export.batch_norm import settle
from edgetta.export.cut import CutModel, cut
from edgetta.export.differentiate import differentiate
from edgetta.export.onnx_writer import to_onnx
from edgetta.export.trace import trace
from edgetta.models import load_model
from edgetta.segments.contract import SegmentGraphs
from edgetta.segments.graph import Graph
from edgetta.segments.onnxruntime_engine import OnnxProgram
from edgetta.segments.torch_engine import Program
from tests.export.small_networks import SMALL

VARIANTS = [("wide_resnet", "ema", "affine"), ("vgg", "source", "meta"), ("mobile", "batch", "bias")]
VARIANTS += [("gates", "ema", "meta"), ("transformer", "source", "bias"), ("convnext", "source", "meta")]
VARIANTS += [("odds", "source", "bias")]
# One output for MaxPool and LayerNormalization, no bit operators, nothing that ONNX has only since a later opset.
REFUSED_BY_TENSORRT = {"BitwiseAnd", "BitwiseOr", "BitShift", "LayerNormalization", "Gelu", "Loop", "If", "Scan"}


@functools.cache
def pieces(name: str, policy: Any, adapt: str) -> list[SegmentGraphs]:
    """Stem, parts and classifier."""
    torch.manual_seed(0)
    model = cut(trace(randomise(SMALL[name].build()).eval(), SMALL[name].input_shape), SMALL[name].cuts)
    stem = differentiate(settle(model.stem, policy), needs_gradient=False)
    parts = [differentiate(settle(part, policy, adapt)) for part in model.parts]
    return [stem, *parts, differentiate(settle(model.classifier, policy))]


def every_graph(name: str, policy: Any, adapt: str) -> Iterator[tuple[str, Graph]]:
    for k, graphs in enumerate(pieces(name, policy, adapt)):
        for direction in ("forward", "backward", "recompute"):
            graph = getattr(graphs, direction)
            if graph is not None:
                yield f"{name}_{k}_{direction}", graph


@pytest.mark.parametrize(("name", "policy", "adapt"), VARIANTS)
def test_valid_at_opset_17_and_ir_8(name: str, policy: str, adapt: str) -> None:
    for title, graph in every_graph(name, policy, adapt):
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
    for title, graph in every_graph("gates", "ema", "meta"):
        model = to_onnx(graph, title, opset=opset)
        onnx.checker.check_model(model, full_check=True)
        generator = torch.Generator().manual_seed(0)
        inputs = {
            name: torch.rand(graph.values[name].with_batch(3), generator=generator)
            if graph.values[name].dtype == "float"
            else torch.rand(graph.values[name].with_batch(3), generator=generator) < 0.5
            for name in graph.inputs
        }
        found = OnnxProgram(model.SerializeToString(), graph, threads=1).run(inputs)
        for value, expected in zip(found, Program(graph).run(inputs), strict=True):
            assert relative_error(value.double(), expected.double()) <= 1e-5


@pytest.mark.parametrize("opset", [16, 9999])
def test_other_opsets_are_refused(opset: int) -> None:
    with pytest.raises(UsageError, match=f"opset {opset} cannot be written; choose one from 17 to"):
        to_onnx(pieces("wide_resnet", "source", "meta")[1].forward, "forward", opset=opset)


def test_weights_lie_in_the_safetensors_file(tmp_path: Path) -> None:
    graphs = pieces("wide_resnet", "ema", "bias")[2]
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
        inside = OnnxProgram(to_onnx(graph, name).SerializeToString(), graph, threads=1).run(inputs)
        beside = OnnxProgram(str(path), graph, threads=1).run(inputs)
        assert all(torch.equal(a, b) for a, b in zip(inside, beside, strict=True))
    assert path.stat().st_size < weights.stat().st_size


def test_a_weight_file_of_something_else_is_refused(tmp_path: Path) -> None:
    graph = pieces("wide_resnet", "source", "meta")[1].forward
    save_file({name: torch.zeros(3) for name in graph.constants}, tmp_path / "weights.safetensors")
    with pytest.raises(UsageError, match="is not the graph's own tensor"):
        to_onnx(graph, "forward", tmp_path / "weights.safetensors")


def test_onnx_runtime_makes_masks_early(tmp_path: Path) -> None:
    """The file lists masks behind everything else, which makes ONNX Runtime run each right behind its ReLU.

    Otherwise all activations would be alive at the end of the forward.
    """
    graph = pieces("wide_resnet", "source", "meta")[2].forward
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(to_onnx(graph, "forward").SerializeToString(), options)
    session.run(None, {"x": np.zeros(graph.values["x"].with_batch(2), np.float32)})
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [e["args"]["op_name"] for e in events if e.get("cat") == "Node" and e["name"].endswith("kernel_time")]
    waiting = [ran[:i].count("Relu") - ran[:i].count("Greater") for i in range(len(ran))]
    assert ran.count("Greater") >= 2
    assert max(waiting) <= 1


def parse(graphs: Iterable[tuple[str, Graph]]) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx: its parser works without a GPU")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    for title, graph in graphs:
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, logger)
        parsed = parser.parse(to_onnx(graph, title).SerializeToString())
        assert parsed, f"{title}: {[parser.get_error(i).desc() for i in range(parser.num_errors)]}"
        assert network.num_outputs == len(graph.outputs)


@pytest.mark.parametrize(("name", "policy", "adapt"), VARIANTS)
def test_tensorrt_parses_every_graph(name: str, policy: str, adapt: str) -> None:
    parse(every_graph(name, policy, adapt))


@pytest.mark.full
@pytest.mark.parametrize("policy", ["source", "ema"])
@pytest.mark.parametrize("name", ["wrn40_2", "timm:resnet50", "timm:mobilenetv2_100", "timm:efficientnet_b0"])
def test_tensorrt_parses_large_networks(name: str, policy: Any) -> None:
    model = load_model(name, input_shape=None if name == "wrn40_2" else (3, 64, 64))
    parse(graphs_of(cut(trace(model.module, model.input_shape)), policy))


@pytest.mark.full
@pytest.mark.parametrize("name", ["timm:convnext_tiny", "timm:vit_small_patch16_224"])
def test_tensorrt_parses_networks_with_layer_norm(name: str) -> None:
    shape = (3, 224, 224)
    parse(graphs_of(cut(trace(load_model(name, input_shape=shape).module, shape)), "source"))


def graphs_of(model: CutModel, policy: Any) -> Iterator[tuple[str, Graph]]:
    for k, piece in enumerate((*model.parts, model.classifier)):
        graphs = differentiate(settle(piece, policy, adapt="bias"))
        yield f"{k}_forward", graphs.forward
        for direction, graph in (("backward", graphs.backward), ("recompute", graphs.recompute)):
            assert graph is not None
            onnx.checker.check_model(to_onnx(graph, direction), full_check=True)
            yield f"{k}_{direction}", graph
