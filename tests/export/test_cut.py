"""Cutting: the pieces are the whole, automatic cuts fall behind blocks, an impossible cut names a legal one."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from torch import Tensor, nn

from edgetta.bench.exactness.reference import randomise
from edgetta.errors import UsageError
from edgetta.export.cut import automatic_cuts, cut, legal_cuts, stride_of
from edgetta.export.trace import Trace, trace
from edgetta.models import load_model
from edgetta.segments.graph import Graph
from edgetta.segments.torch_engine import Program
from tests.export.small_networks import SMALL, Network, SqueezeExcite, conv_bn


@functools.cache
def traced(name: str) -> Trace:
    torch.manual_seed(0)
    return trace(randomise(SMALL[name].build()).eval(), SMALL[name].input_shape)


def run(graph: Graph, x: Tensor) -> Tensor:
    return Program(graph, dtype=torch.float64).run({"x": x})[0]


@pytest.mark.parametrize("name", ["resnet20", "transformer"])
def test_the_pieces_are_the_whole(name: str) -> None:
    whole = traced(name)
    pieces = cut(whole, SMALL[name].cuts)
    assert pieces.names == SMALL[name].cuts
    x = torch.rand(2, *SMALL[name].input_shape, dtype=torch.float64)
    expected = run(whole.graph, x)
    for graph in (pieces.stem, *pieces.parts, pieces.classifier):
        assert graph.inputs == ("x",)
        x = run(graph, x)
    assert torch.equal(x, expected)
    weights = [set(graph.constants) for graph in (pieces.stem, *pieces.parts, pieces.classifier)]
    assert set().union(*weights) == set(whole.graph.constants)  # and no piece carries another one's


@pytest.mark.parametrize(
    ("name", "parts", "expected"),
    [
        ("wide_resnet", 3, ("conv1", "block1", "block2", "block3")),
        ("resnet20", 3, ("relu", "layer1.1", "layer2.0", "layer3")),
        ("resnet20", 4, ("relu", "layer1.0", "layer1", "layer2.1", "layer3")),
        ("resnet20", 9, ("relu", *(f"layer{s}{b}" for s in (1, 2, 3) for b in (".0", ".1", "")))),
        ("transformer", 3, ("stem", "body.a", "body.b.0", "body")),
    ],
)
def test_automatic_cuts_fall_behind_blocks(name: str, parts: int, expected: tuple[str, ...]) -> None:
    assert automatic_cuts(traced(name), parts) == expected
    assert cut(traced(name), parts=parts).names == expected


def test_shallow_layers_are_cut_finer() -> None:
    names = automatic_cuts(traced("resnet20"), 4)
    blocks = automatic_cuts(traced("resnet20"), 9)
    ends = [blocks.index(name) for name in names]
    sizes = [end - start for start, end in itertools.pairwise(ends)]
    assert sizes == sorted(sizes)


def test_a_network_without_blocks_is_cut_behind_activations() -> None:
    names = automatic_cuts(traced("vgg"), 3)
    assert names == ("stem", "body.a.2", "body.a", "body.d.1")


def test_automatic_cuts_leave_a_place_for_every_meta_network() -> None:
    """Unpadded pools: 23 -> 11 -> 5 rows, beside which no convolution of one stride can stand."""

    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(*conv_bn(inputs, outputs), nn.ReLU(), *conv_bn(outputs, outputs), nn.ReLU())

    pools = Network(block(3, 4), 8, a=nn.MaxPool2d(2), b=block(4, 8), c=block(8, 8), d=nn.MaxPool2d(2), e=block(8, 8))
    unpadded = trace(pools.eval(), (3, 23, 23))
    assert automatic_cuts(unpadded, 2) == ("body.a", "body.b", "body.c")
    assert automatic_cuts(unpadded, 1) == ("body.a", "body.c")
    with pytest.raises(UsageError, match="no 3 parts in a row"):
        automatic_cuts(unpadded, 3)
    even = trace(pools.eval(), (3, 16, 16))
    assert automatic_cuts(even, 2)[-1] == "body"


@pytest.mark.parametrize(
    ("source", "target", "stride"),
    [
        ((-1, 4, 17, 9), (-1, 8, 9, 5), 2),
        ((-1, 4, 17, 9), (-1, 8, 8, 4), None),
        ((-1, 4, 8, 8), (-1, 8, 8, 8), 1),
        ((-1, 7, 4), (-1, 7, 8), 1),
        ((-1, 7, 4), (-1, 6, 4), None),
        ((-1, 4, 8, 8), (-1, 64, 4), None),
    ],
)
def test_stride_of_a_meta_network(source: tuple[int, ...], target: tuple[int, ...], stride: int | None) -> None:
    assert stride_of(source, target) == stride


def test_a_gate_inside_a_block_is_no_block() -> None:
    class Plain(SqueezeExcite):
        """Without its shortcut the gate's output would be a legal cut too."""

        def forward(self, x: Tensor) -> Tensor:
            y = self.activation(self.conv(x))
            gates = self.gate(self.expand(nn.functional.silu(self.reduce(y.mean((2, 3), keepdim=True)))))
            return y * gates

    model = Network(conv_bn(3, 8), 8, a=Plain(8, nn.Sigmoid()), b=Plain(8, nn.Sigmoid()), c=conv_bn(8, 8))
    found = trace(model.eval(), (3, 8, 8))
    assert {"body.a.conv", "body.a.activation"} <= set(legal_cuts(found))
    assert automatic_cuts(found, 2) == ("stem", "body.a", "body.b")


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", ("maxpool", "layer1.0", "layer1", "layer2", "layer4")),
        ("resnet50", ("maxpool", "layer1.1", "layer2.0", "layer3.0", "layer4")),
        ("resnext50_32x4d", ("maxpool", "layer1.1", "layer2.0", "layer3.0", "layer4")),
        ("mobilenetv2_100", ("bn1", "blocks.1.0", "blocks.2.0", "blocks.3.2", "blocks")),
        ("mobilenetv3_small_100", ("bn1", "blocks.1.0", "blocks.2.0", "blocks.3.0", "blocks.4")),
        ("efficientnet_b0", ("bn1", "blocks.1.0", "blocks.2.0", "blocks.4.0", "blocks")),
        ("convnext_tiny", ("stem", "stages.0.blocks.1", "stages.1.blocks.0", "stages.2.blocks.2", "stages")),
        ("vit_small_patch16_224", ("pos_drop", "blocks.2", "blocks.5", "blocks.8", "blocks")),
        ("densenet121", ("features.pool0", *(f"features.denseblock{i}" for i in (1, 2, 3, 4)))),
        ("regnety_002", ("stem", "s1", "s3.b1", "s4.b1", "s4")),
    ],
)
def test_automatic_cuts_of_timm(name: str, expected: tuple[str, ...]) -> None:
    """Stem, blocks, classifier: never inside a block, a head convolution stays with the classifier."""
    size = 224 if name.startswith("vit") else 64
    found = trace(load_model(f"timm:{name}", input_shape=(3, size, size)).module, (3, size, size))
    assert automatic_cuts(found, 4) == expected


