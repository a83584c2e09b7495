"""The gradient through the stream's statistics from one bit per element, against autograd."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgetta.export.batch_norm import EMA_MOMENTUM, settle
from edgetta.export.differentiate import differentiate
from edgetta.export.gradients_batch_norm import SPREAD
from edgetta.export.trace import trace
from edgetta.segments.contract import SegmentGraphs
from edgetta.segments.graph import Graph
from edgetta.segments.torch_engine import Program, TorchSegment

CHANNELS = 4


class OneBit(torch.autograd.Function):
    """BatchNorm whose backward sees of its input only which elements lie above the mean; one channel at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        inverse = torch.rsqrt(variance + 1e-5)
        ctx.save_for_backward(x, weight, mean, inverse)
        column = [1, -1] + [1] * (x.dim() - 2)
        return (x - mean.view(column)) * (weight * inverse).view(column) + bias.view(column)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, mean, inverse = ctx.saved_tensors
        to_x, to_weight = torch.zeros_like(x), torch.zeros_like(weight)
        for c in range(x.shape[1]):
            above, g = x[:, c] > mean[c], grad[:, c].clone()
            share = above.double().mean()
            xhat = torch.where(above, SPREAD * (1 - share), -SPREAD * share)
            to_weight[c] = (g * xhat).sum()
            for side in (above, ~above):
                if side.any():
                    g[side] -= g[side].mean()
            to_x[:, c] = g * weight[c] * inverse[c]
        return to_x, to_weight, grad.sum([0, *range(2, x.dim())]), None, None


class Body(nn.Module):
    """Convolution, BatchNorm, ReLU, twice, with a shortcut; or BatchNorm of vectors."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        layer = (lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1)) if rank == 4 else (lambda: nn.Linear(CHANNELS, 4))
        norm = nn.BatchNorm2d if rank == 4 else nn.BatchNorm1d
        self.first, self.one, self.second, self.two = layer(), norm(CHANNELS), layer(), norm(CHANNELS)
        for bn in (self.one, self.two):
            nn.init.normal_(bn.weight, 1.0, 0.3)
            nn.init.normal_(bn.bias, 0.0, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.second(torch.relu(self.one(self.first(x)))))

    def with_one_bit(self, x: Tensor, momentum: float) -> Tensor:
        def norm(x: Tensor, bn: Any) -> Tensor:
            axes = [0, *range(2, x.dim())]
            variance, mean = torch.var_mean(x.detach(), axes, correction=0)
            mean, variance = bn.running_mean.lerp(mean, momentum), bn.running_var.lerp(variance, momentum)
            return OneBit.apply(x, bn.weight, bn.bias, mean, variance)  # type: ignore[no-any-return, no-untyped-call]

        return x + norm(self.second(torch.relu(norm(self.first(x), self.one))), self.two)


def body(rank: int = 4) -> tuple[Body, Tensor, SegmentGraphs]:
    torch.manual_seed(3)
    module = Body(rank).eval()
    shape = (CHANNELS, 6, 6) if rank == 4 else (CHANNELS,)
    x = torch.randn(8, *shape, dtype=torch.float64)
    return module.double(), x, differentiate(settle(graph_of(module, shape), "ema", "affine"))


def graph_of(module: Body, shape: tuple[int, ...] = (CHANNELS, 6, 6)) -> Graph:
    return trace(copy.deepcopy(module).float(), shape).graph.to(torch.float64)  # type: ignore[arg-type]


@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize("momentum", [1.0, 0.3])
def test_is_the_projection_that_the_docstring_says(rank: int, momentum: float) -> None:
    module, x, graphs = body(rank)
    segment = TorchSegment(graphs, dtype=torch.float64, pack=False)
    y, residuals = segment.forward(x, momentum=momentum)
    grad_y = torch.randn(y.shape, dtype=torch.float64)
    found, affine = segment.input_gradient(residuals, grad_y)

    x = x.clone().requires_grad_(True)
    wanted = module.with_one_bit(x, momentum)
    assert torch.allclose(y, wanted, atol=1e-12)
    wanted.backward(grad_y)
    assert x.grad is not None and torch.allclose(found, x.grad, rtol=1e-10, atol=1e-12)
    names = {name.removeprefix("weight.").removeprefix("bias.") for name in affine}
    assert {"one.weight", "one.bias", "two.weight", "two.bias"} <= names
    for name, gradient in affine.items():
        parameter = module.get_parameter(name.removeprefix("weight.").removeprefix("bias."))
        assert torch.allclose(gradient.flatten(), parameter.grad, rtol=1e-10, atol=1e-12), name


def test_is_closer_to_the_full_gradient_than_constant_statistics() -> None:
    """Of weights in front of a chain of normalisations, with statistics of the batch."""
    module, x, graphs = body()
    grad_y = torch.randn(8, CHANNELS, 6, 6, dtype=torch.float64)
    x = x.clone().requires_grad_(True)
    module.train()(x).backward(grad_y)
    module.eval()
    constant = differentiate(settle(graph_of(module), "ema", "bias"))
    distances = {}
    for name, of in (("one bit", graphs), ("constant", constant)):
        segment = TorchSegment(of, dtype=torch.float64, pack=False)
        _, residuals = segment.forward(x.detach(), momentum=1.0)
        found, _ = segment.input_gradient(residuals, grad_y)
        assert x.grad is not None
        distances[name] = float((found - x.grad).norm() / x.grad.norm())
    assert distances["one bit"] < 0.7 * distances["constant"], distances


def test_one_bit_per_element_of_what_is_normalised() -> None:
    _, _, affine = body()
    plain = differentiate(settle(graph_of(Body(4).eval()), "ema", "bias"))
    more = affine.kept_bytes(8, "exact") - plain.kept_bytes(8, "exact")
    assert more == 2 * 8 * CHANNELS * 36 // 8


def test_a_channel_that_lies_on_one_side_has_finite_gradients() -> None:
    """With running statistics far away, every element may lie above the mean."""
    _, x, graphs = body()
    segment = TorchSegment(graphs, dtype=torch.float64, pack=False)
    for name, value in segment.state.items():
        segment.state[name] = torch.full_like(value, -50.0) if name.endswith("mean") else value
    y, residuals = segment.forward(x, momentum=0.0)
    found, affine = segment.input_gradient(residuals, torch.randn_like(y))
    assert all(bool(torch.isfinite(t).all()) for t in (found, *affine.values()))
    assert float(affine["weight.two.weight"].abs().max()) == 0


def test_with_the_statistics_of_training_no_weight_adapts() -> None:
    graphs = differentiate(settle(graph_of(Body(4).eval()), "source", "affine"))
    assert graphs.initial_affine and not any(name.startswith("weight.") for name in graphs.initial_affine)


def test_recompute_gives_the_same() -> None:
    _, x, graphs = body()
    assert graphs.recompute is not None
    segment = TorchSegment(graphs, dtype=torch.float64, pack=False)
    inputs = {"x": x, **segment.state, **segment.affine, EMA_MOMENTUM: torch.ones(1, dtype=torch.float64)}
    y, residuals = segment.forward(x, momentum=1.0)
    grad_y = torch.randn_like(y)
    found, affine = segment.input_gradient(residuals, grad_y)
    again = Program(graphs.recompute, dtype=torch.float64).run({**inputs, "grad_y": grad_y})
    for one, other in zip((found, *affine.values()), again, strict=True):
        assert torch.allclose(one, other, atol=1e-12)
