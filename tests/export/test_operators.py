"""Every operator alone: lowered, it computes what torch computes; derived, its gradient is torch.autograd's."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetta.bench.exactness.reference import relative_error
from edgetta.export.batch_norm import settle
from edgetta.export.cut import legal_cuts
from edgetta.export.derivation import RULES as GRADIENT_RULES
from edgetta.export.differentiate import differentiate
from edgetta.export.onnx_writer import to_onnx
from edgetta.export.trace import trace
from edgetta.segments.graph import Graph
from edgetta.segments.onnxruntime_engine import OnnxProgram
from edgetta.segments.torch_engine import Program

SHAPE = (4, 6, 10)


class Function(nn.Module):
    """A function of the image, and whatever weights it needs."""

    def __init__(self, function: Callable[[Tensor], Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.function(x)
        for layer in self.layers:
            x = layer(x)
        return x


def heads(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], 2, 12, 10)


def merged_heads(x: Tensor) -> Tensor:
    """As `nn.MultiheadAttention` lays its heads out: tokens, images times heads, channels."""
    tokens = x.reshape(x.shape[0], 12, 20).transpose(0, 1)
    parts = (tokens * tokens).reshape(12, x.shape[0] * 4, 5).transpose(0, 1)
    mixed = torch.bmm(torch.softmax(parts @ parts.transpose(1, 2), 2), parts)
    return mixed.transpose(0, 1).reshape(12, x.shape[0], 20).transpose(0, 1)


def windows(x: Tensor) -> Tensor:
    """As window attention cuts an image: windows of all images in one batch."""
    n = x.shape[0]
    apart = x.view(n, 4, 2, 3, 2, 5).permute(0, 2, 4, 3, 5, 1).reshape(-1, 15, 4)
    mixed = torch.softmax(apart @ apart.transpose(1, 2), 2) @ apart
    return mixed.reshape(n, 2, 2, 3, 5, 4).permute(0, 5, 1, 3, 2, 4).reshape(n, 4, 6, 10)


def in_place(x: Tensor) -> Tensor:
    y = x * 2
    z = y.add_(x)
    z.relu_()
    return y + x


def in_place_view(x: Tensor) -> Tensor:
    y = x * 2
    y.flatten(1).relu_()
    return y + x


MASK = torch.rand(12, 12, generator=torch.Generator().manual_seed(1)) < 0.7
MASK |= torch.eye(12, dtype=torch.bool)
WEIGHT = torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(2))

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": lambda x: F.relu6(4 * x),
    "hardtanh": lambda x: F.hardtanh(x, -0.3, 0.7),
    "clamp": lambda x: torch.clamp(x, -0.5, 0.25),
    "clamp from below": lambda x: torch.clamp(x, min=0.3),
    "clamp from above": lambda x: torch.clamp(x, max=0.3),
    "clamp_min": lambda x: x.clamp_min(-0.2),
    "clamp_max": lambda x: x.clamp_max(0.2),
    "leaky relu": lambda x: F.leaky_relu(x, 0.2),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.25], dtype=x.dtype)),
    "prelu per channel": lambda x: F.prelu(x, torch.tensor([0.25, -0.5, 0.0, 1.5], dtype=x.dtype)),
    "elu": lambda x: F.elu(x, 0.7) + F.selu(x),
    "softplus": lambda x: F.softplus(x, 2.0),
    "mish": F.mish,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardswish": lambda x: F.hardswish(3 * x),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "exp": torch.exp,
    "log, log-softmax": lambda x: torch.log(x * x + 0.5) + F.log_softmax(x, 1),
    "sqrt": lambda x: torch.sqrt(x * x + 1),
    "rsqrt": lambda x: torch.rsqrt(x**2 + 0.5),
    "reciprocal": lambda x: torch.reciprocal(x * x + 1),
    "powers": lambda x: x**3 + (x * x + 1) ** 0.5,
    "softmax": lambda x: torch.softmax(x, 2),
    "neg, rsub, add with alpha": lambda x: torch.add(2.0 - (-x), x * x, alpha=0.5),
    "sub, div by weights": lambda x: (x - WEIGHT.to(x.dtype)) / (WEIGHT.to(x.dtype) ** 2 + 1),
    "div by activations": lambda x: x / (x * x + 2) + 1 / (x * x + 1),
    "broadcast": lambda x: x * x.mean((2, 3), keepdim=True) - x[:, :1] + x[:, :, :1, :1],
    "mean and sum": lambda x: x.mean(-1) + x.sum((3,)) * 0.1,
    "all means": lambda x: x.mean((1, 2, 3), keepdim=True) * x.flatten(1).sum(1).reshape(-1, 1, 1, 1) + x,
    "max-pool 2": lambda x: F.max_pool2d(x, 2),
    "max-pool 3 over edges": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max-pool, ceil": lambda x: F.max_pool2d(x, (3, 2), (2, 3), ceil_mode=True),
    "max-pool that skips": lambda x: F.max_pool2d(x, 2, 3),
    "max-pool 1": lambda x: F.max_pool2d(x, 1, 2),
    "max-pool after relu": lambda x: F.max_pool2d(F.relu(x), 3, 1, 1),
    "average-pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average-pool, ceil, even": lambda x: F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False),
    "average-pool, ceil": lambda x: F.avg_pool2d(x, (4, 3), (3, 4), (1, 0), ceil_mode=True),
    "average-pool, uncounted": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "average-pool, ceil, uncounted": lambda x: F.avg_pool2d(x, (3, 4), (2, 3), 1, True, False),
    "average-pool, another divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "average-pool, remainder": lambda x: F.avg_pool2d(x, (4, 3)),
    "adaptive average-pool": lambda x: F.adaptive_avg_pool2d(x, (3, 5)) + F.adaptive_avg_pool2d(x, 1),
    "adaptive average-pool, unequal windows": lambda x: F.adaptive_avg_pool2d(x, (4, 7)),
    "nearest": lambda x: F.interpolate(x, scale_factor=2.0) + F.interpolate(x[:, :, :3], (12, 20)),
    "bilinear": lambda x: F.interpolate(x, (9, 7), mode="bilinear"),
    "bilinear, corners": lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear", align_corners=True),
    "bicubic": lambda x: F.interpolate(x, (4, 15), mode="bicubic"),
    "unfold": lambda x: x.unfold(2, 4, 2).unfold(3, 4, 3),
    "roll": lambda x: torch.roll(x, (-2, 3), (2, 3)) * x,
    "repeat": lambda x: x.repeat(1, 2, 1, 1) * WEIGHT.to(x.dtype)[:1].repeat(x.shape[0], 8, 1, 1),
    "norm": lambda x: F.normalize(x, dim=1) + x.norm(p=2, dim=(2, 3), keepdim=True),
    "rsub with alpha": lambda x: torch.rsub(x, 1.0, alpha=2.0) + torch.rsub(x, x * x, alpha=0.5),
    "variances": lambda x: x.var(1, keepdim=True) + x.var((2, 3), correction=0)[:, :, None, None],
    "deviations": lambda x: torch.std_mean(x, (2, 3), keepdim=True)[0] * torch.var_mean(x, 3, True, True)[1] + x,
    "batch merged and split again": lambda x: F.relu(x.reshape(-1, 10)).reshape(x.shape[0], 12, 20) * 2,
    "batch merged behind another axis": merged_heads,
    "windows": windows,
    "detach": lambda x: x * x + x.detach() * x,
    "straight through": lambda x: x * 2 + (torch.relu(x) - x * 2).detach(),
    "output that is kept": lambda x: torch.softmax(x, 1),
    "quotient that is kept": lambda x: x / (x * x + 1).sqrt(),
    "identity": lambda x: x + WEIGHT.to(x.dtype),
    "transpose, permute, view": lambda x: x.transpose(1, 2).permute(0, 3, 1, 2).reshape(x.shape[0], 20, 12),
    "squeeze, unsqueeze": lambda x: x.unsqueeze(2).squeeze(2)[:, :1].squeeze(1).unsqueeze(-1),
    "slices": lambda x: x[:, 1:3, ::2, 1::3],
    "slice, one axis": lambda x: x[:, ::3],
    "select, unbind, stack": lambda x: torch.stack([x.select(1, -1), *x.unbind(1)[:2]], 1),
    "split, chunk, cat": lambda x: torch.cat([x.split([1, 3], 1)[1] * 2, *x.chunk(2, 1)[:1]], 1),
    "unbind of heads": lambda x: heads(x).permute(1, 0, 2, 3).unbind(0)[1],
    "expand": lambda x: x[:, :, :, :1].expand(-1, -1, -1, 7),
    "pad": lambda x: F.pad(x, (1, 2, 0, 3), value=0.5),
    "crop by padding": lambda x: F.pad(x, (-1, 2, -2, 0)),
    "channel shuffle": lambda x: x.view(x.shape[0], 2, 2, 6, 10).transpose(1, 2).reshape(x.shape[0], 4, 6, 10),
    "products of activations": lambda x: heads(x) @ heads(x * x).transpose(-1, -2),
    "product, shared factor": lambda x: heads(x) @ heads(torch.tanh(x))[:, :1].transpose(-1, -2),
    "weights from the left": lambda x: WEIGHT.to(x.dtype)[0, :, :6] @ x,
    "attention": lambda x: F.scaled_dot_product_attention(heads(x), heads(x * x), heads(-x), scale=0.7),
    "masked attention": lambda x: F.scaled_dot_product_attention(heads(x), heads(x), heads(x), attn_mask=MASK),
    "group norm": lambda x: F.group_norm(x, 2, eps=1e-3),
    "layer norm": lambda x: F.layer_norm(x, (6, 10)),
    "in place": lambda x: (x * 2).add_(x).relu_(),
    "in place, by the old name": in_place,
    "in place, through a view": in_place_view,
    "dropout": lambda x: F.dropout(x * 2, 0.5, False),
}
MODULES: dict[str, Callable[[], nn.Module]] = {
    name: (lambda function=function: Function(function)) for name, function in FUNCTIONS.items()
} | {
    "convolution, all odd": lambda: Function(lambda x: x, nn.Conv2d(4, 6, (3, 2), (2, 3), (0, 1), (1, 2), 2)),
    "convolution, stride over the edge": lambda: Function(lambda x: x, nn.Conv2d(4, 6, 3, 4, 2)),
    "convolution, padding beyond the kernel": lambda: Function(lambda x: x, nn.Conv2d(4, 6, 2, 1, 3)),
    "convolution, same": lambda: Function(lambda x: x, nn.Conv2d(4, 4, (3, 5), padding="same", dilation=(2, 1))),
    "convolution, depth multiplier": lambda: Function(lambda x: x, nn.Conv2d(4, 12, 3, 2, 1, groups=4)),
    "linear": lambda: Function(lambda x: x, nn.Linear(10, 3), nn.Linear(3, 4, bias=False)),
    "linear, flat": lambda: Function(lambda x: x.flatten(1), nn.Linear(240, 7), nn.BatchNorm1d(7)),
    "batch norm without weights": lambda: Function(lambda x: x, nn.BatchNorm2d(4, affine=False)),
    "layer norm with weights": lambda: Function(lambda x: x, nn.LayerNorm(10)),
    "group norm with weights": lambda: Function(lambda x: x, nn.GroupNorm(2, 4)),
}


@functools.cache
def made(name: str) -> tuple[nn.Module, Graph]:
    torch.manual_seed(0)
    model = MODULES[name]()
    return model, trace(model, SHAPE).graph


def run(graph: Graph, inputs: dict[str, Tensor], engine: str) -> dict[str, Tensor]:
    if engine == "torch":
        outputs = Program(graph, dtype=torch.float64).run(inputs)
    else:
        program = OnnxProgram(to_onnx(graph, "graph").SerializeToString(), graph, threads=1)
        single = {name: t.float() if t.is_floating_point() else t for name, t in inputs.items()}
        outputs = program.run(single)
    return dict(zip(graph.outputs, outputs, strict=True))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", MODULES)
def test_forward_and_gradient(name: str) -> None:
    model, graph = made(name)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64).requires_grad_()
    y = copy.deepcopy(model).double()(x)
    grad_y = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    (grad_x,) = torch.autograd.grad(y, x, grad_y)
    derived = differentiate(settle(graph.to(torch.float64), "source"))
    assert derived.backward is not None
    for engine, bound in (("torch", 1e-12), ("onnxruntime", 3e-6)):
        values = run(derived.forward, {"x": x.detach()}, engine) | {"x": x.detach()}
        residuals = {r.value.name: values[r.value.name] for r in derived.residuals}
        assert relative_error(values[graph.outputs[0]], y.detach()) <= bound
        back = run(derived.backward, residuals | {"grad_y": grad_y}, engine)[derived.backward.outputs[0]]
        assert relative_error(back, grad_x) <= bound


# Each with an input at every place where it bends.
BENDS: dict[str, tuple[Callable[[Tensor], Tensor], list[float]]] = {
    "relu": (F.relu, [0.0]),
    "relu6": (F.relu6, [0.0, 6.0]),
    "hardtanh": (lambda x: F.hardtanh(x, -0.5, 0.25), [-0.5, 0.25]),
    "clamp": (lambda x: x.clamp(-0.5, 0.25), [-0.5, 0.25]),
    "clamp at 0": (lambda x: x.clamp(min=0), [0.0]),
    "clamp_min": (lambda x: x.clamp_min(-0.5), [-0.5]),
    "clamp_max": (lambda x: x.clamp_max(0.25), [0.25]),
    "leaky relu": (lambda x: F.leaky_relu(x, 0.1), [0.0]),
    "prelu": (lambda x: F.prelu(x, torch.tensor([0.3], dtype=x.dtype)), [0.0]),
    "elu": (F.elu, [0.0]),
    "softplus": (F.softplus, [0.0]),
    "hardswish": (F.hardswish, [-3.0, 3.0]),
    "hardsigmoid": (F.hardsigmoid, [-3.0, 3.0]),
    "max-pool of equals": (lambda x: F.max_pool2d(F.relu(x), 2, 1), [0.0]),
}


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
@pytest.mark.parametrize("name", BENDS)
def test_gradient_where_a_function_bends(name: str, engine: str) -> None:
    """Exactly there the derivative is a choice, and the choice is autograd's."""
    function, bends = BENDS[name]
    values = torch.tensor([*bends, *(b - 0.125 for b in bends), *(b + 0.125 for b in bends)], dtype=torch.float64)
    x = values.repeat(4).reshape(1, 1, 4, -1).requires_grad_()
    derived = differentiate(settle(trace(Function(function), tuple(x.shape[1:])).graph, "source"))
    y = function(x)
    grad_y = torch.arange(1.0, 1.0 + y.numel(), dtype=torch.float64).reshape(y.shape)
    (expected,) = torch.autograd.grad(y, x, grad_y)
    made = run(derived.forward, {"x": x.detach()}, engine) | {"x": x.detach()}
    assert derived.backward is not None
    inputs = {r.value.name: made[r.value.name] for r in derived.residuals} | {"grad_y": grad_y}
    found = run(derived.backward, inputs, engine)[derived.backward.outputs[0]]
    assert relative_error(found, expected) <= 1e-6