def test_more_parts_than_blocks() -> None:
    with pytest.raises(UsageError, match="the model has 9 places where a part can end, fewer than the 12 parts"):
        automatic_cuts(traced("resnet20"), 12)


def test_one_value_may_have_several_names() -> None:
    """layer1.2 is the end of layer1: both names are taken, and mean the same."""
    inner = cut(traced("resnet20"), ["relu", "layer1.2", "layer3"])
    outer = cut(traced("resnet20"), ["relu", "layer1", "layer3"])
    assert inner.parts[0].outputs == outer.parts[0].outputs


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["relu"], "at least two cuts"),
        (["relu", "layer1.0.conv1"], "cannot be cut after 'layer1.0.conv1'.*the nearest legal cut is 'layer1.0'"),
        (["conv1", "layer1.0.conv1"], "cannot be cut after 'layer1.0.conv1'.*the nearest legal cut is 'relu'"),
        (["layer1.0.conv1", "layer1"], "cannot be cut after 'layer1.0.conv1'.*the nearest legal cut is 'relu'"),
        (["relu", "layer1.0.conv1", "layer1.0"], "cannot be cut after 'layer1.0.conv1'.*no legal cut.*leave it out"),
        (["relu", "layer2.1.bn2"], "cannot be cut after 'layer2.1.bn2'.*the nearest legal cut is 'layer2.1'"),
        (["relu", "layer2.5"], "no module 'layer2.5'; the nearest legal cut is 'layer2"),
        (["relu", "linear"], "the nearest legal cut is 'layer3'"),
        (["layer1", "layer1.0"], "cut 'layer1.0' does not come after 'layer1'"),
        (["relu", "relu"], "cut 'relu' does not come after 'relu'"),
    ],
)
def test_an_impossible_cut_names_the_nearest_legal_one(names: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        cut(traced("resnet20"), names)


def test_a_network_that_cannot_be_cut() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x - self.conv(x)

    found = trace(Crossed().eval(), (3, 8, 8))
    assert legal_cuts(found) == {}
    with pytest.raises(UsageError, match="cannot be cut after 'conv', nor anywhere else"):
        cut(found, ["conv", "conv"])
    with pytest.raises(UsageError, match="the model has 0 places"):
        cut(found)
