"""RDumb is ETA that starts anew."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgetta.bench.baselines import Eata, EataConfig, Rdumb
from edgetta.errors import UsageError
from tests.adaptation.backbones import SmallNet, randomised

CONFIG = EataConfig(learning_rate=1e-2, entropy_margin=1.0, similarity_margin=1.1)


def images(seed: int) -> Tensor:
    return torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 0.3 + 0.6


def test_after_its_period_it_is_as_at_the_start() -> None:
    model = randomised(SmallNet())
    method, reference = Rdumb(model, CONFIG, period=2), Eata(model, None, CONFIG)
    for seed in range(2):
        assert torch.equal(method(images(seed)), reference(images(seed)))
    fresh = Eata(model, None, CONFIG)
    expected = [fresh(images(seed)) for seed in (2, 3)]
    assert not torch.allclose(reference(images(2)), expected[0], atol=1e-4)
    assert torch.equal(method(images(2)), expected[0]) and torch.equal(method(images(3)), expected[1])


def test_a_period_of_nothing() -> None:
    with pytest.raises(UsageError, match="at least one batch"):
        Rdumb(randomised(SmallNet()), CONFIG, period=0)