def test_the_gradient_is_written_where_it_is_the_gradient_of_the_output() -> None:
    """ONNX Runtime leaves the memory of an output that is an input as it found it."""
    derived = differentiate(settle(trace(Function(lambda x: x + WEIGHT.to(x.dtype)), SHAPE).graph, "source"))
    assert derived.backward is not None
    program = OnnxProgram(to_onnx(derived.backward, "backward").SerializeToString(), derived.backward, threads=1)
    for _ in range(4):
        junk = [torch.full((2, *SHAPE), 7e30) for _ in range(8)]
        del junk
        assert torch.equal(program.run({"grad_y": torch.ones(2, *SHAPE)})[0], torch.ones(2, *SHAPE))


def test_what_is_detached_altogether_has_the_gradient_of_the_network_without() -> None:
    def detached(x: Tensor) -> Tensor:
        return (2 * x).detach() + (x * x).detach()

    derived = differentiate(settle(trace(Function(detached), SHAPE).graph, "source"))
    x = torch.rand(1, *SHAPE, dtype=torch.float64)
    values = run(derived.forward, {"x": x}, "torch") | {"x": x}
    inputs = {r.value.name: values[r.value.name] for r in derived.residuals} | {"grad_y": torch.ones_like(x)}
    assert derived.backward is not None
    found = run(derived.backward, inputs, "torch")[derived.backward.outputs[0]]
    assert relative_error(found, 2 + 2 * x) <= 1e-12


