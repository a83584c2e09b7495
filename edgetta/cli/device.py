"""`--device` of the verbs that compute with torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgetta.errors import UsageError

if TYPE_CHECKING:
    import torch


def torch_device(name: str) -> torch.device:
    """The device of that name; under `torchrun` plain `cuda` is each process's own GPU.

    Raises:
        UsageError: there is no such device.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name} is unknown; write cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: there is no CUDA device here; write cpu")
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else device
