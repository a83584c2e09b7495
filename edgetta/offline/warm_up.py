"""Warm-up: train all that adapts on labelled source data, through the very graph that will ship.

Cross-entropy, with the gradient through the statistics of each batch; the backbone's other weights stay (EcoTTA,
section 3.1). Resumable: a checkpoint after every epoch holds the parameters, the optimizer and the random state. Under
torch.distributed the processes share what is measured; steps use the statistics of whole batches, so each process does
every step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from edgetta.engines.contract import Array, Mixing, Moments, ProgramSet
from edgetta.errors import BundleError, EdgettaError, UsageError
from edgetta.offline.augment import Augmentation, augment
from edgetta.offline.curvature import Processes
from edgetta.offline.differentiable import DifferentiableNetwork
from edgetta.offline.network import Network
from edgetta.offline.pixels import as_floats
from edgetta.storage import atomic_write_bytes

Progress = Callable[[int, int, float], None]  # steps done, steps in all, running loss


@dataclass(frozen=True)
class WarmUpConfig:
    """The published schedule: SGD 5e-2, momentum 0.9, one epoch of linear ramp, x 0.2 after 30, 60 and 80 percent."""

    epochs: int = 10
    batch: int = 64
    learning_rate: float = 5e-2
    momentum: float = 0.9
    ramp_epochs: float = 1.0
    decay_at: tuple[float, ...] = (0.3, 0.6, 0.8)  # shares of all epochs
    decay: float = 0.2
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate at a step, counted from 0."""
        epoch = step / steps_per_epoch
        ramp = min(self.ramp_epochs, self.epochs / 4)
        if ramp and epoch < ramp:
            return self.learning_rate * (step + 1) / (ramp * steps_per_epoch)
        return self.learning_rate * self.decay ** sum(epoch >= share * self.epochs for share in self.decay_at)


@dataclass(frozen=True)
class WarmUpReport:
    """Accuracy (0 to 1) on clean held-out images, adaptation off, before and after."""

    accuracy_before: float
    accuracy_after: float
    steps: int
    final_loss: float


def warm_up(
    network: Network,
    images: Tensor,
    labels: Tensor,
    held_out: tuple[Tensor, Tensor],
    config: WarmUpConfig | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    *,
    own_statistics: bool = True,
) -> tuple[Network, WarmUpReport]:
    """The network with trained parameters; its statistics of training are still those from before.

    images     (N, C, H, W), uint8 or float in [0, 1]; labels (N,) int64
    held_out   images and labels for the accuracy before and after, not trained on
    checkpoint a `.safetensors` path: written after every epoch, and resumed from when it is there
    own_statistics  normalise with each batch's own statistics, also for the accuracies; False: with those of training,
               for networks whose BatchNorms are folded
    Raises `UsageError` when there are fewer images than a batch or labels out of range, `EdgettaError` when the loss
    stops being finite (the last checkpoint stays).
    """
    config = config or WarmUpConfig()
    if len(images) < config.batch:
        raise UsageError(f"warm-up needs at least one batch of {config.batch} images, got {len(images)}")
    classes = network.programs.classes
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UsageError(f"labels must lie in 0..{classes - 1}, got {int(labels.min())}..{int(labels.max())}")
    statistics = None if own_statistics else network.programs.source
    model = DifferentiableNetwork(network.programs, statistics, moving=False, distances=False)
    optimizer = torch.optim.SGD(model.parameters(), config.learning_rate, config.momentum)
    generator = torch.Generator().manual_seed(config.seed)
    per_epoch = len(images) // config.batch
    settings = {"config": json.loads(json.dumps(asdict(config))), "images": len(images)}
    first, before, loss = 0, math.nan, math.nan
    processes = Processes()
    if processes.first(checkpoint is not None and checkpoint.exists()):
        assert checkpoint is not None
        first, before, loss = _resume(checkpoint, model, optimizer, generator, settings)
        processes.gather(None)  # nobody writes before all have read
    else:
        before = accuracy(network, *held_out, own_statistics=own_statistics)
    for epoch in range(first, config.epochs):
        order = torch.randperm(len(images), generator=generator)
        for i in range(per_epoch):
            step = epoch * per_epoch + i
            chosen = order[i * config.batch : (i + 1) * config.batch]
            batch = augment(as_floats(images[chosen]), config.augmentation, generator)
            for group in optimizer.param_groups:
                group["lr"] = config.rate(step, per_epoch)
            value = warm_up_step(model, batch, labels[chosen], optimizer)
            if not math.isfinite(value):
                raise EdgettaError(
                    f"warm-up loss is not finite at step {step}; lower the rate (now {config.learning_rate:g})"
                )
            loss = value if math.isnan(loss) else 0.95 * loss + 0.05 * value
            if progress is not None:
                progress(step + 1, config.epochs * per_epoch, loss)
        if checkpoint is not None and processes.rank == 0:
            _save(
                checkpoint,
                model,
                optimizer,
                generator,
                {**settings, "epoch": epoch + 1, "before": before, "loss": loss},
            )
    trained = network.shipping(model.vector().numpy())
    after = accuracy(trained, *held_out, own_statistics=own_statistics)
    return trained, WarmUpReport(before, after, config.epochs * per_epoch, loss)


