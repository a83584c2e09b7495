"""Stable rates: the formulas against real optimizers, and measured thresholds against the formulas."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from edgetta.errors import UsageError
from edgetta.offline.curvature import (
    CurvatureError,
    GaussNewtonOperator,
    HessianOperator,
    LossSurface,
    extreme_eigenpairs,
    solve_damped,
)
from edgetta.offline.learning_rate import (
    Trial,
    bisect,
    divergence_rate,
    diverges,
    gauss_newton_damping,
    gauss_newton_step,
    gradient_descent_rate,
    heavy_ball_rate,
    mean_square_rate,
    moving_average_rate,
    nesterov_rate,
    optimizer_step,
    square_root_rate,
    stable_damping,
    stable_rate,
)
from edgetta.offline.learning_rate.threshold import independent_batches
from tests.offline.small_surfaces import images, surface

LARGEST = 7.0


def regression(samples: int = 64, noise: float = 0.0) -> HessianOperator:
    """Least squares with Hessian eigenvalues 7, 1 and 0.3 over the whole data set."""
    torch.manual_seed(0)
    directions, _ = torch.linalg.qr(torch.randn(samples, 3, dtype=torch.float64))
    x = directions * (torch.tensor([LARGEST, 1.0, 0.3], dtype=torch.float64) * samples).sqrt()
    y = x @ torch.ones(3, 1, dtype=torch.float64) + noise * torch.randn(samples, 1, dtype=torch.float64)
    net = nn.Linear(3, 1, bias=False).double()
    nn.init.zeros_(net.weight)
    return HessianOperator(LossSurface(net, lambda o, t: 0.5 * (o - t).square().sum(dim=1).mean()), (x, y))


Sgd = Callable[[list[nn.Parameter], float], torch.optim.Optimizer]
OPTIMIZERS: dict[str, tuple[Sgd, float]] = {
    "sgd": (lambda p, lr: torch.optim.SGD(p, lr=lr), gradient_descent_rate(LARGEST)),
    "momentum": (lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.8), heavy_ball_rate(LARGEST, 0.8)),
    "nesterov": (
        lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.8, nesterov=True),
        nesterov_rate(LARGEST, 0.8),
    ),
    "average": (
        lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.8, dampening=0.2),
        heavy_ball_rate(LARGEST, 0.8) / 0.8,
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_full_batch_training_turns_unstable_where_the_formula_says(name: str) -> None:
    factory, predicted = OPTIMIZERS[name]
    operator = regression()
    before = copy.deepcopy(operator.surface.model.state_dict())
    trial = Trial(steps=120, check_every=10)
    found = stable_rate(operator, 64, factory, start=predicted / 1.5, tolerance=0.04, trial=trial)
    assert found.unstable / found.stable <= 1.04
    assert found.value == pytest.approx(predicted, rel=0.1)  # momentum overshoots for a while before it settles
    assert torch.equal(operator.surface.model.weight, before["weight"])


def test_the_moving_average_formula_is_that_of_adam_with_a_settled_preconditioner() -> None:
    # An average with weight 1 - beta on the gradient is SGD with dampening beta.
    beta = 0.8
    settled = nn.Parameter(torch.ones(1, dtype=torch.float64))
    rate = moving_average_rate(LARGEST, beta)
    for factor, stable in ((0.97, True), (1.03, False)):
        settled.data.fill_(1)
        optimizer = torch.optim.SGD([settled], lr=factor * rate, momentum=beta, dampening=beta)
        for _ in range(400):
            settled.grad = LARGEST * settled.detach().clone()
            optimizer.step()
        assert (settled.detach().abs().item() < 1) is stable


def second_moment_radius(eigenvalues: np.ndarray, rate: float, momentum: float, batch: int) -> float:
    """How much second moments of the error grow in a step of heavy ball on least squares with Gaussian inputs.

    Per eigenvalue h the moments of x_t, x_t x_{t-1} and x_{t-1}; a batch adds (h^2 E x^2 + h sum h E x^2) / b.
    """
    count = len(eigenvalues)
    step = np.zeros((3 * count, 3 * count))
    kept = 1 + momentum - rate * eigenvalues
    x, both, before = (np.arange(count) + k * count for k in range(3))
    step[x, x] = kept**2 + rate**2 * eigenvalues**2 / batch
    step[x, both] = -2 * momentum * kept
    step[x, before] = momentum**2
    step[np.ix_(x, x)] += rate**2 * np.outer(eigenvalues, eigenvalues) / batch
    step[both, x], step[both, both], step[before, x] = kept, -momentum, 1
    return float(np.abs(np.linalg.eigvals(step)).max())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("batch", [2, 16, 128, 2048])
def test_the_limit_in_mean_square_is_that_of_the_second_moments(momentum: float, batch: int) -> None:
    largest, rest = 10.0, np.full(100, 0.5)
    found = mean_square_rate(largest, rest.sum() / batch, batch, momentum)
    eigenvalues = np.array([largest, *rest])
    exact = bisect(lambda rate: second_moment_radius(eigenvalues, rate, momentum, batch) > 1, found, tolerance=1e-3)
    assert found == pytest.approx(exact.value, rel=0.15)
    assert found < heavy_ball_rate(largest, momentum)
    if batch == 2 and momentum:
        alone = heavy_ball_rate(largest + rest.sum() / batch, momentum)
        assert alone > 10 * exact.value, "why the eigenvalue of a batch does not suffice"


def test_the_limit_in_mean_square_scales_with_the_batch_where_noise_rules() -> None:
    rates = [mean_square_rate(1.0, 5000 / batch, batch, 0.9) for batch in (8, 16, 32)]
    np.testing.assert_allclose(rates, [0.2 * batch / 5000 for batch in (8, 16, 32)], rtol=0.02)
    assert mean_square_rate(1.0, 0.0, 8, 0.9) == float("inf")


def test_warm_batches_fill_the_squares_and_move_nothing() -> None:
    operator = regression(noise=0.3)
    before = operator.surface.model.weight.detach().clone()
    made: list[torch.optim.Optimizer] = []

    def factory(parameters: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
        made.append(torch.optim.Adam(parameters, lr=rate))
        return made[0]

    step = optimizer_step(operator, factory, 0.1, independent_batches(64, 8, 20, 1))
    assert torch.equal(operator.surface.model.weight, before)
    (state,) = made[0].state.values()
    assert int(state["step"]) == 20 and state["exp_avg_sq"].min() > 0 and not state["exp_avg"].any()
    assert made[0].param_groups[0]["lr"] == 0.1
    step(operator)
    assert not torch.equal(operator.surface.model.weight, before)


def test_independent_batches_are_drawn_anew() -> None:
    drawn = list(independent_batches(20, 12, 3, 0))
    assert all(len(set(batch)) == 12 for batch in drawn)
    assert set(drawn[0]) & set(drawn[1]), "two of them cannot be disjoint"
    assert drawn == list(independent_batches(20, 12, 3, 0)) != list(independent_batches(20, 12, 3, 1))


def test_rates_refuse_what_has_no_stable_rate() -> None:
    for rate in (gradient_descent_rate, lambda value: heavy_ball_rate(value, 0.9)):
        for value in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(UsageError, match="not positive and finite"):
                rate(value)
    with pytest.raises(UsageError, match="momentum 1"):
        nesterov_rate(1.0, 1.0)


def test_the_square_root_rule_stops_at_the_crossover() -> None:
    assert square_root_rate(0.1, 16, 64, 1000) == pytest.approx(0.2)
    assert square_root_rate(0.1, 16, 4, 1000) == pytest.approx(0.05)
    assert square_root_rate(0.1, 16, 10_000, 64) == pytest.approx(0.2)
    assert square_root_rate(0.1, 256, 16, 64) == pytest.approx(0.05)


def test_a_step_of_the_divergence_rate_changes_predictions_by_the_budget() -> None:
    operator = GaussNewtonOperator(surface(), images(64))
    gradient = operator.gradient()
    budget = 1e-5
    rate = divergence_rate(operator, gradient, budget)
    net = operator.surface.model.eval()
    before = net(images(64)[0]).log_softmax(1)
    moved = copy.deepcopy(net)
    with torch.no_grad():
        for parameter, part in zip(moved.parameters(), operator.surface.unflatten(gradient), strict=True):
            parameter -= rate * part
    after = moved(images(64)[0]).log_softmax(1)
    divergence = float((before.exp() * (before - after)).sum(dim=1).mean().detach())
    assert divergence == pytest.approx(budget, rel=0.02)
    with pytest.raises(UsageError, match="changes no prediction"):
        divergence_rate(operator, torch.zeros(operator.dimension), budget)


def test_bisection_finds_the_turning_point_from_anywhere() -> None:
    for start in (1e-3, 0.29, 0.31, 50.0):
        found = bisect(lambda value: value > 0.3, start, tolerance=0.01)
        assert found.stable <= 0.3 < found.unstable <= 1.01 * found.stable
        assert found.value == pytest.approx(0.3, rel=0.01)
    for always in (True, False):
        with pytest.raises(CurvatureError, match="no change between stable and unstable"):
            bisect(lambda value, always=always: always, 1.0)
    with pytest.raises(UsageError, match="positive"):
        bisect(lambda value: True, 0.0)


def test_small_batches_bear_less() -> None:
    operator = regression(noise=0.3)
    factory = OPTIMIZERS["sgd"][0]
    trial = Trial(steps=60, check_every=5)
    whole, small = (
        stable_rate(operator, size, factory, start=0.2, tolerance=0.1, trial=trial).value for size in (64, 2)
    )
    assert small < 0.7 * whole


def test_a_trial_diverges_on_growth_and_on_what_is_not_finite() -> None:
    for rate, expected in ((0.1, False), (0.3, True), (1e200, True)):
        operator = regression()
        step = optimizer_step(operator, OPTIMIZERS["sgd"][0], rate)
        assert diverges(operator, 64, step, Trial(steps=40)) is expected
    negative = LossSurface(nn.Linear(3, 1).double(), lambda o, t: -(o**2).mean() - 1)
    with pytest.raises(UsageError, match="multiple of a positive loss"):
        diverges(HessianOperator(negative, torch.ones(4, 3).double()), 2, lambda batch: None, Trial())


def test_damped_systems_are_solved() -> None:
    operator = GaussNewtonOperator(surface(), images(40))
    matrix = operator.product(torch.eye(operator.dimension, dtype=torch.float64))
    right = torch.randn(operator.dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = solve_damped(operator, right, 0.1, iterations=300, tolerance=1e-12)
    exact = torch.linalg.solve(matrix + 0.1 * torch.eye(operator.dimension), right)
    torch.testing.assert_close(found, exact, atol=1e-7, rtol=1e-6)
    with pytest.raises(UsageError, match="damping 0"):
        solve_damped(operator, right, 0)
    hessian = HessianOperator(surface(), images(40))
    bottom = extreme_eigenpairs(hessian, 0, 1, tolerance=1e-6).smallest.vectors[:, 0]
    with pytest.raises(CurvatureError, match="not positive"):
        solve_damped(hessian, bottom, 1e-3)


def test_the_smallest_stable_damping_of_a_gauss_newton_step() -> None:
    # A step of rate r on a quadratic multiplies the error along lambda by 1 - r lambda / (lambda + damping):
    # beyond rate 2 it needs damping of at least lambda (r/2 - 1), the most along the largest eigenvalue.
    rate = 3.0
    found = stable_damping(
        regression(),
        64,
        lambda operator, damping: gauss_newton_step(rate, damping, iterations=10),
        start=1.0,
        tolerance=0.05,
        trial=Trial(steps=60),
    )
    assert found.unstable < found.stable
    assert found.value == pytest.approx(LARGEST * (rate / 2 - 1), rel=0.1)


def test_the_smallest_stable_damping_of_adam() -> None:
    # Where eps is large beside the gradients Adam is gradient descent at rate / eps.
    rate, operator = 20.0, regression()
    factory = lambda p, eps: torch.optim.Adam(p, lr=rate, betas=(0.0, 0.999), eps=eps)  # noqa: E731
    found = stable_damping(
        operator,
        64,
        lambda copied, damping: optimizer_step(copied, factory, damping),
        start=50.0,
        tolerance=0.05,
        trial=Trial(steps=100),
    )
    assert found.value == pytest.approx(rate * LARGEST / 2, rel=0.15)


def test_damping_is_proportional_to_rate_and_to_the_noise() -> None:
    assert gauss_newton_damping(1.0, 12.0, 10.0) == 1.0
    assert gauss_newton_damping(0.5, 12.0, 10.0) == 0.5
    assert gauss_newton_damping(1.0, 9.0, 10.0) == 0.0
    values = [10 + 600 / size for size in (8, 16, 32)]
    dampings = [gauss_newton_damping(1.0, value, 10.0) for value in values]
    np.testing.assert_allclose(np.multiply(dampings, (8, 16, 32)), 300)
