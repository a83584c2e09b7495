"""From trained to fine-tuned weights under a constraint, on networks where the answer is known."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from edgetta.errors import UsageError
from edgetta.offline.attack import PGD, PairedLoss, Threat, adversarial_images, classified_right
from edgetta.offline.rift import Constraint, Interpolation, between, interpolate
from edgetta.offline.rift.fine_tuning import batch_norms, recalibrate
from tests.offline.attack.small_models import images, network, trained

ATTACK = PGD(Threat("linf", 0.02), 4)


def states(seed: int = 1) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
    """A model, its weights, and others that differ in the last layer alone."""
    model = trained(network(), steps=40)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    end = {name: value.clone() for name, value in start.items()}
    generator = torch.Generator().manual_seed(seed)
    end["7.weight"] += 0.3 * torch.randn(end["7.weight"].shape, generator=generator)
    end["1.num_batches_tracked"] += 5
    return model, start, end


def test_only_changed_floating_tensors_move() -> None:
    _, start, end = states()
    half = between(start, end, 0.5)
    torch.testing.assert_close(half["7.weight"], (start["7.weight"] + end["7.weight"]) / 2)
    assert all(half[name] is start[name] for name in start if name != "7.weight")
    assert torch.equal(between(start, end, 0)["7.weight"], start["7.weight"])
    torch.testing.assert_close(between(start, end, 1)["7.weight"], end["7.weight"])


def test_a_better_end_is_taken_and_the_point_is_attacked_itself() -> None:
    """From a worse classifier to the better one that it was made from, robustness grows as well."""
    model, better, worse = states()
    validation = images(400, seed=21)
    found = interpolate(model, worse, better, validation, ATTACK, Constraint(0.02))
    chosen = next(point for point in found.points if point.alpha == found.alpha)
    assert found.alpha > 0.3 and chosen.attacked and chosen.robust_loss_upper <= 0.02
    assert chosen.clean == max(point.clean for point in found.points if point.robust_loss_upper <= 0.02)
    assert torch.equal(model.state_dict()["7.weight"], between(worse, better, found.alpha)["7.weight"])
    assert Interpolation.from_json(json.loads(json.dumps(found.to_json()))) == found
    # What it says about the end of the way is what it is.
    end = next(point for point in found.points if point.alpha == 1)
    model.load_state_dict(worse)
    points = adversarial_images(model, *validation, ATTACK)
    reference = classified_right(model, *validation) & classified_right(model, points, validation[1])
    model.load_state_dict(better)
    own = adversarial_images(model, *validation, ATTACK)
    right = [classified_right(model, some, validation[1]) for some in (validation[0], points, own)]
    assert end.clean == pytest.approx(float(right[0].float().mean()))
    if not end.attacked:
        assert end.robust == pytest.approx(float(torch.stack(right).all(0).float().mean()))
    model.load_state_dict(worse)
    reference &= classified_right(model, own, validation[1])
    if not end.attacked:
        assert end.robust_loss == pytest.approx(PairedLoss.of(reference, torch.stack(right).all(0)).value)


def test_a_worse_end_is_refused() -> None:
    model, start, end = states()
    found = interpolate(model, start, end, images(400, seed=21), ATTACK, Constraint(0.01))
    last = found.points[-1]
    assert last.alpha == 1 and last.robust_loss_upper > 0.01
    chosen = next(point for point in found.points if point.alpha == found.alpha)
    assert chosen.robust_loss_upper <= 0.01
    alphas = [point.alpha for point in found.points]
    assert alphas == sorted(set(alphas)) and len(alphas) > 11  # refined near the constraint


class Moving(nn.Module):
    """A classifier with one weight w: wrong about bright images, fewer as w grows, and in a hole that moves with w."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([w]))

    def forward(self, x: Tensor) -> Tensor:
        v = x[:, 0, 0, 0]
        wrong = ((v - 0.2 * self.w).abs() < 0.01) | (v > 0.9 + 0.1 * self.w)
        return torch.stack([wrong.float(), (~wrong).float()], 1)


class IntoTheHole:
    """Moves ever more images into the hole of the weight that it attacks: no other weight far from it notices."""

    threat, name = ATTACK.threat, "into the hole"

    def __init__(self) -> None:
        self.attacked: list[float] = []

    def perturb(self, net: Moving, some: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        w = float(net.w.detach())
        self.attacked.append(round(w, 2))
        points = some.clone()
        points[: int(250 * max(0.0, w - 0.35))] = 0.2 * w
        return points


def test_an_attack_that_refuses_a_point_leads_to_the_next_and_not_back_to_the_start() -> None:
    model, attack = Moving(0.0), IntoTheHole()
    start, end = ({"w": torch.tensor([w])} for w in (0.0, 1.0))
    x = torch.linspace(0.3, 1, 400)[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    data = x[:, None, None, None].expand(400, 1, 1, 1).clone(), torch.ones(400, dtype=torch.int64)
    found = interpolate(model, start, end, data, attack, Constraint(0.02), batch=400)  # type: ignore[arg-type]
    chosen = next(point for point in found.points if point.alpha == found.alpha)
    assert attack.attacked[:2] == [0.0, 1.0] and 2 < len(attack.attacked) <= 10
    assert 0.3 <= found.alpha < 0.52 and chosen.attacked and chosen.robust_loss_upper <= 0.02
    assert chosen.clean > found.points[0].clean and float(model.w.detach()) == pytest.approx(found.alpha)


def test_too_few_images_for_the_confidence_asked_for() -> None:
    model, start, end = states()
    with pytest.raises(UsageError, match="100 validation images cannot show with 95 % confidence"):
        interpolate(model, start, end, images(100), ATTACK, Constraint(0.01))
    with pytest.raises(UsageError, match="between 0 and 1"):
        Constraint(0)


def test_recalibrated_statistics_are_those_of_all_images() -> None:
    model = trained(network())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, _ = images(90)
    momentum = [layer.momentum for layer in batch_norms(model)]
    recalibrate(model, x, batch=30)
    convolved = torch.nn.functional.conv2d(x, model[0].weight, padding=1)
    torch.testing.assert_close(model[1].running_mean, convolved.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    variance = torch.stack([part.var((0, 2, 3)) for part in convolved.split(30)]).mean(0)
    torch.testing.assert_close(model[1].running_var, variance, rtol=1e-3, atol=1e-5)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved <= {f"{i}.{name}" for i in (1, 4) for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert not model.training and [layer.momentum for layer in batch_norms(model)] == momentum
    with pytest.raises(UsageError, match="no BatchNorm"):
        recalibrate(nn.Sequential(nn.Flatten()), x)
