"""A network out of what training put around it: DataParallel, torch.compile, averaging; half precision as float32.

A bundle's names are those of the network itself, and edgetta computes in float32.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from edgetta.models.normalise import with_probabilities_as_logits

_INNER = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "AveragedModel": "module",
    "OptimizedModule": "_orig_mod",
}


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside wrappers of torch; itself where there are none."""
    while type(network).__name__ in _INNER and type(network).__module__.startswith("torch."):
        inner = getattr(network, _INNER[type(network).__name__], None)
        if not isinstance(inner, nn.Module):
            break
        network = inner
    return network


def in_float32(network: nn.Module, *, own: bool = True) -> tuple[nn.Module, str | None]:
    """The network in float32, and what it was in, None where it was in float32 already.

    With `own=False` it is somebody else's and a copy is converted.
    """
    tensors = (*network.parameters(), *network.buffers())
    others = sorted({_name(tensor) for tensor in tensors if tensor.is_floating_point()} - {"float32"})
    if not others:
        return network, None
    return (network if own else copy.deepcopy(network)).float(), " and ".join(others)


def answering_logits(network: nn.Module, answer: Tensor) -> bool:
    """Let a network that answers with probabilities answer with their logarithms, in place; whether it did so.

    `answer` is what it gives for some images, (N, classes).
    """
    total = answer.double().sum(1)
    if bool((answer < 0).any()) or not torch.allclose(total, torch.ones_like(total), atol=1e-4):
        return False
    with_probabilities_as_logits(network)
    return True


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
