"""ROID against its equations: the objective's gradient, which samples count, ensembling and prior correction."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from edgetta.bench.baselines.roid import (
    Roid,
    RoidConfig,
    other_view,
    prior_corrected,
    soft_likelihood_ratio,
    symmetric_cross_entropy,
)
from edgetta.errors import UsageError
from tests.adaptation.backbones import SmallNet, randomised


def images(seed: int = 0, count: int = 24) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 0.3 + 0.6


def test_the_objective_weighs_certain_and_diverse_samples() -> None:
    """The paper's weights, sample by sample, without the consistency term."""
    method = Roid(randomised(SmallNet()), RoidConfig(consistency=False))
    batch = images()
    logits = method.forward(batch).detach()
    p = logits.softmax(1)
    average = torch.full((5,), 0.2)
    diversity = torch.tensor([1 - float(average @ q / average.norm() / q.norm()) for q in p])
    certainty = torch.tensor([sum(float(x) * math.log(float(x)) for x in q) for q in p])
    diversity = (diversity - diversity.min()) / (diversity.max() - diversity.min())
    certainty = (certainty - certainty.min()) / (certainty.max() - certainty.min())
    expected = torch.tensor(0.0)
    for q, d, c in zip(p, diversity, certainty, strict=True):
        if d >= diversity.mean():
            ratio = sum(
                float(x.clamp(max=0.99)) * math.log(float(x.clamp(max=0.99) / (1 - x.clamp(max=0.99))) + 1e-5)
                for x in q
            )
            expected -= math.exp(3 * float(d * c)) * ratio
    assert float(method.objective(batch, logits)) == pytest.approx(float(expected) / 24, rel=1e-4)
    assert method.average is not None
    assert torch.allclose(method.average, 0.9 * average + 0.1 * p.mean(0), atol=1e-6)


def test_weights_stay_near_the_source() -> None:
    model = randomised(SmallNet())
    methods = {share: Roid(model, RoidConfig(learning_rate=1e-2, source_momentum=share)) for share in (1.0, 0.5, 0.0)}
    moved = {}
    for share, method in methods.items():
        start = [p.detach().clone() for p in method.parameters()]
        for seed in range(3):
            method(images(seed))
        moved[share] = sum(float((p.detach() - s).norm()) for p, s in zip(method.parameters(), start, strict=True))
    assert moved[0.0] == 0 < moved[0.5] < moved[1.0]


def test_reset_forgets_everything() -> None:
    method = Roid(randomised(SmallNet()))
    first = [method(images(seed)) for seed in range(2)]
    method.reset()
    assert all(torch.equal(method(images(seed)), was) for seed, was in enumerate(first))


def test_prior_correction_favours_what_the_batch_is_made_of() -> None:
    logits = torch.tensor([[2.0, 1.9, 0.0], [3.0, 0.0, 0.0], [4.0, 0.0, 0.0], [1.0, 1.01, 0.0]])
    assert logits.argmax(1).tolist() == [0, 0, 0, 1] and prior_corrected(logits).argmax(1).tolist() == [0, 0, 0, 0]


def test_the_losses_fall_with_certainty_and_agreement() -> None:
    flat, certain = torch.zeros(1, 4), torch.tensor([[5.0, 0.0, 0.0, 0.0]])
    assert float(soft_likelihood_ratio(certain)) < float(soft_likelihood_ratio(flat))
    other = torch.tensor([[0.0, 5.0, 0.0, 0.0]])
    assert float(symmetric_cross_entropy(certain, certain)) < float(symmetric_cross_entropy(certain, other))
    assert float(symmetric_cross_entropy(certain, other)) == pytest.approx(
        float(symmetric_cross_entropy(other, certain))
    )


def test_another_view_is_another_image_of_the_same_kind() -> None:
    batch = images()
    seen = other_view(batch, torch.Generator().manual_seed(0))
    assert seen.shape == batch.shape and not torch.allclose(seen, batch, atol=0.01)
    assert float(seen.min()) >= 0 and float(seen.max()) <= 1
    assert torch.equal(seen, other_view(batch, torch.Generator().manual_seed(0)))


def test_only_batch_norms_move() -> None:
    model = randomised(SmallNet())
    method = Roid(model, RoidConfig(learning_rate=1e-2))
    before = copy.deepcopy(method.model.state_dict())
    method(images())
    moved = {name for name, tensor in method.model.state_dict().items() if not torch.equal(tensor, before[name])}
    norms = {f"{n}.{p}" for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) for p in ("weight", "bias")}
    assert moved and moved <= norms


def test_settings_out_of_range() -> None:
    with pytest.raises(UsageError, match="temperature"):
        RoidConfig(temperature=0)
