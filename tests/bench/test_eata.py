"""EATA against its equations: which samples count, with what weight, and what holds the weights back."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from edgetta.bench.baselines import BatchNormStatistics, Eata, EataConfig, Tent
from edgetta.bench.baselines.entropy import entropy
from edgetta.errors import UsageError
from tests.adaptation.backbones import SmallNet, randomised


def images(seed: int = 0, count: int = 24) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 0.3 + 0.6


def norms(model: nn.Module) -> set[str]:
    return {
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for parameter in ("weight", "bias")
    }


def test_a_step_is_the_gradient_of_equation_8() -> None:
    """Two SGD steps in float64: reliable samples alone, then also diverse ones, both weighted and anchored."""
    config = EataConfig("sgd", 0.1, 0.0, entropy_margin=0.84, similarity_margin=0.995, fisher_weight=3.0)
    model = randomised(SmallNet()).double()
    source = images(9).double()
    method = Eata(model, [source, images(8).double()], config)
    reference = copy.deepcopy(model).train()
    weights = {name: p for name, p in reference.named_parameters() if name in norms(reference)}
    start = {name: p.detach().clone() for name, p in weights.items()}

    fisher = {name: torch.zeros_like(p) for name, p in weights.items()}
    for batch in (source, images(8).double()):
        logits = reference(batch)
        loss = torch.nn.functional.nll_loss(logits.log_softmax(1), logits.argmax(1))
        for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            fisher[name] += gradient**2 / 2
    average, counts = None, []
    for seed in range(2):
        batch = images(seed).double()
        logits = reference(batch)
        p = logits.softmax(1)
        h = -(p * p.log()).sum(1)
        margin = 0.84 * math.log(5)
        chosen = h < margin
        if average is not None:
            cosine = (p @ average) / (p.norm(dim=1) * average.norm())
            chosen = chosen & (cosine < 0.995)
        counts.append((int((h < margin).sum()), int(chosen.sum())))
        mean = p[chosen].mean(0).detach()
        average = mean if average is None else 0.9 * average + 0.1 * mean
        loss = (torch.exp(margin - h.detach()) * h)[chosen].mean()
        loss = loss + 3.0 * sum((fisher[n] * (weights[n] - start[n]) ** 2).sum() for n in weights)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        assert torch.allclose(method(batch), logits, atol=1e-10)  # predicted before it learns
        with torch.no_grad():
            for weight, gradient in zip(weights.values(), gradients, strict=True):
                weight -= 0.1 * gradient
    assert 0 < counts[1][1] < counts[1][0] < 24, counts  # both filters had something to do
    adapted = dict(method.model.named_parameters())
    for name, parameter in reference.named_parameters():
        assert torch.allclose(adapted[name], parameter, atol=1e-9), name
        assert name in weights or torch.equal(adapted[name], dict(model.named_parameters())[name])


def test_nothing_moves_where_no_sample_is_reliable() -> None:
    model = randomised(SmallNet())
    method = Eata(model, config=EataConfig(entropy_margin=1e-6))
    start = copy.deepcopy(method.model.state_dict())
    assert torch.equal(method(images()), BatchNormStatistics(model)(images()))
    assert all(torch.equal(tensor, start[key]) for key, tensor in method.model.state_dict().items())
    assert method.average is None


def test_fisher_information_holds_the_weights_back() -> None:
    def distance(weight: float) -> float:
        config = EataConfig("sgd", 0.02, 0.0, 1.0, 1.0, fisher_weight=weight)
        method = Eata(randomised(SmallNet()), [images(9)], config)
        start = [parameter.detach().clone() for parameter in method.parameters()]
        for seed in range(6):
            method(images(seed))
        moved = zip(method.parameters(), start, method.fisher, strict=True)
        return sum(float((fisher * (a.detach() - b) ** 2).sum()) for a, b, fisher in moved)

    assert 0 < distance(50.0) < 0.8 * distance(0.0)


def test_it_lowers_the_entropy_and_keeps_what_tent_keeps() -> None:
    config = EataConfig(entropy_margin=1.0, similarity_margin=1.0)
    method = Eata(randomised(SmallNet()), [images(9)], config)
    first = entropy(method(images())).mean()
    for _ in range(20):
        last = entropy(method(images())).mean()
    assert last < first - 0.01
    model = randomised(SmallNet())
    assert Eata(model).saved_bytes(images()) == Tent(model).saved_bytes(images())


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UsageError, match="entropy margin in"):
        EataConfig(entropy_margin=0.0)