def test_a_bias_behind_a_detach_does_not_move() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv(x).detach()

    derived = differentiate(settle(trace(Branch().eval(), SHAPE).graph, "source", "bias"))
    assert set(derived.initial_affine) == {"bias.conv.bias"}
    assert derived.backward is not None and not derived.residuals
    grad_x, grad_bias = Program(derived.backward).run({"grad_y": torch.ones(2, *SHAPE)})
    assert torch.equal(grad_x, torch.ones(2, *SHAPE)) and not grad_bias.any()
    assert grad_bias.shape == derived.initial_affine["bias.conv.bias"].shape


def test_a_token_that_comes_late_leaves_places_to_cut() -> None:
    """Class-attention networks join their token behind the blocks: it must not keep the image alive until there."""

    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block = nn.Conv2d(4, 5, 1), nn.Conv2d(5, 5, 1)
            self.token = nn.Parameter(torch.randn(1, 1, 5))

        def forward(self, x: Tensor) -> Tensor:
            x = self.block(self.stem(x)).flatten(2).transpose(1, 2)
            return torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)

    traced = trace(Late().eval(), SHAPE)
    assert list(legal_cuts(traced)) == ["stem", "block"]


def test_every_gradient_rule_is_tested() -> None:
    used = {node.op for name in MODULES for node in made(name)[1].nodes}
    # `test_hard_sigmoid`: torch rounds its gradient; `FakeQuantize` is no operator of a network: test_quantise.py
    # A graph has an `Identity` only where an output would be another value.
    assert set(GRADIENT_RULES) - used == {"HardSigmoid", "FakeQuantize", "Identity"}