def warm_up_step(
    model: DifferentiableNetwork, images: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer
) -> float:
    """One supervised step; returns the loss, and moves nothing when it is not finite."""
    optimizer.zero_grad(set_to_none=True)
    loss = torch.nn.functional.cross_entropy(model(images)[0], labels)
    value = float(loss.detach())
    if not math.isfinite(value):
        return value
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not bool(torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all()):
        return math.nan
    optimizer.step()
    return value


def accuracy(
    network: Network, images: Tensor, labels: Tensor, batch: int = 128, *, own_statistics: bool = True
) -> float:
    """Share of images classified right, adaptation off; processes share the batches.

    own_statistics   normalise with those of each batch; False: with those of training
    """
    processes = Processes()
    right = 0
    for i in range(0, len(images), batch)[processes.rank :: processes.count]:
        logits = _logits(network, as_floats(images[i : i + batch]).numpy(), own_statistics)
        right += int((torch.from_numpy(logits).argmax(1) == labels[i : i + batch]).sum())
    return sum(processes.gather(right)) / max(1, len(images))


def _logits(network: Network, images: Array, own_statistics: bool) -> Array:
    programs: ProgramSet = network.programs
    if not own_statistics:
        return network.engine.predict(images, programs.shipped, programs.source)
    mixing = Mixing.plain(Moments(programs.source.mean, programs.source.variance), 1.0)
    return network.engine.measure(images, programs.shipped, mixing)[0]


def _save(
    path: Path,
    model: DifferentiableNetwork,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    info: dict[str, Any],
) -> None:
    tensors = {f"network.{name}": parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    for i, parameter in enumerate(model.parameters()):
        buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            tensors[f"momentum.{i}"] = buffer
    tensors["generator"] = generator.get_state()
    atomic_write_bytes(path, save(tensors, {"edgetta.warm_up": json.dumps(info)}))


def _resume(
    path: Path,
    model: DifferentiableNetwork,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    settings: dict[str, Any],
) -> tuple[int, float, float]:
    try:
        with safe_open(path, "pt") as file:
            info = json.loads(file.metadata()["edgetta.warm_up"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if {key: info[key] for key in settings} != settings:
            raise UsageError(f"{path} belongs to a warm-up with other settings or data; remove it to start again")
        own = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
        expected = {name: parameter.shape for name, parameter in model.named_parameters()}
        if {name: tensor.shape for name, tensor in own.items()} != expected:
            raise ValueError("it is another network's")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(own[name])
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise BundleError(f"{path} is not a checkpoint of this warm-up ({error}); remove it to start again") from error
    except Exception as error:
        if isinstance(error, EdgettaError):
            raise
        raise BundleError(f"{path} cannot be read ({error}); remove it to start again") from error
    for i, parameter in enumerate(model.parameters()):
        if f"momentum.{i}" in tensors:
            optimizer.state[parameter]["momentum_buffer"] = tensors[f"momentum.{i}"].clone()
    generator.set_state(tensors["generator"])
    return int(info["epoch"]), float(info["before"]), float(info["loss"])
