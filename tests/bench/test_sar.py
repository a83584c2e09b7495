"""SAR: a step is the gradient at the sharp neighbour, and a collapse brings the source back."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from edgetta.bench.baselines import Sar, SarConfig
from edgetta.bench.baselines.entropy import entropy
from edgetta.errors import UsageError
from tests.adaptation.backbones import SmallNet, randomised


def images(seed: int = 0, count: int = 24) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 0.3 + 0.6


def test_a_step_is_that_of_equations_3_and_4() -> None:
    """One SGD step in float64 against autograd on another copy of the network."""
    config = SarConfig(0.1, 0.0, entropy_margin=0.84, neighbourhood=0.3, recovery=0.0)
    model = randomised(SmallNet()).double()
    batch = images().double()
    method = Sar(model, config)
    method(batch)
    reference = copy.deepcopy(model).train()
    norms = [m for m in reference.modules() if isinstance(m, nn.BatchNorm2d)]
    weights = [p for m in norms for p in (m.weight, m.bias)]
    first = entropy(reference(batch))
    kept = first < 0.84 * math.log(5)
    assert 0 < int(kept.sum()) < 24
    gradients = torch.autograd.grad(first[kept].mean(), weights)
    length = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    start = [w.detach().clone() for w in weights]
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight += 0.3 / length * gradient
    second = entropy(reference(batch))[kept]
    step = torch.autograd.grad(second[second < 0.84 * math.log(5)].mean(), weights)
    for now, was, gradient in zip(method.parameters(), start, step, strict=True):
        assert torch.allclose(now.detach(), was - 0.1 * gradient, atol=1e-9)


def test_a_collapse_brings_the_source_back() -> None:
    model = randomised(SmallNet())
    method = Sar(model, SarConfig(learning_rate=1e-3, entropy_margin=1.0, recovery=10.0))
    before = copy.deepcopy(method.model.state_dict())
    method(images())
    assert method.recoveries == 1 and method.average is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.model.state_dict().items())
    stays = Sar(model, SarConfig(learning_rate=1e-3, entropy_margin=1.0, recovery=0.0))
    stays(images())
    assert stays.recoveries == 0 and stays.average is not None


def test_no_reliable_sample_moves_nothing() -> None:
    method = Sar(randomised(SmallNet()), SarConfig(entropy_margin=1e-6))
    before = copy.deepcopy(method.model.state_dict())
    method(images())
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.model.state_dict().items())


def test_settings_out_of_range() -> None:
    with pytest.raises(UsageError, match="margin"):
        SarConfig(entropy_margin=0)
