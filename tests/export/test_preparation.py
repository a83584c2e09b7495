"""Preparation: accuracies that mean what they say, whatever the order of the data."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from edgetta.errors import UsageError
from edgetta.export.preparation import check, prepare, source_accuracy
from edgetta.export.recipe import Derived, Recipe
from edgetta.models.model import Model
from edgetta.offline.augment import Augmentation
from edgetta.offline.warm_up import WarmUpConfig
from edgetta.sources.labelled import Labelled
from tests.adaptation.backbones import SmallNet, randomised, small_model

PLAIN = Augmentation(jitter=0, blur=0, grey=0)
CONFIG = WarmUpConfig(epochs=2, batch=16, augmentation=PLAIN)


@functools.cache
def derived() -> Derived:
    backbone = Model(randomised(SmallNet()), "small", (3, 16, 16), 5)
    return Derived(Recipe("small"), backbone, small_model(), "given")


def data(count: int, seed: int = 0) -> Labelled:
    """Five brightnesses, sorted by class."""
    labels = torch.arange(count) * 5 // count
    noise = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    images = 40 * labels[:, None, None, None] + 60 * noise
    return Labelled(images.to(torch.uint8), labels, None, "brightness")


def test_the_order_of_the_data_does_not_matter_for_what_is_measured() -> None:
    held_out = data(150, seed=1)
    in_order, mixed = (prepare(derived(), data(200), d, None)[1] for d in (held_out, held_out.shuffled(7)))
    assert in_order.source_accuracy == mixed.source_accuracy
    assert in_order.accuracy_running == mixed.accuracy_running
    assert abs(in_order.accuracy_after - mixed.accuracy_after) < 0.1, "batches are mixtures in either case"
    assert in_order.accuracy_before == in_order.accuracy_after and in_order.steps == 0 and in_order.final_loss is None


def test_source_accuracy_is_that_of_the_backbone() -> None:
    held_out = data(150, seed=1)
    with torch.no_grad():
        guesses = derived().model.module(held_out.images.float() / 255).argmax(1)
    assert source_accuracy(derived(), held_out) == pytest.approx(float((guesses == held_out.labels).float().mean()))


def test_warm_up_moves_weights_and_settles_statistics() -> None:
    untouched, _ = prepare(derived(), data(200), data(50, seed=1), None)
    network, report = prepare(derived(), data(200), data(50, seed=1), CONFIG)
    assert report.steps == 24 and report.final_loss is not None and report.seconds > 0
    before, after = untouched.state_dict(), network.state_dict()
    assert not torch.equal(before["metas.0.conv"], after["metas.0.conv"])
    # Statistics of the stem see nothing that trains: averages over mixed batches, close to those over all images.
    images = data(200).images.float() / 255
    network.stem.forward(images, keep=False, momentum=1.0)
    settled = {name: value for name, value in after.items() if name.startswith("stem.")}
    assert settled
    for name, value in network.state_dict().items():
        if name in settled:
            torch.testing.assert_close(settled[name], value, rtol=0.05, atol=0.01)


def test_what_would_stop_it_is_found_first() -> None:
    small, other = data(10), replace(data(10), labels=torch.full((10,), 5))
    with pytest.raises(UsageError, match="10 images to train on are fewer than one batch of 16"):
        check(Recipe("small"), 5, small, small, CONFIG)
    for train, held_out in ((other, small), (small, other)):
        with pytest.raises(UsageError, match="brightness has the label 5, and the model has 5 classes, from 0"):
            check(Recipe("small"), 5, train, held_out, None)
    with pytest.raises(UsageError, match="start at random and need the warm-up"):
        check(Recipe("small", initialisation="published"), 5, small, small, None)
    check(Recipe("small"), 5, small, small, None)
