"""The modules whose criticality is measured: every convolution and linear weight, or groups that the user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd

from edgetta.errors import UsageError
from edgetta.offline.curvature import select_parameters


@dataclass(frozen=True)
class WeightGroup:
    """Weights that are perturbed and fine-tuned together, each within its own ball."""

    name: str
    parameters: tuple[str, ...]  # names of weight tensors

    @property
    def owners(self) -> tuple[str, ...]:
        """Names of the modules that hold the weights."""
        return tuple(dict.fromkeys(name.rpartition(".")[0] for name in self.parameters))


def weight_groups(model: nn.Module, groups: Mapping[str, Sequence[str]] | None = None) -> tuple[WeightGroup, ...]:
    """The groups of a model, in its order.

    Args:
        model: any module.
        groups: name -> names of modules or parameters; by default each convolution and linear layer's weight is a
            group of its own, named like the layer (Zhu et al. 2023: neither biases nor BatchNorms).

    Raises:
        UsageError: a name that the model does not have, or no group at all.
    """
    if groups is not None:
        found = tuple(
            WeightGroup(name, tuple(select_parameters(model, list(names)))) for name, names in groups.items()
        )
    else:
        found = tuple(
            WeightGroup(name, (f"{name}.weight",))
            for name, module in model.named_modules()
            if name and isinstance(module, (_ConvNd, nn.Linear))
        )
    if not found:
        raise UsageError("the model has neither convolutions nor linear layers; name groups of weights yourself")
    return found


def joined(name: str, groups: Sequence[WeightGroup]) -> WeightGroup:
    """Several groups as one, for joint criticality and joint fine-tuning."""
    return WeightGroup(name, tuple(dict.fromkeys(parameter for group in groups for parameter in group.parameters)))
