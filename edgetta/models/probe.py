"""Ask a network what it answers with, by running two grey images through it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgetta.errors import EdgettaError


def probe(network: nn.Module, spec: str, shape: tuple[int, int, int]) -> int:
    """Run two grey images through the network and return the number of classes it answers with.

    Raises EdgettaError as `answer` does.
    """
    return int(answer(network, spec, shape).shape[1])


def answer(network: nn.Module, spec: str, shape: tuple[int, int, int]) -> Tensor:
    """What the network says of two grey images, (2, classes).

    Raises EdgettaError where it fails at this input shape, or returns something else than logits of at least two
    classes.
    """
    device = next((tensor.device for tensor in network.state_dict().values()), torch.device("cpu"))
    images = torch.full((2, *shape), 0.5, device=device)
    try:
        with torch.no_grad():
            logits = network(images)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EdgettaError(
            f"{spec} does not run on images of shape {shape} ({reason[:200]}); give the shape it takes as input_shape"
        ) from error
    if not isinstance(logits, Tensor):
        raise EdgettaError(
            f"{spec} returns a {type(logits).__name__}; edgetta adapts classifiers, which return logits"
        )
    if logits.ndim != 2 or logits.shape[0] != 2:
        raise EdgettaError(f"{spec} returns shape {tuple(logits.shape)} for two images, not logits (2, classes)")
    if logits.shape[1] < 2:
        raise EdgettaError(
            f"{spec} returns one number per image; edgetta adapts classifiers of at least 2 classes. Where that "
            "number is the logit of a sigmoid, return torch.cat([-x / 2, x / 2], 1), whose softmax says the same"
        )
    return logits