def test_hard_sigmoid() -> None:
    graph = trace(Function(lambda x: F.hardsigmoid(4 * x)), SHAPE).graph
    derived = differentiate(settle(graph.to(torch.float64), "source"))
    x = torch.randn(2, *SHAPE, dtype=torch.float64).requires_grad_()
    y = torch.clamp(4 * x / 6 + 0.5, 0, 1)
    grad_y = torch.randn_like(y)
    (grad_x,) = torch.autograd.grad(y, x, grad_y)
    values = run(derived.forward, {"x": x.detach()}, "torch")
    (mask,) = derived.residuals
    assert mask.kind == "mask"
    inputs = {mask.value.name: values[mask.value.name], "grad_y": grad_y}
    assert derived.backward is not None
    assert relative_error(values[graph.outputs[0]], y.detach()) <= 1e-12
    assert relative_error(run(derived.backward, inputs, "torch")[derived.backward.outputs[0]], grad_x) <= 1e-12


@pytest.mark.parametrize(
    ("activation", "bits"),
    [
        (F.relu, 1),
        (F.relu6, 1),
        (F.hardsigmoid, 1),
        (F.silu, 8),
        (F.gelu, 8),
        (F.hardswish, 8),
        (torch.sigmoid, 8),
        (torch.tanh, 8),
        (torch.erf, 8),
        (lambda x: F.max_pool2d(x, 2), 2 / 4),
        (lambda x: F.max_pool2d(x, 3, 2, 1), 4 / 4),
        (lambda x: F.avg_pool2d(x, 2), 0),
        (lambda x: x * 2 + 1, 0),
    ],
)
def test_bits_per_element(activation: Callable[[Tensor], Tensor], bits: float) -> None:
    derived = differentiate(settle(trace(Function(activation), (8, 16, 16)).graph, "source"))
    assert sum(r.kept_bytes(4) for r in derived.residuals) == 4 * 8 * 16 * 16 * bits / 8


@pytest.mark.parametrize("activation", [F.silu, F.gelu, F.hardswish, torch.sigmoid, torch.tanh, torch.erf])
def test_rounded_derivatives_stay_within_their_bound(activation: Callable[[Tensor], Tensor]) -> None:
    """Over the whole line: at most half a step off; 0 and 1, where the function is straight, are kept."""
    derived = differentiate(settle(trace(Function(activation), (1, 1, 4001)).graph, "source"))
    (residual,) = derived.residuals
    x = torch.linspace(-20, 20, 4001).reshape(1, 1, 1, -1).requires_grad_()
    (slope,) = torch.autograd.grad(activation(x).sum(), x)
    values = Program(derived.forward).run({"x": x.detach()})
    kept = residual.unpack(residual.pack(values[1]), 1)
    assert residual.error_bound < 0.004
    assert float((kept - slope).abs().max()) <= residual.error_bound + 1e-6
    straight = (x.abs() > 18).squeeze()
    assert torch.allclose(kept.squeeze()[straight], slope.squeeze()[straight], atol=1e-6)
    assert math.isclose(residual.error_bound, (residual.high - residual.low) / 510)
