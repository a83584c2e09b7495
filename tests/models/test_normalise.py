"""Normalisation is part of the network and leaves every name alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgetta.errors import UsageError
from edgetta.models.normalise import CIFAR10, IDENTITY, Normalise, normalisation_of, with_normalisation


def test_normalises_per_channel() -> None:
    images = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    mean, std = CIFAR10
    expected = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    assert torch.allclose(Normalise(mean, std)(images), expected, atol=1e-6)


def test_identity_returns_its_input_itself() -> None:
    images = torch.rand(1, 3, 2, 2)
    assert Normalise()(images) is images


def test_constants_are_not_in_the_state_dictionary_and_follow_the_dtype() -> None:
    layer = Normalise(*CIFAR10)
    assert layer.state_dict() == {}
    assert layer.double().mean.dtype == torch.float64


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.5, 0.5), (0.5, 0.5, 0.5)), ((0.5,) * 3, (0.5, 0.0, 0.5)), ((float("nan"),) * 3, (1.0,) * 3), ((), ())],
)
def test_refuses_constants_that_cannot_be(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(UsageError):
        Normalise().set(mean, std)


def test_a_network_from_elsewhere_keeps_its_names() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    names, images = list(network.state_dict()), torch.rand(2, 3, 8, 8)
    expected = network((images - 0.25) / 0.5)
    normalised = with_normalisation(network, (0.25,) * 3, (0.5,) * 3)
    assert list(normalised.state_dict()) == names
    assert [name for name, _ in normalised.named_modules()] == ["", "0", "1"]
    assert isinstance(normalised, nn.Sequential)
    assert torch.allclose(normalised(images), expected, atol=1e-6)
    assert torch.allclose(copy.deepcopy(normalised)(images), expected, atol=1e-6)


def test_a_second_normalisation_replaces_the_first() -> None:
    network = with_normalisation(nn.Conv2d(3, 4, 3), (0.1,) * 3, (1.0,) * 3)
    kind = type(network)
    network = with_normalisation(network, (0.5,) * 3, (0.25,) * 3)
    assert type(network) is kind
    assert normalisation_of(network) == ((0.5,) * 3, (0.25,) * 3)


def test_the_identity_changes_nothing() -> None:
    network = nn.Conv2d(3, 4, 3)
    assert type(with_normalisation(network, *IDENTITY)) is nn.Conv2d
    assert normalisation_of(network) == IDENTITY


def test_a_network_with_its_own_layer_keeps_it() -> None:
    network = nn.Module()
    network.normalise = Normalise(*CIFAR10)
    with_normalisation(network, (0.5,) * 3, (0.25,) * 3)
    assert network.normalise.std.flatten().tolist() == [0.25] * 3
    assert normalisation_of(network) == ((0.5,) * 3, (0.25,) * 3)


def test_refuses_a_module_with_something_else_of_that_name() -> None:
    network = nn.Conv2d(3, 4, 3)
    network.input_mean = 0.5
    with pytest.raises(UsageError, match="already has"):
        with_normalisation(network, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (
            (123.7, 116.3, 103.5),
            (58.4, 57.1, 57.4),
            r"on the scale of 0 to 255.*mean 0.4851, 0.4561, 0.4059, std 0.229,",
        ),
        (
            (123.7, 116.3, 103.5),
            (1, 1, 1),
            r"no image in \[0, 1\] has; .* mean 0.4851, 0.4561, 0.4059, std 0.0039, 0.0039",
        ),
        ((0.5, 0.5, 0.5), (58.4, 57.1, 57.4), r"fits no images in \[0, 1\]"),
        ((-0.4, 0.5, 0.5), (0.5, 0.5, 0.5), r"fits no images in \[0, 1\]"),
        ((300.0, 0.5, 0.5), (0.5, 0.5, 0.5), r"fits no images in \[0, 1\]"),
    ],
)
def test_constants_of_another_scale_are_refused_with_the_right_ones(
    mean: tuple[float, ...], std: tuple[float, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as error:
        Normalise(mean, std)
    assert "\n" not in str(error.value)


def test_networks_that_want_bytes_are_allowed() -> None:
    assert torch.allclose(Normalise((0, 0, 0), (1 / 255,) * 3)(torch.ones(1, 3, 2, 2)), torch.tensor(255.0))
