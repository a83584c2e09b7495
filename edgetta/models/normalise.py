"""Input normalisation as part of the network, so that every network takes images in [0, 1].

A network that leaves its normalisation to the caller is wrong on the device sooner or later. The networks here own
a `normalise` module; a network from elsewhere gets one with `with_normalisation`. Its buffers are not part of the
state dictionary: published checkpoints load by their own names, and exported graphs hold the constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
        means, deviations = torch.tensor([float(m) for m in mean]), torch.tensor([float(s) for s in std])
        if len(means) != len(deviations) or len(means) not in (1, len(self.mean)):
            raise UsageError(
                f"normalisation has {len(means)} means and {len(deviations)} standard deviations for "
                f"{len(self.mean)} channels: give one of each per channel"
            )
        if not (torch.isfinite(means).all() and torch.isfinite(deviations).all() and (deviations > 0).all()):
            raise UsageError(
                f"normalisation mean {list(mean)}, std {list(std)}: means must be finite and every std > 0"
            )
        with torch.no_grad():
            self.mean.copy_(means.view(-1, 1, 1).expand_as(self.mean))
            self.std.copy_(deviations.view(-1, 1, 1).expand_as(self.std))
        self.is_identity = bool((means == 0).all() and (deviations == 1).all())

    def forward(self, x: Tensor) -> Tensor:
        return x if self.is_identity else (x - self.mean) / self.std

    def extra_repr(self) -> str:
        mean, std = ([round(value, 4) for value in buffer.flatten().tolist()] for buffer in (self.mean, self.std))
        return f"mean={mean}, std={std}"


def with_normalisation(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """The same module, normalising its input first, its own module and weight names unchanged.

    A wrapper would put a prefix before every name, and cut points are module names. So the instance gets a class of
    its own: its former class with one line before `forward`.

    Raises UsageError where the module already owns something called `normalise` that is not a `Normalise`.
    """
    present = getattr(network, "normalise", None)
    if isinstance(present, Normalise):
        present.set(mean, std)
        return network
    if present is not None:
        raise UsageError(
            f"{type(network).__name__} has an attribute `normalise` of its own: normalise inside the network"
        )
    network.add_module("normalise", Normalise(mean, std))
    original: Any = type(network)

    class NormalisedInput(original):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.normalise(x))

    NormalisedInput.__name__ = NormalisedInput.__qualname__ = f"Normalised{original.__name__}"
    network.__class__ = NormalisedInput
    return network
