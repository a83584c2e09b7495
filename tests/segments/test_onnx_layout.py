"""A segment whose input enters ONNX Runtime's blocked layout once computes the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgetta.export.batch_norm import settle
from edgetta.export.differentiate import differentiate
from edgetta.export.onnx_writer import to_onnx
from edgetta.export.trace import trace
from edgetta.segments.contract import SegmentGraphs
from edgetta.segments.onnx_layout import in_blocks
from edgetta.segments.onnx_model import OnnxModel, parse_onnx
from edgetta.segments.onnxruntime_engine import OnnxProgram
from edgetta.segments.torch_engine import TorchSegment


class Block(nn.Module):
    """A pre-activation block; without its `norm` one that adds its input to a convolution of it."""

    def __init__(self, channels: int, norm: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.conv(torch.relu(self.norm(x))))


def graphs_of(channels: int = 16, norm: bool = True, policy: str = "source") -> SegmentGraphs:
    torch.manual_seed(0)
    block = Block(channels, norm)
    if norm:
        nn.init.uniform_(block.norm.weight, 0.5, 2.0)  # type: ignore[arg-type]
        block.norm.running_mean.normal_()  # type: ignore[operator, union-attr]
    return differentiate(settle(trace(block.eval(), (channels, 8, 8)).graph, policy))  # type: ignore[arg-type]


def forward_of(graphs: SegmentGraphs) -> OnnxModel:
    return parse_onnx(to_onnx(graphs.forward, "block").SerializeToString())


def entering(before: OnnxModel, after: OnnxModel) -> tuple[int, int]:
    """Convolutions that came in, and readers that the input lost to them (all but one)."""
    convs, readers = (
        [sum(node.op == "Conv" for node in model.nodes) for model in (after, before)],
        [sum("x" in node.inputs for node in model.nodes) for model in (after, before)],
    )
    return convs[0] - convs[1], readers[1] - readers[0]


@pytest.mark.parametrize(("norm", "policy"), [(True, "source"), (False, "source"), (True, "ema")])
def test_the_input_enters_once_and_nothing_changes(norm: bool, policy: str) -> None:
    graphs = graphs_of(norm=norm, policy=policy)
    before = forward_of(graphs)
    after = in_blocks(before, "x86_64")
    expected = {(True, "source"): (1, 1), (False, "source"): (1, 0), (True, "ema"): (1, 0)}
    assert entering(before, after) == expected[norm, policy]
    x = torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    y, _ = TorchSegment(graphs, "exact").forward(x, momentum=0.5)
    inputs = {"x": x, **graphs.initial_state}
    if graphs.state:
        inputs["ema_momentum"] = torch.full((1,), 0.5)
    for model in (before, after):
        program = OnnxProgram(model, graphs.forward, 1)
        outputs = dict(zip(program.outputs, program.run(inputs), strict=True))
        assert torch.allclose(outputs[graphs.forward.outputs[0]], y, rtol=1e-5, atol=1e-5)


def test_other_machines_channels_and_graphs_are_left_alone() -> None:
    model = forward_of(graphs_of())
    assert in_blocks(model, "aarch64") is model
    odd = forward_of(graphs_of(channels=12))
    assert in_blocks(odd, "x86_64") is odd
    backward = graphs_of().backward
    assert backward is not None
    back = parse_onnx(to_onnx(backward, "back").SerializeToString())
    assert in_blocks(back, "x86_64") is back
