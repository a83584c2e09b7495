"""Curvature operators against dense matrices, finite differences and other libraries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgetta.errors import UsageError
from edgetta.offline.curvature import (
    OPERATORS,
    DataSetTooSmallError,
    EmpiricalFisherOperator,
    GaussNewtonOperator,
    HessianOperator,
    LossSurface,
    NotFiniteError,
    NotTwiceDifferentiableError,
    PreconditionedOperator,
    extreme_eigenpairs,
)
from tests.offline.small_surfaces import convolutional, dense_hessian, images, surface


def dense(operator: HessianOperator) -> Tensor:
    return operator.product(torch.eye(operator.dimension, dtype=operator.dtype))


def weighted_hessian(net: nn.Module, x: Tensor, y: Tensor, batch: int) -> Tensor:
    """sum_B n_B/N H_B with torch.autograd.functional."""
    return sum(  # type: ignore[return-value]
        len(part) / len(x) * dense_hessian(net, part, labels)
        for part, labels in zip(x.split(batch), y.split(batch), strict=True)
    )


@pytest.mark.parametrize("batch_norm", ["source", "batch"])
@pytest.mark.parametrize("batch", [17, 6, 5])
def test_hessian_equals_the_dense_one_with_an_unequal_last_batch(batch_norm: str, batch: int) -> None:
    net, (x, y) = convolutional(), images(17)
    ours = dense(HessianOperator(surface(net, batch_norm=batch_norm), (x, y), batch_size=batch))
    net.train(batch_norm == "batch")
    torch.testing.assert_close(ours, weighted_hessian(net, x, y, batch), atol=1e-12, rtol=1e-9)


def test_source_statistics_do_not_depend_on_the_batch_size_and_batch_statistics_do() -> None:
    data = images(17)
    for batch_norm, same in (("source", True), ("batch", False)):
        matrices = [dense(HessianOperator(surface(batch_norm=batch_norm), data, batch_size=b)) for b in (17, 4)]
        assert torch.allclose(*matrices, atol=1e-10) is same


@pytest.mark.parametrize("kind", sorted(OPERATORS))
@pytest.mark.parametrize("batch_norm", ["source", "batch"])
def test_symmetric_in_both_batch_norm_policies(kind: str, batch_norm: str) -> None:
    matrix = dense(OPERATORS[kind](surface(batch_norm=batch_norm), images(16), batch_size=8))
    assert matrix.abs().max() > 1e-3
    torch.testing.assert_close(matrix, matrix.T, atol=1e-14, rtol=0)


def test_hessian_product_equals_a_finite_difference_of_gradients_under_batch_statistics() -> None:
    net, data = convolutional(), images(16)
    operator = HessianOperator(surface(net, batch_norm="batch"), data, batch_size=8)
    direction = torch.randn(operator.dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    sides = []
    for step in (1e-5, -1e-5):
        shifted = convolutional()
        for parameter, part in zip(shifted.parameters(), operator.surface.unflatten(direction), strict=True):
            parameter.data += step * part
        sides.append(HessianOperator(surface(shifted, batch_norm="batch"), data, batch_size=8).gradient())
    torch.testing.assert_close(operator.product(direction), (sides[0] - sides[1]) / 2e-5, atol=1e-7, rtol=1e-6)


def test_gauss_newton_equals_jacobians_with_the_softmax_hessian_between() -> None:
    net, (x, y) = convolutional().eval(), images(9)
    operator = GaussNewtonOperator(surface(net), (x, y), batch_size=4)
    names = list(operator.surface.parameters)
    sizes = [p.numel() for p in net.parameters()]

    def outputs(flat: Tensor) -> Tensor:
        state = {n: part.view_as(p) for n, part, p in zip(names, flat.split(sizes), net.parameters(), strict=True)}
        return torch.func.functional_call(net, state, (x,))

    flat = torch.cat([p.detach().flatten() for p in net.parameters()])
    jacobian = torch.autograd.functional.jacobian(outputs, flat)
    probabilities = outputs(flat).softmax(1).detach()
    expected = sum(
        j.T @ (torch.diag(p) - torch.outer(p, p)) @ j for j, p in zip(jacobian, probabilities, strict=True)
    ) / len(x)
    torch.testing.assert_close(dense(operator), expected, atol=1e-12, rtol=1e-9)


def test_empirical_fisher_equals_the_mean_of_outer_products_of_gradients() -> None:
    net, (x, y) = convolutional(), images(7)
    gradients = [HessianOperator(surface(net), (x[i : i + 1], y[i : i + 1])).gradient() for i in range(7)]
    expected = sum(torch.outer(g, g) for g in gradients) / 7
    operator = EmpiricalFisherOperator(surface(net), (x, y), batch_size=3)
    torch.testing.assert_close(dense(operator), expected, atol=1e-13, rtol=1e-9)
    with pytest.raises(UsageError, match="each sample"):
        EmpiricalFisherOperator(surface(net, separable=False), (x, y)).product(torch.ones(operator.dimension))


def test_gauss_newton_of_several_outputs_counts_each() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x), self.b(x)

    torch.manual_seed(0)
    net, x = Two().double(), torch.randn(5, 3).double()
    # Squared error of linear outputs: the Gauss-Newton matrix is the Hessian.
    both = LossSurface(net, lambda o, t: (o[0] ** 2).sum(1).mean() + (o[1] ** 2 * o[0]).sum(1).mean())
    only = LossSurface(net, lambda o, t: (o[0] ** 2).sum(1).mean() + 3 * (o[1] ** 2).sum(1).mean())
    torch.testing.assert_close(dense(GaussNewtonOperator(both, x)), dense(HessianOperator(both, x)))
    torch.testing.assert_close(dense(GaussNewtonOperator(only, x)), dense(HessianOperator(only, x)))


def test_gauss_newton_agrees_with_curvlinops() -> None:
    curvlinops = pytest.importorskip("curvlinops", reason="curvlinops-for-pytorch is not installed")
    net, (x, y) = convolutional().eval(), images(10)
    theirs = curvlinops.GGNLinearOperator(
        net, nn.CrossEntropyLoss(), list(net.parameters()), [(x[:6], y[:6]), (x[6:], y[6:])], check_deterministic=False
    )
    ours = GaussNewtonOperator(surface(net), (x, y), batch_size=6)
    vector = torch.randn(ours.dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(ours.product(vector).numpy(), np.asarray(theirs @ vector), atol=1e-12)


def test_columns_and_single_vectors_agree() -> None:
    for operator_class in OPERATORS.values():
        operator = operator_class(surface(batch_norm="batch"), images(12), batch_size=6)
        vectors = torch.randn(operator.dimension, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        together = operator.product(vectors)
        for k in range(3):
            torch.testing.assert_close(together[:, k], operator.product(vectors[:, k]), atol=1e-14, rtol=0)


def test_a_batch_operator_is_the_matrix_of_these_samples() -> None:
    net, (x, y) = convolutional().eval(), images(12)
    batch = HessianOperator(surface(net), (x, y)).on_batch([7, 1, 4])
    torch.testing.assert_close(dense(batch), dense_hessian(net, x[[7, 1, 4]], y[[7, 1, 4]]), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("batch_norm", ["source", "batch"])
def test_loss_and_gradient_are_those_of_autograd(batch_norm: str) -> None:
    net, (x, y) = convolutional(), images(12)
    operator = HessianOperator(surface(net, batch_norm=batch_norm), (x, y), batch_size=6)
    reference = convolutional().train(batch_norm == "batch")
    losses = [nn.functional.cross_entropy(reference(x[k : k + 6]), y[k : k + 6]) for k in (0, 6)]
    loss = (losses[0] + losses[1]) / 2
    loss.backward()
    assert operator.loss() == pytest.approx(float(loss.detach()), abs=1e-12)
    expected = torch.cat([p.grad.flatten() for p in reference.parameters()])
    torch.testing.assert_close(operator.gradient(), expected, atol=1e-13, rtol=0)


def test_preconditioning_scales_both_sides() -> None:
    operator = HessianOperator(surface(), images(8))
    divisor = torch.rand(operator.dimension, dtype=torch.float64) + 0.5
    expected = dense(operator) / torch.outer(divisor.sqrt(), divisor.sqrt())
    torch.testing.assert_close(dense(PreconditionedOperator(operator, divisor)), expected)
    with pytest.raises(UsageError, match="positive"):
        PreconditionedOperator(operator, divisor - 1)


def test_attention_can_be_measured() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(2, 1, 2, dropout=0.3, batch_first=True)
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(6, 4)).double()
    x, y = torch.randn(3, 3, 2).double(), torch.randint(0, 4, (3,))
    matrix = dense(HessianOperator(surface(net), (x, y), batch_size=2))
    torch.testing.assert_close(matrix, matrix.T, atol=1e-13, rtol=0)
    torch.testing.assert_close(matrix, dense_hessian(net.eval(), x, y), atol=1e-11, rtol=1e-7)


def test_a_linear_loss_has_no_curvature() -> None:
    net = nn.Linear(3, 1).double()
    linear = LossSurface(net, lambda outputs, targets: outputs.mean())
    for operator_class in (HessianOperator, GaussNewtonOperator):
        assert dense(operator_class(linear, torch.randn(4, 3).double())).abs().max() == 0


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        return grad


class Cube(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return OnceOnly.apply(self.linear(x))


@pytest.mark.parametrize("kind", sorted(OPERATORS))
def test_a_model_that_cannot_be_differentiated_twice_is_named(kind: str) -> None:
    data = torch.randn(4, 2).double(), torch.zeros(4, dtype=torch.long)
    operator = OPERATORS[kind](surface(Cube().double()), data)
    with pytest.raises(NotTwiceDifferentiableError, match="once_differentiable"):
        operator.product(torch.ones(operator.dimension))


def test_an_operation_without_a_second_derivative_is_named() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 4)

        def forward(self, x: Tensor) -> Tensor:
            q = self.linear(x)[None, None]
            kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            return kernel(q, q, q)[0][0, 0]

    data = torch.randn(4, 2).double(), torch.zeros(4, dtype=torch.long)
    operator = HessianOperator(surface(Fused().double()), data)
    with pytest.raises(NotTwiceDifferentiableError, match=r"flash_attention.*is not implemented"):
        operator.product(torch.ones(operator.dimension))


def test_nan_data_and_nan_curvature_are_told_apart() -> None:
    x, y = images(8)
    x[3] = float("nan")
    operator = HessianOperator(surface(), (x, y), batch_size=4)
    for call in (lambda: operator.product(torch.ones(operator.dimension)), operator.loss, operator.gradient):
        with pytest.raises(NotFiniteError, match="the loss is nan"):
            call()
    net = nn.Linear(1, 1, bias=False).double()
    net.weight.data.zero_()
    kinked = LossSurface(net, lambda outputs, targets: outputs.abs().sqrt().mean() ** 2)
    with pytest.raises(NotFiniteError, match="although the loss is finite"):
        HessianOperator(kinked, torch.ones(2, 1).double()).product(torch.ones(1))


def test_batch_statistics_of_one_value_are_an_error_with_a_remedy() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 4)).double()
    data = torch.randn(5, 2).double(), torch.zeros(5, dtype=torch.long)
    operator = HessianOperator(surface(net, batch_norm="batch"), data, batch_size=4)
    with pytest.raises(DataSetTooSmallError, match="no single sample over"):
        operator.product(torch.ones(operator.dimension))


def test_usage_errors_say_what_to_do() -> None:
    data = images(8)
    with pytest.raises(UsageError, match="length 51"):
        HessianOperator(surface(), data).product(torch.ones(3))
    with pytest.raises(UsageError, match="batch size 0"):
        HessianOperator(surface(), data, batch_size=0)
    with pytest.raises(UsageError, match="scalar"):
        HessianOperator(LossSurface(convolutional(), lambda o, t: o), data).loss()
    constant = LossSurface(convolutional(), lambda o, t: o.detach().sum().requires_grad_(True))
    with pytest.raises(UsageError, match="does not depend"):
        HessianOperator(constant, data).product(torch.ones(51))
    detached = nn.Sequential(convolutional(), nn.Identity())
    detached[1].forward = lambda x: x.detach()  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="does not depend"):
        GaussNewtonOperator(surface(detached), data).product(torch.ones(51))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("batch_norm", ["source", "batch"])
def test_products_on_cuda_equal_those_on_the_cpu(batch_norm: str) -> None:
    for kind in OPERATORS.values():
        on_cpu = kind(surface(batch_norm=batch_norm), images(16), batch_size=8)
        on_gpu = kind(surface(convolutional().cuda(), batch_norm=batch_norm), images(16), batch_size=8)
        vector = torch.randn(on_cpu.dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(on_gpu.product(vector).cpu(), on_cpu.product(vector), atol=1e-10, rtol=1e-7)
        ends = extreme_eigenpairs(on_gpu, 1, 1, tolerance=1e-6)
        expected = extreme_eigenpairs(on_cpu, 1, 1, tolerance=1e-6)
        assert ends.largest.values[0] == pytest.approx(expected.largest.values[0], rel=1e-6)
