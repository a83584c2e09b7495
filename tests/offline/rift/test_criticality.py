"""Criticality against closed forms, against brute force, and where it means nothing."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetta.errors import EdgettaError, UsageError
from edgetta.offline.attack import PGD, Threat, adversarial_images, evaluation_mode
from edgetta.offline.rift import (
    AdversarialSet,
    Criticality,
    CriticalityConfig,
    NotRobustError,
    WeightGroup,
    least_critical_group,
    measure_criticality,
    weight_groups,
)
from edgetta.offline.rift.robust_loss import RobustLoss, whole_gradient
from edgetta.offline.rift.screening import highest_in_ball, quadratic_rise
from tests.offline.attack.small_models import images, network, trained

ATTACK = PGD(Threat("linf", 0.02), 5)
LARGE = 1 << 30


def model_and_data(count: int = 120) -> tuple[nn.Module, AdversarialSet]:
    model = trained(network(), steps=80)
    x, y = images(count, seed=11)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return model, AdversarialSet.make(model, x[order], y[order], ATTACK)


def mean_loss(model: nn.Module, data: AdversarialSet, weights: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(torch.func.functional_call(model, weights, (data.images,)), data.labels)


def test_modules_are_convolutions_and_linear_layers_or_what_the_user_says() -> None:
    model = network()
    assert [group.name for group in weight_groups(model)] == ["0", "3", "7"]
    named = weight_groups(model, {"first": ["0", "1"], "last": ["7.bias"]})
    assert named[0].parameters == ("0.weight", "1.weight", "1.bias") and named[1].owners == ("7",)
    with pytest.raises(UsageError, match="no module or parameter named 'conv9'"):
        weight_groups(model, {"x": ["conv9"]})
    with pytest.raises(UsageError, match="neither convolutions nor linear layers"):
        weight_groups(nn.Sequential(nn.ReLU()))


def test_loss_and_gradients_are_those_of_autograd() -> None:
    model, data = model_and_data(50)
    groups = weight_groups(model)
    with evaluation_mode(model):
        loss, accuracy, gradients = whole_gradient(model, groups, data, 16)
        for group in groups:
            leaves = {
                n: p.detach().clone().requires_grad_(True)
                for n, p in model.named_parameters()
                if n in group.parameters
            }
            value = mean_loss(model, data, leaves)
            expected = torch.autograd.grad(value, list(leaves.values()))
            robust = RobustLoss(model, group, data, 16, LARGE)
            found, gradient = robust.gradient(leaves)
            at, right = robust.at(leaves)
            assert found == pytest.approx(float(value.detach())) == pytest.approx(at) == pytest.approx(loss)
            assert right == accuracy == float(data.right.float().mean())
            for name, part in zip(leaves, expected, strict=True):
                torch.testing.assert_close(gradient[name], part, rtol=1e-3, atol=1e-6)
                torch.testing.assert_close(gradients[name], part, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("schedule", ["fast", "published"])
def test_perturbed_weights_stay_in_their_ball_and_the_model_as_it_was(schedule: str) -> None:
    model, data = model_and_data()
    model.train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    told: list[tuple[int, int, str]] = []
    config = CriticalityConfig(schedule, step_images=40)  # type: ignore[arg-type]
    found = measure_criticality(model, weight_groups(model), data, config, progress=lambda *event: told.append(event))
    assert model.training and all(torch.equal(value, state[n]) for n, value in model.state_dict().items())
    assert [(-s.images, s.rise) for s in found.scores] == sorted((-s.images, s.rise) for s in found.scores)
    assert found.least.name == found.scores[0].name and found.most.name == found.scores[-1].name
    assert all(0 < score.rise < 20 for score in found.scores) and told[-1][0] == told[-1][1]
    again = Criticality.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found
    same = measure_criticality(model, weight_groups(model), data, config)
    assert [(s.name, s.rise) for s in same.scores] == [(s.name, s.rise) for s in found.scores]


def test_screening_lets_a_share_through_and_ranks_the_rest_behind() -> None:
    model, data = model_and_data()
    groups = weight_groups(model)
    config = CriticalityConfig(step_images=20, screening=0.5, finalists=1)
    found = measure_criticality(model, groups, data, config)
    assert [(score.images, score.final) for score in found.scores] == [(120, True), (80, False), (20, False)]
    assert all(score.screened is not None and score.screened > 0 for score in found.scores)
    assert found.scores[-1].rise == found.scores[-1].screened == max(score.screened or 0 for score in found.scores)
    plain = measure_criticality(model, groups, data, replace(config, screening=1))
    assert all(score.screened is None for score in plain.scores) and found.least.name == plain.least.name


def test_the_fast_schedule_finds_what_the_published_one_finds() -> None:
    model, data = model_and_data()
    groups = weight_groups(model)
    fast = measure_criticality(model, groups, data, CriticalityConfig(step_images=60))
    published = measure_criticality(model, groups, data, CriticalityConfig("published"))
    assert [s.name for s in fast.scores] == [s.name for s in published.scores]
    for score, other in zip(fast.scores[:-1], published.scores[:-1], strict=True):
        assert score.rise > 0.95 * other.rise
    # The loss of the most critical one has several maxima in its ball: any of them is far above the others.
    assert fast.most.rise > 4 * fast.scores[-2].rise


def test_the_shared_first_step_is_along_the_gradient_on_all_images() -> None:
    from edgetta.offline.rift.ascent import normalised_ascent

    model, data = model_and_data()
    group = WeightGroup("3", ("3.weight",))
    with evaluation_mode(model):
        robust = RobustLoss(model, group, data, 40, LARGE)
        gradient = whole_gradient(model, [group], data, 50)[2]
        found = normalised_ascent(robust, 0.1, 0, robust.at({}), gradient=gradient)
        moved = found.weights["3.weight"] - model[3].weight
        uphill = gradient["3.weight"]
        assert uphill is not None
        torch.testing.assert_close(moved / moved.norm(), uphill / uphill.norm(), rtol=1e-3, atol=1e-4)
        assert float(moved.norm()) == pytest.approx(0.1 * float(model[3].weight.norm()), rel=1e-4)
        assert found.loss > 0


def test_the_rise_of_a_linear_layer_is_that_of_brute_force() -> None:
    """No random point of the ball is worse than what the ascent found, and what it found lies in the ball."""
    from edgetta.offline.rift.ascent import normalised_ascent

    model, data = model_and_data()
    group = WeightGroup("7", ("7.weight",))
    weight = model[7].weight.detach()
    with evaluation_mode(model):
        robust = RobustLoss(model, group, data, 40, LARGE)
        base = robust.at({})
        found = normalised_ascent(robust, 0.1, 8, base)
        assert float((found.weights["7.weight"] - weight).norm()) <= 0.1 * float(weight.norm()) * (1 + 1e-5)
        assert found.loss == pytest.approx(robust.at(found.weights)[0] - base[0])
        generator = torch.Generator().manual_seed(0)
        for _ in range(50):
            move = torch.randn(weight.shape, generator=generator)
            point = weight + 0.1 * weight.norm() * move / move.norm()
            assert robust.at({"7.weight": point})[0] - base[0] < found.loss


def test_the_quadratic_model_is_exact_where_the_loss_is_quadratic_enough() -> None:
    model, data = model_and_data()
    model = model.double()
    data = replace(data, images=data.images.double())
    with evaluation_mode(model):
        _, _, gradient = whole_gradient(model, weight_groups(model), data, 250)
        for group in weight_groups(model):
            robust = RobustLoss(model, group, data, 250, LARGE)
            name = group.parameters[0]
            weight, slope = robust.start[name], gradient[name]
            assert slope is not None
            radius = 1e-3 * float(weight.norm())
            first = quadratic_rise(model, group, gradient, data, 1e-3, products=0, limit=LARGE)
            assert first == pytest.approx(radius * float(slope.norm()))
            second = quadratic_rise(model, group, gradient, data, 1e-3, products=6, limit=LARGE)
            step = weight + radius * slope / slope.norm()
            assert second > 0.85 * (robust.at({name: step})[0] - robust.at({})[0])  # what is left is no curvature
            assert first < second < 2 * first


@pytest.mark.parametrize("seed", range(4))
def test_the_highest_point_in_a_ball(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = 2
    alpha, beta, slope = rng.normal(size=size) - seed, rng.normal(size=size - 1), 0.3 + rng.random()
    matrix = np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1)
    angle, length = np.meshgrid(np.linspace(0, 2 * np.pi, 2001), np.linspace(0, 1, 401))
    points = np.stack([length * np.cos(angle), length * np.sin(angle)])
    values = slope * points[0] + 0.5 * np.einsum("i...,ij,j...->...", points, matrix, points)
    assert highest_in_ball(alpha, beta, slope) == pytest.approx(values.max(), rel=1e-3)


class WithDeadWeights(nn.Module):
    """A wide ResNet of the published code has a block that no forward pass uses."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trained(network(), steps=80)
        self.unused = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_modules_without_gradient_are_skipped_and_named() -> None:
    model = WithDeadWeights()
    x, y = images(80, seed=11)
    data = AdversarialSet.make(model, x, y, ATTACK)
    for schedule in ("fast", "published"):
        found = measure_criticality(model, weight_groups(model), data, CriticalityConfig(schedule))  # type: ignore[arg-type]
        assert found.skipped == ("unused",) and {s.name for s in found.scores} == {"net.0", "net.3", "net.7"}
    with pytest.raises(UsageError, match="none of the weights has a gradient"):
        measure_criticality(model, [WeightGroup("unused", ("unused.weight",))], data)


