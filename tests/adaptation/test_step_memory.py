"""The choice of what a step keeps: what it accepts, and that it takes part in every way to make a network."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import edgetta
from edgetta.adaptation.step_memory import FULL, StepMemory
from edgetta.errors import UsageError
from tests.adaptation.backbones import SmallNet, network_of, randomised, small_model


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"storage": "tiny"}, "recompute-int8"),
        ({"slice": -1}, "slice"),
        ({"slice": True}, "slice"),
        ({"local": 1}, "local"),
    ],
)
def test_bad_choices_name_themselves(settings: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        StepMemory(**settings)  # type: ignore[arg-type]


def test_it_cannot_be_changed_behind_a_step() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.slice = 3  # type: ignore[misc]


def test_local_stops_gradients_of_segments_that_could_pass_them() -> None:
    images = torch.rand(20, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradients = []
    for mode, memory in (("exact", StepMemory(local=True)), ("local", FULL), ("exact", FULL)):
        network = network_of(small_model(), "batch", mode)
        network.memory = memory
        logits, tape = network.forward(images)
        assert (tape.kept_bytes()["part 2: residuals"] > 0) == ((mode, memory) == ("exact", FULL))
        network.memory = FULL  # the tape remembers
        network.backward(tape, logits.cos(), 0.5)
        gradients.append(network.metas[0].conv.grad)  # type: ignore[union-attr]
    assert torch.equal(gradients[0], gradients[1]) and not torch.allclose(gradients[0], gradients[2], rtol=1e-2)


def test_the_module_takes_it() -> None:
    module = edgetta.adapt(randomised(SmallNet()), 2, input_shape=(3, 16, 16), memory=StepMemory(local=True))
    assert module.network.memory.local
