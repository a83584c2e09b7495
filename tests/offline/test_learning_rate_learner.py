"""The learner: published formulas on a known spectrum, our default, and what it leaves alone."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgetta.errors import UsageError
from edgetta.offline.curvature import DataSetTooSmallError, LossSurface, NotFiniteError
from edgetta.offline.learning_rate import PUBLISHED, LearnerConfig, LearningRateLearner
from edgetta.offline.learning_rate.preconditioner import threshold_rate
from tests.offline.small_surfaces import images, surface

EIGENVALUES = (8.0, 4.0, 2.0, 1.0)


def quadratic(samples: int = 64) -> tuple[LossSurface, tuple[torch.Tensor, torch.Tensor]]:
    """Least squares whose Hessian over all samples has these eigenvalues; batches of all samples see exactly that."""
    torch.manual_seed(0)
    directions, _ = torch.linalg.qr(torch.randn(samples, 4, dtype=torch.float64))
    x = directions * (torch.tensor(EIGENVALUES, dtype=torch.float64) * samples).sqrt()
    y = x @ torch.ones(4, 1, dtype=torch.float64)
    net = nn.Linear(4, 1, bias=False).double()
    nn.init.zeros_(net.weight)
    return LossSurface(net, lambda o, t: 0.5 * (o - t).square().sum(dim=1).mean()), (x, y)


def learner(
    config: LearnerConfig, steps: int | None = None, **options: Any
) -> tuple[LearningRateLearner, torch.optim.Optimizer]:
    shape, data = quadratic()
    options = {"lr": 0.1, "momentum": 0.5} | options
    optimizer = torch.optim.SGD(shape.model.parameters(), **options)
    return LearningRateLearner(optimizer, shape, data, batch_size=64, config=config, steps=steps), optimizer


def train(tuned: LearningRateLearner, steps: int) -> list[float]:
    """The rates of these steps."""
    x, y = quadratic()[1]
    rates = []
    for _ in range(steps):
        tuned.optimizer.zero_grad()
        tuned.surface.loss(tuned.surface.model(x), y).backward()
        tuned.optimizer.step()
        rates.append(tuned.optimizer.param_groups[0]["lr"])
    return rates


def published(name: str) -> LearnerConfig:
    assert (PUBLISHED[name].iterations, PUBLISHED[name].batches, PUBLISHED[name].every_epochs) == (20, 1, 20)
    assert PUBLISHED[name].batch_size == 1024
    return replace(PUBLISHED[name], batch_size=64)


def test_published_formulas_on_a_known_spectrum() -> None:
    largest, median, smallest = 8.0, 3.0, 1.0  # four Ritz values: all eigenvalues

    first, optimizer = learner(published("ssgd"))
    refresh = first.refresh(0)
    assert refresh.rate == optimizer.param_groups[0]["lr"] == pytest.approx(2 / (largest + median))
    assert refresh.momentum is None and optimizer.param_groups[0]["momentum"] == 0.5

    for name, lower in (("ssgdm-median", median), ("ssgdm-minimum", smallest)):
        tuned, optimizer = learner(published(name))
        refresh = tuned.refresh(0)
        root = largest**0.5 + lower**0.5
        assert refresh.lower == pytest.approx(lower)
        assert refresh.rate == pytest.approx((2 / root) ** 2)
        momentum = ((largest**0.5 - lower**0.5) / root) ** 2
        assert optimizer.param_groups[0]["momentum"] == pytest.approx(momentum)

    nesterov, optimizer = learner(published("ssgdmn"), nesterov=True)
    refresh = nesterov.refresh(0)
    assert refresh.rate == pytest.approx((median / largest) ** 0.5)
    assert refresh.momentum == pytest.approx((largest**0.5 - median**0.5) / (largest**0.5 + median**0.5))


def test_the_minimum_rule_drops_the_bulk_at_zero() -> None:
    torch.manual_seed(1)
    x = torch.zeros(64, 100, dtype=torch.float64)
    x[:, :2] = torch.linalg.qr(torch.randn(64, 2, dtype=torch.float64))[0] * torch.tensor([6.0, 2.0]).mul(64).sqrt()
    net = nn.Linear(100, 1, bias=False).double()
    flat = LossSurface(net, lambda o, t: 0.5 * o.square().sum(dim=1).mean())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    config = published("ssgdm-minimum")
    assert LearningRateLearner(optimizer, flat, x, batch_size=64, config=config).refresh(0).lower == pytest.approx(2)


def test_the_default_takes_a_fraction_of_the_optimizers_own_threshold_and_leaves_momentum() -> None:
    ours, optimizer = learner(LearnerConfig(batches=1, quantile=1.0), momentum=0.9, weight_decay=0.5)
    refresh = ours.refresh(0)
    assert refresh.largest == pytest.approx(8.5)  # weight decay adds to the curvature
    assert refresh.lower == pytest.approx(8.0)
    assert refresh.rate == pytest.approx(0.25 * 2 * 1.9 / 16.5)
    assert optimizer.param_groups[0]["momentum"] == 0.9
    low, _ = learner(LearnerConfig(batches=1, quantile=0.0), momentum=0.9)
    assert low.refresh(0).lower == pytest.approx(1.0)
    asked, optimizer = learner(LearnerConfig(batches=1, quantile=0.0, learn_momentum=True))
    asked.refresh(0)
    expected = ((8**0.5 - 1) / (8**0.5 + 1)) ** 2
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(expected)
    capped, optimizer = learner(LearnerConfig(batches=1, quantile=0.0, learn_momentum=True, largest_momentum=0.1))
    assert capped.refresh(0).momentum == 0.1


def test_the_default_hardly_depends_on_the_number_of_iterations_and_the_minimum_does() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.tensor([50.0, 20.0, 8.0]), torch.rand(297, generator=generator) ** 6 * 3]).double()
    x = torch.diag((values * 300).sqrt())
    net = nn.Linear(300, 1, bias=False).double()
    network_like = LossSurface(net, lambda o, t: 0.5 * o.square().sum(dim=1).mean())
    momenta: dict[str, list[float]] = {"quantile": [], "ssgdm-minimum": []}
    for rule, found in momenta.items():
        for iterations in (10, 20, 40):
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
            config = LearnerConfig(rule=rule, iterations=iterations, batches=1, learn_momentum=True)
            found.append(
                LearningRateLearner(optimizer, network_like, x, batch_size=300, config=config).refresh(0).lower
            )
    ours, theirs = np.array(momenta["quantile"]), np.array(momenta["ssgdm-minimum"])
    assert theirs.max() / theirs.min() > 10 > ours.max() / ours.min()


def test_it_trains_a_quadratic_down() -> None:
    for config in (LearnerConfig(every_epochs=1, batches=2), published("ssgd")):
        tuned, _ = learner(config, momentum=0.0, lr=123.0)
        shape, (x, y) = tuned.surface, quadratic()[1]
        assert tuned.start_epoch(0) is not None
        train(tuned, 100)
        assert float(shape.loss(shape.model(x), y).detach()) < 1e-3 * 7.5


@pytest.mark.parametrize(
    ("optimizer_class", "options"),
    [
        (torch.optim.Adam, {"betas": (0.8, 0.9)}),
        (torch.optim.AdamW, {"betas": (0.8, 0.9), "amsgrad": True}),
        (torch.optim.RMSprop, {"alpha": 0.9}),
        (torch.optim.Adagrad, {}),
    ],
)
def test_optimizers_that_divide_see_the_preconditioned_curvature(
    optimizer_class: Any, options: dict[str, Any]
) -> None:
    shape, (x, y) = quadratic()
    optimizer = optimizer_class(shape.model.parameters(), lr=0.01, **options)
    tuned = LearningRateLearner(optimizer, shape, (x, y), batch_size=64, config=LearnerConfig(batches=1, quantile=1.0))

    def expected(divisor: torch.Tensor) -> float:
        hessian = (x.T @ x / 64) / torch.outer(divisor.sqrt(), divisor.sqrt())
        return float(torch.linalg.eigvalsh(hessian)[-1])

    gradient = (x.T @ (x @ shape.model.weight.T - y) / 64).flatten().detach()
    fresh = tuned.refresh(0)  # before its first step: from the gradients
    assert fresh.largest == pytest.approx(expected(gradient.abs()), rel=1e-3)
    assert fresh.rate == pytest.approx(0.25 * threshold_rate(optimizer, 2 * fresh.largest), rel=1e-6)
    for _ in range(5):
        optimizer.zero_grad()
        shape.loss(shape.model(x), y).backward()
        optimizer.step()
    state = optimizer.state[shape.model.weight]
    key = next(key for key in ("max_exp_avg_sq", "exp_avg_sq", "square_avg", "sum") if key in state)
    squares = state[key].flatten() / (1 - 0.9**5 if "betas" in options else 1)
    settled = tuned.refresh(1)
    assert settled.largest == pytest.approx(expected(squares.sqrt()), rel=1e-3)


def test_adam_learns_its_first_beta_when_asked() -> None:
    shape, data = quadratic()
    optimizer = torch.optim.Adam(shape.model.parameters(), betas=(0.9, 0.95))
    config = LearnerConfig(batches=1, learn_momentum=True)
    refresh = LearningRateLearner(optimizer, shape, data, batch_size=64, config=config).refresh(0)
    assert optimizer.param_groups[0]["betas"] == (refresh.momentum, 0.95)


def test_refreshes_come_when_due_and_change_by_a_bounded_factor() -> None:
    tuned, _ = learner(LearnerConfig(every_epochs=3, first_epoch=2, batches=1, largest_change=2.0, warm_up=0))
    due = [epoch for epoch in range(10) if tuned.start_epoch(epoch) is not None]
    assert due == [2, 5, 8]
    before = tuned.history[-1].rate
    tuned.surface.loss = lambda o, t: 50 * (o - t).square().sum(dim=1).mean()
    assert tuned.refresh(9).rate == pytest.approx(before / 2)
    assert tuned.seconds == sum(refresh.seconds for refresh in tuned.history) > 0


@pytest.mark.parametrize("rise", [1.0, 3.0])
def test_flatness_does_not_raise_the_rate_above_the_first(rise: float) -> None:
    tuned, _ = learner(LearnerConfig(batches=1, largest_rise=rise, warm_up=0))
    first = tuned.refresh(0).rate
    tuned.surface.loss = lambda o, t: 2.0 * (o - t).square().sum(dim=1).mean()
    assert tuned.refresh(1).rate == pytest.approx(first / 4)
    tuned.surface.loss = lambda o, t: 1e-2 * (o - t).square().sum(dim=1).mean()
    assert tuned.refresh(2).rate == pytest.approx(min(rise, 2.5) * first), "one refresh changes it tenfold at most"
    assert PUBLISHED["ssgd"].largest_rise == float("inf")


def test_groups_keep_the_ratio_of_their_rates() -> None:
    net = nn.Sequential(nn.Linear(16, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    optimizer = torch.optim.SGD(
        [{"params": net[0].parameters(), "lr": 0.1}, {"params": net[2].parameters(), "lr": 0.02}]
    )
    x, y = images(32)
    config = LearnerConfig(warm_up=0)
    tuned = LearningRateLearner(optimizer, surface(net), (x.flatten(1), y), batch_size=16, config=config)
    rate = tuned.refresh(0).rate
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(rate), pytest.approx(0.2 * rate)]


def test_the_rate_rises_over_the_warm_up_is_measured_anew_and_falls_to_zero() -> None:
    tuned, _ = learner(LearnerConfig(batches=1, warm_up=4), steps=16)
    first = tuned.start_epoch(0)
    assert first is not None and first.step == 0
    tuned.surface.loss = lambda o, t: 0.25 * (o - t).square().sum(dim=1).mean()  # half the curvature it began with
    rates = train(tuned, 18)
    assert [refresh.step for refresh in tuned.history] == [0, 4]
    settled = tuned.history[1].rate
    assert settled == pytest.approx(2 * first.rate), "the first one is no ceiling"
    rising = [first.rate * (k + 1) / 4 * (1 - k / 16) for k in range(4)]
    assert rates == pytest.approx([*rising, *(settled * (1 - k / 16) for k in range(4, 16)), 0, 0])


def test_the_warm_up_takes_a_quarter_of_a_short_training() -> None:
    tuned, _ = learner(LearnerConfig(batches=1), steps=8)
    tuned.start_epoch(0)
    train(tuned, 8)
    assert [refresh.step for refresh in tuned.history] == [0, 2]


def test_without_a_length_the_rate_stays_and_a_later_refresh_is_bounded_by_the_one_behind_the_warm_up() -> None:
    tuned, _ = learner(LearnerConfig(batches=1, warm_up=2, every_epochs=1, first_epoch=1))
    assert tuned.start_epoch(0) is None and train(tuned, 3) == [0.1] * 3, "its own rate until the first refresh"
    tuned.start_epoch(1)
    first = tuned.history[0].rate
    assert train(tuned, 4) == pytest.approx([first / 2, first, first, first])
    tuned.surface.loss = lambda o, t: 0.25 * (o - t).square().sum(dim=1).mean()
    assert tuned.refresh(2).rate == pytest.approx(first) and [r.step for r in tuned.history] == [3, 5, 7]


def test_its_state_survives_json() -> None:
    tuned, optimizer = learner(LearnerConfig(batches=1, warm_up=8), steps=32)
    tuned.refresh(0)
    train(tuned, 3)
    again, other = learner(LearnerConfig(batches=1, warm_up=8), steps=32)
    again.load_state_dict(json.loads(json.dumps(tuned.state_dict())))
    other.load_state_dict(optimizer.state_dict())
    again.surface.model.load_state_dict(tuned.surface.model.state_dict())
    assert again.history == tuned.history
    assert train(again, 10) == pytest.approx(train(tuned, 10))


def test_the_model_is_left_in_training_mode_with_its_gradients() -> None:
    net = surface(batch_norm="batch").model.train()
    x, y = images(64)
    nn.functional.cross_entropy(net(x), y).backward()
    gradients = [parameter.grad.clone() for parameter in net.parameters()]
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    LearningRateLearner(optimizer, surface(net, batch_norm="batch"), (x, y), batch_size=16).refresh(0)
    assert net.training
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients, strict=True))
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())


def test_what_cannot_be_learned_is_refused() -> None:
    shape, data = quadratic()
    optimizer = torch.optim.SGD(shape.model.parameters(), lr=0.1)
    with pytest.raises(DataSetTooSmallError, match="batches of 1024 and there are 64 samples"):
        LearningRateLearner(optimizer, shape, data, batch_size=32, config=PUBLISHED["ssgd"])
    for wrong in (torch.optim.LBFGS, torch.optim.Rprop):
        with pytest.raises(UsageError, match="has no learning rate that curvature bounds"):
            LearningRateLearner(wrong(shape.model.parameters()), shape, data, batch_size=32)
    for field, value in (
        ("rule", "best"),
        ("every_epochs", 0),
        ("quantile", 1.5),
        ("largest_change", 1.0),
        ("largest_rise", 0.5),
        ("warm_up", -1),
    ):
        with pytest.raises(UsageError, match=f"{field} = "):
            LearnerConfig(**{field: value})
    with pytest.raises(UsageError, match="a training of 0 steps"):
        LearningRateLearner(optimizer, shape, data, batch_size=32, steps=0)
    linear = LossSurface(shape.model, lambda o, t: o.mean())
    with pytest.raises(NotFiniteError, match="no curvature"):
        LearningRateLearner(optimizer, linear, data, batch_size=32).refresh(0)
