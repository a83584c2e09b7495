"""A bundle as a method: it learns, it does not when off, and it goes back to the state that was kept."""

from __future__ import annotations

import torch
from torch import Tensor

from edgetta.bench.accuracy.camera import snapshot
from edgetta.bench.accuracy.deployed import Deployed
from tests.small_bundle import whole_bundle


def images(seed: int, count: int = 32) -> Tensor:
    shape = (count, *Deployed(whole_bundle()).runtime.bundle.input_shape)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_the_bundles_own_settings_learn_and_off_does_not() -> None:
    on, off = Deployed(whole_bundle()), Deployed(whole_bundle(), "off")
    for seed in range(6):
        on(images(seed)), off(images(seed))
    assert on.runtime.config.when == "every 2" and off.runtime.config.when == "off"
    assert on.runtime.adapter.state.updates > 0 and off.runtime.adapter.state.updates == 0
    assert not torch.equal(on(images(9)), off(images(9)))


def test_back_to_the_state_that_was_kept_as_often_as_wanted() -> None:
    method = Deployed(whole_bundle())
    first = method(images(0))
    back = snapshot(method)
    then = [method(images(seed)) for seed in (1, 2)]
    for _ in range(2):
        assert all(torch.allclose(back()(images(1)), was, atol=1e-6) for was in then[:1])
    method.reset()
    assert torch.equal(method(images(0)), first)
