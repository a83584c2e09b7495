"""Input normalisation as part of the network, so that every network takes images in [0, 1].

A network that leaves its normalisation to the caller is wrong on the device sooner or later. The networks here own
a `normalise` module; a network from elsewhere gets one with `with_normalisation`. Its buffers are not part of the
state dictionary: published checkpoints load by their own names, and exported graphs hold the constants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgetta.errors import UsageError

Constants = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std, one of each per channel

CIFAR10: Constants = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
IMAGENET: Constants = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Constants = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IDENTITY: Constants = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Normalise(nn.Module):
    """`(x - mean) / std` per channel, for x of shape (N, C, H, W) in [0, 1].

    Raises UsageError where mean and std differ in length or a standard deviation is not a positive number.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = IDENTITY[0], std: Sequence[float] = IDENTITY[1]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(len(mean), 1, 1), persistent=False)
        self.register_buffer("std", torch.ones(len(mean), 1, 1), persistent=False)
        self.is_identity = True
        self.set(mean, std)

    def set(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Replace the constants, keeping their dtype and device."""
        means, deviations = [float(m) for m in mean], [float(s) for s in std]
        if len(means) != len(deviations) or len(means) not in (1, len(self.mean)):
            raise UsageError(
                f"normalisation has {len(means)} means and {len(deviations)} standard deviations for "
                f"{len(self.mean)} channels: give one of each per channel"
            )
        if not all(map(math.isfinite, means + deviations)) or min(deviations) <= 0:
            raise UsageError(f"normalisation mean {means}, std {deviations}: means must be finite and every std > 0")
        _check_scale(means, deviations)
        for buffer, values in ((self.mean, means), (self.std, deviations)):
            buffer.copy_(torch.tensor(values, device="cpu").view(-1, 1, 1).expand_as(buffer))
        self.is_identity = set(means) == {0.0} and set(deviations) == {1.0}

    def forward(self, x: Tensor) -> Tensor:
        return x if self.is_identity else (x - self.mean) / self.std

    def extra_repr(self) -> str:
        mean, std = ([round(value, 4) for value in buffer.flatten().tolist()] for buffer in (self.mean, self.std))
        return f"mean={mean}, std={std}"


def _check_scale(means: list[float], deviations: list[float]) -> None:
    """Refuse constants that no images in [0, 1] have: their mean lies in [0, 1], their deviation is at most 1.

    Networks that want values in [0, 255] divide by a small deviation (mean 0, std 1/255), which is allowed.
    """
    if min(means) >= 0 and max(means) <= 1 and max(deviations) <= 1:
        return
    given = f"mean {_listed(means)}, std {_listed(deviations)}"
    if min(means) >= 0 and 1 < max(means) <= 255 and 1 < max(deviations) <= 255:
        right = ([value / 255 for value in numbers] for numbers in (means, deviations))
        remedy = "mean {}, std {} is the same for them".format(*map(_listed, right))
        raise UsageError(f"normalisation {given} is on the scale of 0 to 255, and images here are in [0, 1]; {remedy}")
    if min(means) >= 0 and 1 < max(means) <= 255 and max(deviations) <= 1:
        right = ([value / 255 for value in numbers] for numbers in (means, deviations))
        remedy = "if it takes values from 0 to 255, mean {}, std {} is the same for them".format(*map(_listed, right))
        raise UsageError(f"normalisation {given} has a mean that no image in [0, 1] has; {remedy}")
    raise UsageError(
        f"normalisation {given} fits no images in [0, 1]: their means lie between 0 and 1 and their deviations are "
        "at most 1; ImageNet's are mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225"
    )


def _listed(numbers: list[float]) -> str:
    return ", ".join(f"{round(number, 4):g}" for number in numbers)


def with_normalisation(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """The same module, normalising its input first, its own module and weight names unchanged.

    A wrapper would put a prefix before every name, and cut points are module names; a child module would become one
    more layer of a Sequential. So the instance gets two buffers, `input_mean` and `input_std`, outside its state
    dictionary, and a class of its own: its former class with one line before `forward`.

    Raises UsageError where the constants are impossible or the module has other things of those names.
    """
    present = getattr(network, "normalise", None)
    if isinstance(present, Normalise):
        present.set(mean, std)
        return network
    constants = Normalise(mean, std)
    if not isinstance(network, _NormalisedInput):
        if constants.is_identity:
            return network
        if hasattr(network, "input_mean") or hasattr(network, "input_std"):
            raise UsageError(
                f"{type(network).__name__} already has something called input_mean or input_std; "
                "leave mean and std out and let the network normalise itself"
            )
        original = type(network)
        network.__class__ = type(f"Normalised{original.__name__}", (_NormalisedInput, original), {})
    device = next((tensor.device for tensor in network.state_dict().values()), torch.device("cpu"))
    network.register_buffer("input_mean", constants.mean.to(device), persistent=False)
    network.register_buffer("input_std", constants.std.to(device), persistent=False)
    return network


def with_probabilities_as_logits(network: nn.Module) -> nn.Module:
    """The same module, giving the logarithms of the probabilities that it gave: logits whose softmax these are."""
    original = type(network)
    network.__class__ = type(f"Logits{original.__name__}", (_LogarithmOutput, original), {})
    return network


def normalisation_of(network: nn.Module) -> Constants:
    """The mean and std of the normalisation given here; the identity where a network has none, or does its own."""
    own = getattr(network, "normalise", None)
    if isinstance(own, Normalise):
        return tuple(own.mean.flatten().tolist()), tuple(own.std.flatten().tolist())
    if isinstance(network, _NormalisedInput):
        return tuple(network.input_mean.flatten().tolist()), tuple(network.input_std.flatten().tolist())
    return IDENTITY


class _NormalisedInput(nn.Module):
    """Put before another class, it normalises what that class's forward sees."""

    input_mean: Tensor
    input_std: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x - self.input_mean) / self.input_std)  # type: ignore[misc]


class _LogarithmOutput(nn.Module):
    """Put before another class, it takes the logarithm of what that class's forward returns."""

    def forward(self, x: Tensor) -> Tensor:
        probabilities: Tensor = super().forward(x)  # type: ignore[misc]
        return probabilities.clamp_min(torch.finfo(torch.float32).tiny).log()
