"""DELTA: renormalised batches, the gradient through a batch's own statistics, and the weight of rare classes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from edgetta.bench.baselines import BatchNormStatistics, Delta, DeltaConfig
from edgetta.bench.baselines.delta import RenormalisedNorm
from edgetta.bench.baselines.entropy import entropy
from edgetta.errors import UsageError
from tests.adaptation.backbones import SmallNet, randomised


def images(seed: int = 0, count: int = 24) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 0.3 + 0.6


def test_the_first_batch_is_normalised_by_itself() -> None:
    model = randomised(SmallNet())
    assert torch.allclose(Delta(model)(images()), BatchNormStatistics(model)(images()), atol=1e-4)


def test_later_batches_are_normalised_by_the_average() -> None:
    layer = RenormalisedNorm(nn.BatchNorm2d(3), 0.75)
    first, second = images(0), images(1) * 2
    layer(first)
    found = layer(second)
    deviation = (first.var((0, 2, 3), unbiased=False) + layer.eps).sqrt()
    shape = (-1, 1, 1)
    expected = (second - first.mean((0, 2, 3)).view(shape)) / deviation.view(shape)
    assert torch.allclose(found, expected, atol=1e-4)
    assert layer.mean is not None
    assert torch.allclose(layer.mean, 0.75 * first.mean((0, 2, 3)) + 0.25 * second.mean((0, 2, 3)), atol=1e-5)


def test_the_gradient_runs_through_the_batchs_own_statistics() -> None:
    """As with BatchNorm, a constant added to a channel changes nothing, so it has no gradient."""
    layer = RenormalisedNorm(nn.BatchNorm2d(3), 0.9)
    layer(images(0))
    x = images(1).requires_grad_()
    (layer(x) * torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert x.grad is not None and float(x.grad.abs().max()) > 1e-3
    assert torch.allclose(x.grad.sum((0, 2, 3)), torch.zeros(3), atol=1e-2)


def test_rare_classes_weigh_more() -> None:
    method = Delta(randomised(SmallNet()), DeltaConfig(frequencies=0.5, margin=1.0))
    logits = torch.tensor([[4.0, 0, 0, 0, 0]] * 3 + [[0, 4.0, 0, 0, 0]], requires_grad=True)
    probabilities = logits.detach().softmax(1)
    certainty = torch.exp(math.log(5) - entropy(logits.detach()))
    loss = method.objective(logits)
    assert loss is not None and float(loss.detach()) == pytest.approx(
        float((entropy(logits.detach()) * certainty).mean()), rel=1e-5
    )
    frequencies = 0.5 / 5 + 0.5 * probabilities.mean(0)
    assert method.frequencies is not None and torch.allclose(method.frequencies, frequencies)
    rarity = 1 / frequencies[torch.tensor([0, 0, 0, 1])]
    expected = float((entropy(logits.detach()) * certainty * rarity / rarity.mean()).mean())
    loss = method.objective(logits)
    assert loss is not None and float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_without_a_certain_sample_nothing_is_learnt() -> None:
    method = Delta(randomised(SmallNet()), DeltaConfig(margin=1e-6))
    before = [parameter.detach().clone() for parameter in method.parameters()]
    method(images())
    assert all(torch.equal(a, b) for a, b in zip(before, method.parameters(), strict=True))


def test_weights_and_biases_of_batch_norm_alone_learn_and_reset_forgets() -> None:
    model = randomised(SmallNet())
    method = Delta(model, DeltaConfig(margin=1.0))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(list(method.parameters())) == 2 * len(norms)
    first = [method(images(seed)) for seed in range(3)]
    assert method.saved_bytes(images()) > 0
    method.reset()
    assert all(torch.equal(method(images(seed)), was) for seed, was in enumerate(first))


def test_settings_out_of_range() -> None:
    with pytest.raises(UsageError, match="averages"):
        DeltaConfig(statistics=1)
