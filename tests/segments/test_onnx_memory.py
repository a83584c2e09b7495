"""Models that ONNX Runtime runs with less memory compute the same, to the last bits of a sum."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from edgetta.bench.exactness.segments import models
from edgetta.export.batch_norm import settle
from edgetta.export.differentiate import differentiate
from edgetta.export.onnx_writer import to_onnx
from edgetta.export.trace import trace
from edgetta.segments.contract import SegmentGraphs
from edgetta.segments.onnx_memory import PIECES, freeing_early, variances_in_pieces
from edgetta.segments.onnx_model import OnnxModel, parse_onnx
from edgetta.segments.onnxruntime_engine import OnnxProgram, OnnxRuntimeSegment
from edgetta.segments.torch_engine import TorchSegment


def graphs_of(channels: int, size: int) -> SegmentGraphs:
    """Two normalised convolutions, policy `ema`."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        *(nn.Conv2d(3, channels, 1), nn.BatchNorm2d(channels), nn.ReLU()),
        *(nn.Conv2d(channels, 8, 3, stride=8), nn.BatchNorm2d(8)),
    )
    return differentiate(settle(trace(layers.eval(), (3, size, size)).graph, "ema"))


def forward_of(graphs: SegmentGraphs, opset: int = 17) -> OnnxModel:
    return parse_onnx(to_onnx(graphs.forward, "net", opset=opset).SerializeToString())


def ops(model: OnnxModel) -> Counter[str]:
    return Counter(node.op for node in model.nodes)


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("channels", [12, 13])
def test_variances_in_pieces_are_the_same(channels: int, opset: int) -> None:
    graphs = graphs_of(channels, 64)
    model = forward_of(graphs, opset)
    pieces = variances_in_pieces(model, graphs.forward)
    before, after = ops(model), ops(pieces)
    assert (before["Sub"], after["Sub"]) == (before["Sub"], before["Sub"] - 1 + PIECES), "of the large value alone"
    assert after["Concat"] == 1 and after["Slice"] == 2 * PIECES
    segment = TorchSegment(graphs, "exact")
    x = 3 + torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    y, _ = segment.forward(x, momentum=1.0)
    inputs = {"x": x, **graphs.initial_state, "ema_momentum": torch.ones(1)}
    for written in (model, pieces):
        program = OnnxProgram(written, graphs.forward, 1)
        outputs = dict(zip(program.outputs, program.run(inputs), strict=True))
        assert torch.allclose(outputs[graphs.forward.outputs[0]], y, rtol=1e-4, atol=1e-5)
        for name, output in graphs.state.items():
            assert torch.allclose(outputs[output], segment.state[name], rtol=1e-5, atol=1e-6), name


def test_small_values_and_other_means_are_left_alone() -> None:
    graphs = graphs_of(12, 48)  # 27,648 elements of an image
    model = forward_of(graphs)
    assert variances_in_pieces(model, graphs.forward) == model
    back = parse_onnx(to_onnx(graphs.backward, "back").SerializeToString())  # type: ignore[arg-type]
    assert graphs.backward is not None and variances_in_pieces(back, graphs.backward) == back


def test_what_hangs_beside_the_way_comes_last() -> None:
    model = forward_of(graphs_of(12, 16))
    ordered = freeing_early(model)
    assert ordered.nodes[-1].outputs[0] in {value.name for value in model.outputs[1:]}
    assert [value.name for value in ordered.outputs][1:] == [value.name for value in model.outputs][1:]
    single = model.only([model.outputs[0].name])
    assert freeing_early(single) is single


def test_the_engine_runs_models_in_pieces() -> None:
    graphs = graphs_of(12, 64)
    one, other = TorchSegment(graphs, "exact"), OnnxRuntimeSegment(graphs, models(graphs, "exact"), "exact", threads=1)
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    (y, kept), (y_other, kept_other) = one.forward(x), other.forward(x)
    assert torch.allclose(y, y_other, rtol=1e-4, atol=1e-5)
    gradient, _ = one.input_gradient(kept, y.cos())
    gradient_other, _ = other.input_gradient(kept_other, y.cos())
    assert float((gradient - gradient_other).norm() / gradient.norm()) < 1e-4
