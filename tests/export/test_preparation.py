"""Preparation: accuracies that mean what they say, whatever the order of the data."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
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
    assert not np.array_equal(untouched.programs.shipped, network.programs.shipped)
    # Statistics of the stem see nothing that trains: those over all images.
    with torch.no_grad():
        seen = randomised(SmallNet()).stem[0](data(200).images.float() / 255)  # type: ignore[index]
    variance, mean = torch.var_mean(seen, (0, 2, 3), correction=0)
    at = network.programs.statistics.slice("stem.stem.1")
    np.testing.assert_allclose(network.programs.source.mean[at], mean.numpy(), atol=1e-4)
    np.testing.assert_allclose(network.programs.source.variance[at], variance.numpy(), rtol=1e-3)
    assert network.content is not None and network.content.images == 200
    assert untouched.content is not None, "without a warm-up, too"


def test_what_ships_survives_being_stored() -> None:
    network, _ = prepare(derived(), data(200), data(50, seed=1), None)
    again = derived().network().with_tensors(network.tensors())
    np.testing.assert_array_equal(again.programs.shipped, network.programs.shipped)
    np.testing.assert_array_equal(again.programs.source.variance, network.programs.source.variance)
    assert again.content is not None and network.content is not None
    np.testing.assert_allclose(again.content.noise_mean, network.content.noise_mean, rtol=1e-6)
    short = {name: tensor for name, tensor in network.tensors().items() if name != "metas.0.conv"}
    with pytest.raises(ValueError, match=r"'metas\.0\.conv'"):
        derived().network().with_tensors(short)
    with pytest.raises(ValueError, match=r"has shape \(3,\)"):
        derived().network().with_tensors({**network.tensors(), "metas.0.conv": torch.zeros(3)})


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
