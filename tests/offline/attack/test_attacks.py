"""PGD and APGD: against points that are known, against the authors' APGD, and what they leave behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgetta.errors import EdgettaError, UsageError
from edgetta.models import load_model
from edgetta.offline.attack import APGD, PGD, Attack, AutoAttack, Threat, adversarial_images, classified_right
from edgetta.offline.attack.evaluation_mode import evaluation_mode
from edgetta.offline.attack.loss import cross_entropy, difference_of_logits_ratio
from tests.offline.attack.small_models import Linear, images, network, trained

ATTACKS = [PGD(steps=10), PGD(steps=10, loss="dlr"), APGD(steps=20), APGD(steps=20, loss="dlr")]


def with_threat(attack: Any, threat: Threat) -> Attack:
    return type(attack)(threat, attack.steps, loss=attack.loss)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
def test_the_worst_point_of_a_linear_model_is_found(attack: Any, norm: str) -> None:
    """Only the first logit depends on the pixels, and the second is its rival: the way down is known."""
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(3 * 4 * 4, generator=generator)
    model = Linear(torch.stack([row, *torch.zeros(3, 48)]), torch.tensor([0.0, 0.0, -5.0, -6.0]))
    x = torch.full((12, 3, 4, 4), 0.5) + 0.1 * torch.randn(12, 3, 4, 4, generator=generator)
    x += (row / row.norm() ** 2).view(3, 4, 4) * (torch.linspace(-0.2, 4, 12) - x.flatten(1) @ row)[
        :, None, None, None
    ]
    threat = Threat(norm, 0.05)  # type: ignore[arg-type]
    found = with_threat(attack, threat).perturb(
        model, x, torch.zeros(12, dtype=torch.int64), torch.Generator().manual_seed(1)
    )
    reach = 0.05 * float(row.abs().sum() if norm == "linf" else row.norm())
    lowest = x.flatten(1) @ row - reach
    fooled = found.flatten(1) @ row < 0
    assert torch.equal(fooled, lowest < 0) and 0 < int(fooled.sum()) < 12  # exactly those that can be fooled
    torch.testing.assert_close((found.flatten(1) @ row)[~fooled], lowest[~fooled], atol=4e-2 * reach, rtol=0)


@pytest.mark.parametrize(
    "attack", [*ATTACKS, PGD(steps=3, restarts=3), APGD(steps=5, restarts=2)], ids=lambda a: a.name
)
def test_points_stay_in_the_ball_and_the_model_stays_as_it_was(attack: Attack) -> None:
    model = network().train()
    model[4].eval()  # a frozen BatchNorm in a model that trains
    model[0].weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = images(12)
    found = adversarial_images(model, x, y, attack, batch=5)
    assert float((found - x).abs().max()) <= attack.threat.epsilon + 1e-6
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()][:2] == [False, True]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(found, adversarial_images(model, x, y, attack, batch=5))  # the same seed, the same points


def test_modes_come_back_after_an_error_too() -> None:
    model = network().train()
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        assert not model.training and not model[1].training
        raise ZeroDivisionError
    assert model.training and model[1].training and all(p.requires_grad for p in model.parameters())


def test_attacks_lower_accuracy_and_restarts_do_not_raise_it() -> None:
    model = trained(network())
    x, y = images(80, seed=9)
    clean = classified_right(model, x, y)
    assert float(clean.float().mean()) > 0.75
    threat = Threat("linf", 0.06)
    counts = []
    for attack in (PGD(threat, 5), PGD(threat, 5, restarts=4), APGD(threat, 40)):
        right = classified_right(model, adversarial_images(model, x, y, attack), y)
        counts.append(int((right & clean).sum()))
    assert counts[1] <= counts[0] < 0.8 * int(clean.sum()) and counts[2] <= counts[0]


def test_one_step_raises_the_loss_by_its_first_order() -> None:
    model = network().double()
    x, y = images(10)
    x = x * 0.8 + 0.1  # away from black and white, where a pixel cannot go on
    attack = PGD(Threat("linf", 1e-6), 1, 1e-6, random_start=False)
    found = attack.last_point(model, x.double(), y, start=x.double())
    point = x.double().requires_grad_(True)
    (gradient,) = torch.autograd.grad(cross_entropy(model(point), y).sum(), point)
    rise = cross_entropy(model(found), y) - cross_entropy(model(x.double()), y)
    torch.testing.assert_close(rise.detach(), 1e-6 * gradient.abs().flatten(1).sum(1), rtol=1e-3, atol=1e-9)


def test_dlr_does_not_change_with_the_scale_of_the_logits() -> None:
    logits = torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 5
    loss = difference_of_logits_ratio(logits, labels)
    torch.testing.assert_close(loss, difference_of_logits_ratio(7 * logits + 3, labels))
    assert torch.equal(loss > 0, logits.argmax(1) != labels)
    with pytest.raises(UsageError, match="3 classes"):
        difference_of_logits_ratio(logits[:, :2], labels % 2)


@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 2 / 255), ("l2", 0.25)])
def test_robust_accuracy_is_that_of_the_authors_apgd(data_folder: Path, norm: str, epsilon: float, loss: str) -> None:
    base = pytest.importorskip("pyautoattack.autopgd_base", reason="the oracle: pip install 'edgetta[attack]'")
    from edgetta.sources.datasets import cifar10_lossless

    model = load_model("adv_resnet2b", weights=data_folder / "weights" / "adv_resnet2b.npz").module
    data = cifar10_lossless("test").subset(slice(0, 200))
    x = torch.from_numpy(data.images).permute(0, 3, 1, 2).float().contiguous() / 255
    y = torch.from_numpy(data.labels)
    attack = APGD(Threat(norm, epsilon), steps=20, loss=loss)  # type: ignore[arg-type]
    clean = classified_right(model, x, y)
    own = clean & classified_right(model, adversarial_images(model, x, y, attack), y)
    theirs = base.APGDAttack(
        model, n_iter=20, norm="Linf" if norm == "linf" else "L2", eps=epsilon, loss=loss, device=torch.device("cpu")
    )
    reference = clean & classified_right(model, theirs.perturb(x, y), y)
    assert abs(int(own.sum()) - int(reference.sum())) <= 0.005 * len(y)


def test_autoattack_is_at_least_as_strong_as_pgd() -> None:
    pytest.importorskip("pyautoattack", reason="pip install 'edgetta[attack]'")
    model = trained(network(classes=4))
    x, y = images(12, seed=4)
    threat = Threat("linf", 0.05)
    before = torch.random.get_rng_state()
    found = adversarial_images(model, x, y, AutoAttack(threat))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert float((found - x).abs().max()) <= 0.05 + 1e-6
    weaker = classified_right(model, adversarial_images(model, x, y, PGD(threat, 10)), y)
    assert int(classified_right(model, found, y).sum()) <= int(weaker.sum()) < len(y)
    with pytest.raises(UsageError, match="4 classes"):
        adversarial_images(network(classes=3), x, y % 3, AutoAttack(threat))


class Detached(nn.Module):
    """What an exported engine looks like to autograd."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach().flatten(1)[:, :4]


def test_errors_say_what_to_do() -> None:
    model, (x, y) = network(), images(4)
    with pytest.raises(UsageError, match="a label is 7, and the model has 4 classes"):
        adversarial_images(model, x, y + 4, PGD())
    with pytest.raises(UsageError, match="a label is -1"):
        adversarial_images(model, x, y - 1, PGD())
    with pytest.raises(UsageError, match="one label for each"):
        adversarial_images(model, x, y[:2], PGD())
    with pytest.raises(EdgettaError, match="give a torch model"):
        adversarial_images(Detached(), x, y, PGD())
    model[0].weight.data.fill_(float("nan"))
    with pytest.raises(EdgettaError, match="NaN"):
        adversarial_images(model, x, y, PGD())
    with pytest.raises(EdgettaError, match="NaN"):
        classified_right(model, x, y)
    for attack in (PGD, APGD):
        with pytest.raises(UsageError, match="1 or more"):
            attack(steps=0)
        with pytest.raises(UsageError, match="choose ce or dlr"):
            attack(loss="mse")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not positive"):
        PGD(step_size=0)
