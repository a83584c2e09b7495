"""`no_grad` and `autocast` around a network or a block: it is traced, and cut, as the same network without them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgetta.bench.exactness.reference import randomise, relative_error
from edgetta.export.cut import automatic_cuts, legal_cuts
from edgetta.export.derive import derive
from edgetta.export.lowering import RULES
from edgetta.export.trace import trace
from edgetta.segments.torch_engine import Program
from tests.export.small_networks import conv_bn

SHAPE = (3, 16, 16)


class Plain(nn.Module):
    """Stem and two blocks, one of them called twice as deep."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 6), nn.ReLU(inplace=True))
        self.one = nn.Sequential(nn.Sequential(*conv_bn(6, 6), nn.SiLU()), nn.Sequential(*conv_bn(6, 6), nn.ReLU()))
        self.two = nn.Sequential(nn.Sequential(*conv_bn(6, 8, stride=2), nn.ReLU()), *conv_bn(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 5)

    def features(self, x: Tensor) -> Tensor:
        return self.two(self.one(self.stem(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class NoGrad(Plain):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Autocast(Plain):
    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()


class FrozenFeatures(Plain):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.features(x)
        return self.head(x.mean((2, 3)))


class Nested(Plain):
    """A region in a region around a block, and an operator (`einsum`) that torch has to take apart."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.stem(x))
        with torch.no_grad():
            x = torch.einsum("nchw,c->nchw", x, torch.ones(6))
            with torch.autocast("cuda", enabled=False):
                x = self.two(x.float())
        return self.head(x.mean((2, 3)))


def made(kind: type[Plain]) -> Plain:
    torch.manual_seed(0)
    return randomise(kind()).eval()  # type: ignore[return-value]


@pytest.mark.filterwarnings("ignore:.*utocast")
@pytest.mark.parametrize("kind", [NoGrad, Autocast, FrozenFeatures])
def test_traced_and_cut_as_without(kind: type[Plain]) -> None:
    wanted, found = trace(made(Plain), SHAPE), trace(made(kind), SHAPE)
    assert [(n.op, n.inputs[1:]) for n in found.graph.nodes] == [(n.op, n.inputs[1:]) for n in wanted.graph.nodes]
    assert list(legal_cuts(found)) == list(legal_cuts(wanted))
    assert automatic_cuts(found, 2) == automatic_cuts(wanted, 2)
    x = torch.rand(2, *SHAPE)
    assert relative_error(Program(found.graph).run({"x": x})[0], made(Plain)(x).detach()) <= 1e-6


def test_a_block_inside_can_be_cut_where_torch_takes_operators_apart() -> None:
    model = made(Nested)
    assert "aten.einsum.default" not in RULES
    assert {"two", "two.0"} <= set(trace(model, SHAPE).module_outputs)


def test_the_gradient_stops_at_a_branch_without_gradients() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 3, 1)
            self.block = nn.Conv2d(3, 3, 1)
            self.head = nn.Linear(3, 5)

        def body(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = self.block(x)
            return torch.tanh(x) + y

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.stem(x)).mean((2, 3)))

    model = Branch().eval()
    graph = trace(model, SHAPE).graph
    assert [node.op for node in graph.nodes].count("Detach") == 1


def test_an_exported_program_is_left_as_it_was(tmp_path: Path) -> None:
    batch = torch.export.Dim("n", min=1, max=8)
    program = torch.export.export(made(FrozenFeatures), (torch.zeros(3, *SHAPE),), dynamic_shapes=({0: batch},))
    before = copy.deepcopy(program.graph_module.code)
    trace(program, SHAPE)
    assert program.graph_module.code == before


def test_a_network_without_gradients_can_be_derived() -> None:
    derived = derive(made(NoGrad), SHAPE, ("stem", "one", "two"))
    assert derived.classes == 5 and list(derived.pieces) == ["stem", "part1", "part2", "classifier"]
