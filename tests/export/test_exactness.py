"""Derived gradients against torch.autograd through the module itself, in float64, on small networks.

In float64 they must be the same computation (1e-10). In float32 with the masks imposed only rounding is left (1e-5);
with an engine's own masks a few elements near zero may fall on the other side (2e-3). Smooth activations keep their
derivative in eight bits, whose rounding is bounded per element by `Residual.error_bound`; on whole networks it was
measured below 1 % of the gradient, and 2 % is the limit here.
"""

from __future__ import annotations

import copy
import functools

import pytest
import torch

from edgetta.bench.exactness.reference import PartReference, randomise, reference, relative_error
from edgetta.bench.exactness.segments import (
    derive,
    gradient_of,
    gradient_with_imposed,
    parameter_name,
    residuals_in_float64,
    segment,
)
from edgetta.export.batch_norm import BatchNormPolicy
from edgetta.export.cut import CutModel, cut
from edgetta.export.trace import trace
from edgetta.segments.contract import GradientMode, SegmentGraphs
from tests.export.small_networks import SMALL, SMOOTH

FLOAT64, IMPOSED, OWN_MASKS, ROUNDED = 1e-10, 1e-5, 2e-3, 2e-2
POLICIES: tuple[BatchNormPolicy, ...] = ("source", "batch", "ema")
NORMALISED = [name for name in SMALL if name not in ("transformer", "convnext", "odds")]
CASES = [(name, policy) for name in SMALL for policy in (POLICIES if name in NORMALISED else POLICIES[:1])]
ENGINES = ["torch", "onnxruntime"]
MOMENTUM = 0.3


@functools.cache
def network(name: str) -> tuple[torch.nn.Module, CutModel]:
    torch.manual_seed(0)
    model = randomise(SMALL[name].build()).eval()
    return model, cut(trace(model, SMALL[name].input_shape), SMALL[name].cuts)


@functools.cache
def expected(name: str, policy: BatchNormPolicy, batch: int = 3, biases: bool = False) -> list[PartReference]:
    images = torch.rand(batch, *SMALL[name].input_shape, generator=torch.Generator().manual_seed(batch))
    return reference(network(name)[0], SMALL[name].cuts, images, policy, MOMENTUM, biases)


@functools.cache
def graphs(name: str, policy: BatchNormPolicy, dtype: torch.dtype, adapt: str = "meta") -> list[SegmentGraphs]:
    return derive(network(name)[1], policy, adapt, dtype)


@pytest.mark.parametrize("gradient", ["exact", "recompute"])
@pytest.mark.parametrize(("name", "policy"), CASES)
def test_float64_is_autograd(name: str, policy: BatchNormPolicy, gradient: GradientMode) -> None:
    for part, wanted in zip(graphs(name, policy, torch.float64), expected(name, policy), strict=True):
        made = segment(part, "torch", gradient, torch.float64, pack=False)
        found = gradient_of(made, wanted.x, wanted.grad_y, MOMENTUM)
        assert relative_error(found.y, wanted.y) <= FLOAT64
        assert relative_error(found.grad_x, wanted.grad_x) <= FLOAT64


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "policy"), CASES)
def test_float32_with_the_masks_of_float64(name: str, policy: BatchNormPolicy, engine: str) -> None:
    exact, single = graphs(name, policy, torch.float64), graphs(name, policy, torch.float32)
    for part64, part32, wanted in zip(exact, single, expected(name, policy), strict=True):
        residuals = residuals_in_float64(part64, wanted.x, MOMENTUM)
        grad_x, _ = gradient_with_imposed(part32, engine, residuals, wanted.grad_y)
        assert relative_error(grad_x, wanted.grad_x) <= IMPOSED


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "policy"), CASES)
def test_float32_with_own_masks(name: str, policy: BatchNormPolicy, engine: str) -> None:
    for part, wanted in zip(graphs(name, policy, torch.float32), expected(name, policy), strict=True):
        rounded = any(residual.kind == "code" for residual in part.residuals)
        assert name in SMOOTH or not rounded
        x, grad_y = wanted.x.float(), wanted.grad_y.float()
        exact = gradient_of(segment(part, engine, "exact"), x, grad_y, MOMENTUM)
        recomputed = gradient_of(segment(part, engine, "recompute"), x, grad_y, MOMENTUM)
        assert relative_error(exact.y, wanted.y) <= IMPOSED
        assert relative_error(recomputed.y, wanted.y) <= IMPOSED
        assert relative_error(exact.grad_x, wanted.grad_x) <= (ROUNDED if rounded else OWN_MASKS)
        assert relative_error(recomputed.grad_x, wanted.grad_x) <= OWN_MASKS
        assert exact.kept_bytes == part.kept_bytes(x.shape[0], "exact")
        assert recomputed.kept_bytes == part.kept_bytes(x.shape[0], "recompute")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("policy", ["source", "ema"])