class Explosive(nn.Module):
    """Answers with infinities as soon as one of its modules moves."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trained(network(), steps=80)
        self.scale = nn.Linear(4, 4)
        self.scale.weight.data = torch.eye(4)
        self.register_buffer("trained", torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.scale(self.net(x))
        return logits * (1 + 1e30 * (self.scale.weight - self.trained).abs().sum()) ** 2


@pytest.mark.parametrize("schedule", ["fast", "published"])
def test_a_module_that_diverges_is_never_the_least_critical(schedule: str) -> None:
    model = Explosive()
    x, y = images(80, seed=11)
    data = AdversarialSet.make(model, x, y, ATTACK)
    found = measure_criticality(model, weight_groups(model), data, CriticalityConfig(schedule))  # type: ignore[arg-type]
    last = found.scores[-1]
    assert last.name == "scale" and last.diverged and math.isinf(last.rise)
    assert found.least.name != "scale" and found.most.name != "scale"
    assert found.to_json()["scores"][-1]["rise"] is None
    only = measure_criticality(model, [WeightGroup("scale", ("scale.weight",))], data, CriticalityConfig(schedule))  # type: ignore[arg-type]
    with pytest.raises(EdgettaError, match="diverged for every module"):
        _ = only.least


def test_attacking_anew_finds_at_least_as_much() -> None:
    model, data = model_and_data()
    groups = weight_groups(model)
    fixed = measure_criticality(model, groups, data, CriticalityConfig())
    renewed = measure_criticality(model, groups, data, CriticalityConfig(re_attack=True), attack=ATTACK)
    pairs = {score.name: score.rise for score in fixed.scores}
    assert all(score.rise >= pairs[score.name] - 1e-5 for score in renewed.scores if score.final)
    assert any(score.rise > pairs[score.name] + 1e-4 for score in renewed.scores)
    with pytest.raises(UsageError, match="re_attack needs the attack"):
        measure_criticality(model, groups, data, CriticalityConfig(re_attack=True))


def test_a_joint_group_is_at_least_as_critical_as_its_members() -> None:
    model, data = model_and_data()
    config = CriticalityConfig(steps=8)
    alone = measure_criticality(model, weight_groups(model), data, config)
    found = least_critical_group(model, alone, data, config, 2)
    assert found.members[0] == alone.least.name and len(found.members) == 2
    assert found.score.rise > alone.least.rise
    assert set(found.group.parameters) == {f"{name}.weight" for name in found.members}
    with pytest.raises(UsageError, match="a joint group of 9"):
        least_critical_group(model, alone, data, config, 9)


def test_a_model_without_robustness_is_refused() -> None:
    model = trained(network())
    x, y = images(60)
    with pytest.raises(NotRobustError, match="no more than guessing among 4 classes"):
        AdversarialSet.make(model, x, y, PGD(Threat("linf", 0.3), 10))


def test_the_fixed_images_are_attacked_ones() -> None:
    model, data = model_and_data(40)
    again = adversarial_images(model, data.clean, data.labels, ATTACK)
    assert torch.equal(again, data.images) and len(data.first(7)) == 7


@pytest.mark.parametrize(
    "wrong",
    [{"schedule": "slow"}, {"epsilon": 0.0}, {"steps": 0}, {"products": -1}, {"finalists": 0}, {"screening": 0}],
)
def test_settings_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        CriticalityConfig(**wrong)  # type: ignore[arg-type]
