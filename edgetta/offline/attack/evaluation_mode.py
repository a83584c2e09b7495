"""A model as it is on the device, for as long as it is attacked or measured; afterwards every module is as before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def evaluation_mode(model: Callable[..., Any]) -> Iterator[None]:
    """Every module in evaluation mode, no gradients of parameters (which an attack does not need, and pays for).

    The mode of each module and the `requires_grad` of each parameter are put back exactly: a BatchNorm that was frozen
    in a model that trains stays frozen. A function that is no module is left alone.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for module, _ in modes:
            module.training = False
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