@pytest.mark.parametrize("name", ["wide_resnet", "vgg", "transformer"])
@pytest.mark.parametrize("batch", [1, 5])
def test_any_batch_size(name: str, policy: BatchNormPolicy, engine: str, batch: int) -> None:
    for part, wanted in zip(graphs(name, policy, torch.float32), expected(name, policy, batch), strict=True):
        found = gradient_of(segment(part, engine, "recompute"), wanted.x.float(), wanted.grad_y.float(), MOMENTUM)
        assert relative_error(found.y, wanted.y) <= IMPOSED
        assert relative_error(found.grad_x, wanted.grad_x) <= OWN_MASKS


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_gradients_of_biases(name: str, policy: BatchNormPolicy) -> None:
    exact, single = graphs(name, policy, torch.float64, "bias"), graphs(name, policy, torch.float32, "bias")
    for part64, part32, wanted in zip(exact, single, expected(name, policy, biases=True), strict=True):
        found = gradient_of(
            segment(part64, "torch", dtype=torch.float64, pack=False), wanted.x, wanted.grad_y, MOMENTUM
        )
        assert found.grad_biases
        assert relative_error(found.y, wanted.y) <= FLOAT64
        assert relative_error(found.grad_x, wanted.grad_x) <= FLOAT64
        residuals = residuals_in_float64(part64, wanted.x, MOMENTUM)
        for engine in ENGINES:
            _, in_float32 = gradient_with_imposed(part32, engine, residuals, wanted.grad_y)
            for bias, gradient in found.grad_biases.items():
                reference_gradient = wanted.grad_biases[parameter_name(bias)].reshape(gradient.shape)
                assert relative_error(gradient, reference_gradient) <= FLOAT64
                assert relative_error(in_float32[bias], reference_gradient) <= IMPOSED


def test_biases_change_what_they_should() -> None:
    """A bias that is moved by hand moves the output as the module's own parameter would."""
    part, wanted = graphs("wide_resnet", "batch", torch.float64, "bias")[0], expected("wide_resnet", "batch")[0]
    made = segment(part, "torch", dtype=torch.float64, pack=False)
    made.affine["bias.block1.layer.0.bn2.bias"] += 0.25
    model = copy.deepcopy(network("wide_resnet")[0])
    with torch.no_grad():
        model.get_parameter("block1.layer.0.bn2.bias").add_(0.25)
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    moved = reference(model, SMALL["wide_resnet"].cuts, images, "batch", MOMENTUM)[0]
    assert relative_error(made.forward(wanted.x)[0], moved.y) <= FLOAT64
    assert relative_error(moved.y, wanted.y) > 1e-3


def test_no_bias_that_a_normalisation_cancels() -> None:
    """A convolution's bias before a BatchNorm of the stream's statistics has no effect, so it is no input."""
    part = graphs("vgg", "batch", torch.float32, "bias")[1]
    assert set(part.initial_affine) == {"bias.body.b.2.bias"}
    assert set(graphs("vgg", "source", torch.float32, "bias")[1].initial_affine) == {"bias.body.b.2.bias.folded"}


@pytest.mark.parametrize(("momentum", "same_as"), [(0.0, "source"), (1.0, "batch")])
def test_momentum_0_and_1_are_the_other_policies(momentum: float, same_as: BatchNormPolicy) -> None:
    for part, wanted in zip(
        graphs("wide_resnet", "ema", torch.float64), expected("wide_resnet", same_as), strict=True
    ):
        found = gradient_of(segment(part, "torch", dtype=torch.float64, pack=False), wanted.x, wanted.grad_y, momentum)
        assert relative_error(found.y, wanted.y) <= FLOAT64
        assert relative_error(found.grad_x, wanted.grad_x) <= FLOAT64


@pytest.mark.parametrize("engine", ENGINES)
def test_running_statistics_move(engine: str) -> None:
    part = graphs("wide_resnet", "ema", torch.float32)[0]
    wanted = expected("wide_resnet", "ema")[0]
    made = segment(part, engine)
    before = dict(made.state)
    made.forward(wanted.x.float(), keep=False, momentum=MOMENTUM)
    name = "state.block1.layer.0.bn1.running_mean"
    moved = (1 - MOMENTUM) * before[name] + MOMENTUM * wanted.x.float().mean((0, 2, 3))
    assert torch.allclose(made.state[name], moved, atol=1e-6)
    assert set(made.state) == set(before)
