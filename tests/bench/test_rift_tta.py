"""Attacks on whole batches and through adaptation, and the bench that reports them, on few images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from edgetta.bench import rift, rift_tta, robust_networks
from edgetta.bench.baselines.batch_norm_statistics import with_batch_statistics
from edgetta.bench.batch_attack import batch_attack
from edgetta.bench.rift_tta import Fixed, Meta, attacked_accuracy, stream_accuracy
from edgetta.bench.robust_networks import RobustNetwork
from edgetta.errors import UsageError
from edgetta.export.recipe import Derived, Recipe
from edgetta.models.model import Model
from edgetta.offline.attack import PGD, Threat
from edgetta.offline.source_statistics import with_source_statistics
from tests.adaptation.backbones import SmallNet, randomised, small_model
from tests.offline.attack.small_models import Linear, images, network, trained

ATTACK = PGD(Threat("linf", 0.1), 10)


def test_a_batch_attack_finds_the_known_worst_corner() -> None:
    weight = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    model = Linear(weight, torch.zeros(2))
    x = torch.full((6, 3, 2, 2), 0.5)
    y = torch.tensor([0, 1, 0, 1, 0, 1])
    found = batch_attack(model, x, y, ATTACK)
    worst = x + 0.1 * torch.where((y == 0)[:, None], weight[1] - weight[0], weight[0] - weight[1]).sign().view(x.shape)
    torch.testing.assert_close(found, worst)


def test_whole_batches_are_judged_and_starts_count() -> None:
    net = with_batch_statistics(trained(network()))
    x, y = images(40, seed=3)
    wrong = lambda points: int((net(points).argmax(1) != y).sum())  # noqa: E731
    found = batch_attack(net, x, y, ATTACK, seed=1)
    assert float((found - x).abs().max()) <= 0.1 + 1e-6 and found.min() >= 0 and found.max() <= 1
    assert wrong(found) > wrong(x)
    other = batch_attack(net, x, y, ATTACK, starts=[found], seed=2)
    assert wrong(other) >= wrong(found), "what is given to begin with is never lost"


def meta(*, adapts: bool) -> Meta:
    model = Model(randomised(SmallNet()), "small", (3, 16, 16), 5)
    derived = Derived(Recipe("small"), model, small_model(), "given")
    warmed = with_source_statistics(derived.network(), [pictures(64)])
    return Meta(derived, warmed, adapts=adapts)


def parameters(way: Meta) -> np.ndarray[Any, Any]:
    return np.array(way._adapter.state.parameters)


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("adapts", [False, True])
def test_what_is_attacked_is_what_predicts(adapts: bool) -> None:
    way = meta(adapts=adapts)
    before = parameters(way)
    for seed in range(3):
        batch = pictures(24, seed)
        attacked = way.differentiable()
        assert attacked is not None
        expected = attacked(batch)
        torch.testing.assert_close(way.step(batch), expected.detach(), rtol=1e-4, atol=1e-4)
    assert np.array_equal(parameters(way), before) != adapts
    way.start()
    assert np.array_equal(parameters(way), before)


def test_the_gradient_passes_through_statistics_and_meta_networks() -> None:
    way = meta(adapts=False)
    attacked = way.differentiable()
    assert attacked is not None
    x = pictures(8).double().float().requires_grad_(True)
    (gradient,) = torch.autograd.grad(attacked(x)[0, 0], x)
    others = gradient[1:].abs().sum()
    assert float(others) > 0, "other images of the batch matter: they are part of its statistics"


def test_adaptive_attacks_are_no_weaker_than_static_ones() -> None:
    net = trained(network())
    x, y = images(80, seed=4)
    clean = [(x[:40], y[:40]), (x[40:], y[40:])]
    static = [(ATTACK.perturb(net, some, labels, torch.Generator().manual_seed(0)), labels) for some, labels in clean]
    source, together = Fixed(net, batch_statistics=False), Fixed(net, batch_statistics=True)
    assert attacked_accuracy(source, clean, static, ATTACK, 0) == stream_accuracy(source, static)
    assert attacked_accuracy(together, clean, static, ATTACK, 0) < stream_accuracy(together, static)
    assert source.differentiable() is None


def test_rows_are_complete_and_not_done_again(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = RobustNetwork("resnet8_mlperf", "mlperf_tiny_resnet8.npz", 2 / 255, 1, steps=1, learning_rate=1e-3)
    monkeypatch.setitem(robust_networks.NETWORKS, "small_at", small)

    def no_rift(name: str, seed: int, work: Path, sizes: Any) -> tuple[nn.Module, None]:
        train, validation = robust_networks.training_images(sizes["training_images"], sizes["validation_images"])
        return robust_networks.robust_network(name, seed, train, validation, work / "1000"), None

    monkeypatch.setattr(rift, "run", no_rift)
    few = ("gaussian_noise", "defocus_blur", "snow", "contrast")
    monkeypatch.setattr("edgetta.corruption.CORRUPTIONS", few)
    path = tmp_path / "tta.json"
    options = ["--network", "small_at", "--images", "40", "--corrupted-images", "20", "--batch", "20", "--steps", "2"]
    options += ["--warm-up-images", "64", "--warm-up-epochs", "1", "--training-images", "1000"]
    options += ["--validation-images", "300", "--work", str(tmp_path), "--json", str(path)]
    result = CliRunner().invoke(rift_tta.command, options)
    assert result.exit_code == 0, result.exception
    content = json.loads(path.read_text())
    rows = content["rows"]
    assert [(row["model"], row["adaptation"]) for row in rows] == [
        (model, adaptation) for model in rift_tta.MODELS for adaptation in rift_tta.ADAPTATIONS
    ]
    for row in rows:
        assert 0.2 < row["clean"] <= 1 and row["robust_adaptive"] <= row["robust_static"] <= row["clean"]
    assert all(row["robust_adaptive"] == row["robust_static"] for row in rows if row["adaptation"] == "source")
    content["rows"] = rows[:11]
    path.write_text(json.dumps(content))
    monkeypatch.setattr(robust_networks, "standard_network", None)  # its rows are there: it is not needed
    assert CliRunner().invoke(rift_tta.command, options).exit_code == 0
    again = json.loads(path.read_text())["rows"]
    assert again == rows


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        (rift_tta.command, ["--network", "adv_resnet4b_at"], "has no BatchNorm, which this method adapts"),
        (rift_tta.command, ["--network", "nope"], "no network 'nope'"),
        (rift.command, ["--seeds", "a"], "--seeds a: give whole numbers"),
        (rift.command, ["--networks", "nope"], "no network 'nope'"),
    ],
)
def test_mistakes_are_told_before_anything_long(
    data_folder: Path, command: Any, options: list[str], message: str
) -> None:
    result = CliRunner().invoke(command, options)
    assert isinstance(result.exception, UsageError) and message in str(result.exception)
