"""The state of a training between two epochs: weights, momentum, the best weights so far, and what was measured."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from edgetta.errors import BundleError, UsageError
from edgetta.storage import atomic_write_bytes

_KEY = "edgetta.training"


@dataclass
class TrainingState:
    """What a checkpoint held; empty where there was none."""

    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None


def write_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor] | None,
    settings: dict[str, Any],
    history: list[dict[str, Any]],
) -> None:
    """Write the state after an epoch, whole or not at all."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in (best or {}).items()}
    for number, parameter in enumerate(_trained(optimizer)):
        momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{number}"] = momentum
    # Tensors may share memory, which the format refuses: each is written as a copy of its own.
    ready = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    atomic_write_bytes(path, save(ready, {_KEY: json.dumps({"settings": settings, "history": history})}))


def read_checkpoint(
    path: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any]
) -> TrainingState:
    """Put the state of `path` into the model and the optimizer, where there is such a file.

    Raises:
        UsageError: it belongs to a training with other settings.
        BundleError: it is damaged.
    """
    if path is None or not path.exists():
        return TrainingState()
    try:
        with safe_open(path, "pt") as file:
            info = json.loads(file.metadata()[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        written, history = info["settings"], list(info["history"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path} is no checkpoint of a training ({error}); remove it to start again") from error
    if written != settings:
        different = sorted(name for name in settings if written.get(name) != settings[name])
        raise UsageError(
            f"{path} belongs to a training with other settings ({', '.join(different)}); remove it to start again"
        )
    try:
        model.load_state_dict(_named(tensors, "model."))
    except RuntimeError as error:
        raise BundleError(f"{path} does not fit the model; remove it to start again") from error
    for number, parameter in enumerate(_trained(optimizer)):
        if f"momentum.{number}" in tensors:
            momentum = tensors[f"momentum.{number}"].to(parameter.device)
            optimizer.state[parameter]["momentum_buffer"] = momentum
    device = _trained(optimizer)[0].device
    return TrainingState(history, {name: value.to(device) for name, value in _named(tensors, "best.").items()})


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _trained(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
