"""Training by SGD with step decay: validated on images kept apart, resumable, in one process or many.

Random numbers belong to a seed, an epoch and a step, and are drawn for whole batches; processes take their share of
each batch. So an interrupted training goes on as if nothing had happened, and many processes do what one does, up to
rounding: BatchNorm sees the statistics of whole batches (see `shared_statistics`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from edgetta.errors import EdgettaError, UsageError
from edgetta.offline.crop_and_flip import CropAndFlip, crop_and_flip
from edgetta.offline.curvature import Processes
from edgetta.offline.pixels import as_floats
from edgetta.offline.shared_statistics import shared_statistics
from edgetta.offline.training_checkpoint import read_checkpoint, write_checkpoint

Progress = Callable[[int, int, str], None]  # steps done, steps in all, a note


@dataclass(frozen=True)
class Schedule:
    """SGD with momentum and a rate that falls in steps.

    Raises:
        UsageError: a number out of its range.
    """

    epochs: int = 110
    batch: int = 128  # over all processes
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_at: tuple[int, ...] = (100, 105)  # epochs that are done when the rate falls
    decay: float = 0.1
    augmentation: CropAndFlip = field(default_factory=CropAndFlip)
    mixed_precision: bool = True  # on CUDA
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1:
            raise UsageError(f"{self.epochs} epochs of batches of {self.batch}: give 1 or more of each")
        if not 0 < self.learning_rate < math.inf or not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise UsageError("the learning rate must be above 0, momentum from 0 to below 1, weight decay at least 0")

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0."""
        return self.learning_rate * self.decay ** sum(epoch >= at for at in self.decay_at)


@dataclass(frozen=True, eq=False)
class Batch:
    """One process's share of a batch, on the model's device."""

    images: Tensor  # (n, C, H, W) in [0, 1], augmented
    labels: Tensor  # (n,)
    whole: Tensor  # (N, C, H, W), the whole batch, for what is drawn at random
    share: slice  # where this share lies in it
    generator: torch.Generator

    def drawn(self, draw: Callable[[Tensor, torch.Generator], Tensor]) -> Tensor:
        """This share of what `draw` makes of the whole batch: the same, however many processes there are."""
        return draw(self.whole, self.generator)[self.share]


@dataclass(frozen=True)
class Epoch:
    """How an epoch ended."""

    epoch: int  # counted from 1
    loss: float  # mean over its steps
    score: float  # share (0 to 1) of the validation images


BatchLoss = Callable[[nn.Module, Batch], Tensor]
Score = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Model, images and labels to the mask (N,) of images that count as right; the same on every process."""


def train(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    batch_loss: BatchLoss,
    score: Score,
    schedule: Schedule,
    *,
    parameters: Sequence[str] | None = None,
    frozen_statistics: bool = False,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> list[Epoch]:
    """Train `model` in place; it ends with the weights of the epoch with the highest score, in evaluation mode.

    Args:
        model: on the device where it shall train.
        data: images (N, C, H, W), uint8 or floats in [0, 1], and labels (N,).
        validation: the same for the score; never trained on.
        batch_loss: mean loss over a batch's images.
        score: which validation images count; the first of several equally good epochs is kept.
        schedule: of SGD. Weight decay takes hold of what trains.
        parameters: names of those that train; None: all.
        frozen_statistics: every module stays in evaluation mode, so that no BatchNorm moves.
        checkpoint: a `.safetensors` path, written after every epoch, and continued from where it is there.
        progress: told of every step.

    Returns:
        One entry per epoch, those before an interruption included.

    Raises:
        UsageError: fewer images than a batch, no validation images, unknown parameters, or a checkpoint of another
            training.
        EdgettaError: a loss or gradient that is not finite; the last checkpoint stays.
        BundleError: a damaged checkpoint.
    """
    processes = Processes()
    _check(data, validation, schedule, processes)
    names = [name for name, _ in model.named_parameters()] if parameters is None else list(parameters)
    steps = len(data[1]) // schedule.batch
    settings = {
        "schedule": json.loads(json.dumps(asdict(schedule))),
        "images": len(data[1]),
        "validation": len(validation[1]),
        "parameters": names,
        "frozen_statistics": frozen_statistics,
    }
    with shared_statistics(model, processes), _training(model, names, frozen_statistics) as trained:
        optimizer = torch.optim.SGD(
            trained, schedule.learning_rate, momentum=schedule.momentum, weight_decay=schedule.weight_decay
        )
        state = read_checkpoint(checkpoint, model, optimizer, settings)
        history = [Epoch(**entry) for entry in state.history]
        best = state.best
        half = schedule.mixed_precision and trained[0].device.type == "cuda"
        scaler = torch.amp.GradScaler("cuda", enabled=half)
        for epoch in range(len(history), schedule.epochs):
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate(epoch)
            total = 0.0
            for step, batch in enumerate(_batches(data, schedule, epoch, processes, trained[0].device)):
                total += _step(model, batch, batch_loss, optimizer, scaler, half, processes, (epoch, step))
                if progress is not None:
                    done, note = epoch * steps + step + 1, f"loss {total / (step + 1):.3f}"
                    if history:
                        note += f", validation {100 * max(entry.score for entry in history):.2f} %"
                    progress(done, schedule.epochs * steps, note)
            if not _all_finite(trained):
                raise _diverged((epoch, steps - 1))
            right = float(score(model, *validation).float().mean())
            if not history or right > max(entry.score for entry in history):
                best = {name: value.detach().clone() for name, value in model.state_dict().items()}
            history.append(Epoch(epoch + 1, total / steps, right))
            if checkpoint is not None and processes.rank == 0:
                write_checkpoint(checkpoint, model, optimizer, best, settings, [asdict(entry) for entry in history])
    assert best is not None
    model.load_state_dict(best)
    return history


def _check(
    data: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor], schedule: Schedule, processes: Processes
) -> None:
    if schedule.batch < processes.count:
        raise UsageError(f"a batch of {schedule.batch} images cannot be shared by {processes.count} processes")
    if len(validation[1]) == 0:
        raise UsageError("there is no validation part to choose the epoch by; keep some of the training images apart")
    if len(data[1]) < schedule.batch:
        raise UsageError(
            f"{len(data[1])} images to train on are fewer than one batch of {schedule.batch}; give more images, or a "
            "smaller batch"
        )


@contextmanager
def _training(model: nn.Module, names: Sequence[str], frozen_statistics: bool) -> Iterator[list[nn.Parameter]]:
    """Modes and gradients for training; afterwards the flags are as before, and the model in evaluation mode."""
    parameters = dict(model.named_parameters())
    unknown = next((name for name in names if name not in parameters), None)
    if unknown is not None or not names:
        raise UsageError(f"the model has no parameter {unknown!r} to train")
    flags = [(parameter, parameter.requires_grad) for parameter in parameters.values()]
    try:
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in set(names))
        model.train(not frozen_statistics)
        yield [parameters[name] for name in names]
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
            parameter.grad = None
        model.eval()


def _batches(
    data: tuple[Tensor, Tensor], schedule: Schedule, epoch: int, processes: Processes, device: torch.device
) -> Iterator[Batch]:
    """This process's share of every batch of an epoch; what does not fill a batch is left out."""
    images, labels = data
    order = torch.randperm(len(labels), generator=_generator(schedule.seed, epoch, 0))
    share = processes.share(schedule.batch)
    for step in range(len(labels) // schedule.batch):
        chosen = order[step * schedule.batch : (step + 1) * schedule.batch]
        generator = _generator(schedule.seed, epoch, step + 1)
        whole = crop_and_flip(as_floats(images[chosen]), schedule.augmentation, generator).to(device)
        rows = slice(share.start, share.stop)
        yield Batch(whole[rows], labels[chosen[rows]].to(device), whole, rows, generator)


def _generator(seed: int, epoch: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 100_003 + epoch) * 1_000_003 + step)


def _step(
    model: nn.Module,
    batch: Batch,
    batch_loss: BatchLoss,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    half: bool,
    processes: Processes,
    place: tuple[int, int],
) -> float:
    """One step of SGD; returns the loss over the whole batch."""
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    weight = len(batch.labels) / len(batch.whole)
    failure: Exception | None = None
    value = torch.zeros(1, device=batch.whole.device)
    if len(batch.labels):
        try:
            with torch.autocast(batch.whole.device.type, enabled=half):
                loss = batch_loss(model, batch)
            value = weight * loss.detach().float().reshape(1)
            scaler.scale(weight * loss).backward()
            _finite(value, trained, half, place)
        except Exception as error:  # told to the other processes by sum(), which raises it again
            failure = error if _all_finite(trained) else _diverged(place)
    if processes.together:
        flat = [p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in trained]
        total = processes.sum(torch.cat([*flat, value.to(trained[0].dtype)]), failure)
        for parameter, part in zip(trained, total[:-1].split([p.numel() for p in trained]), strict=True):
            parameter.grad = part.view_as(parameter).clone()
        value = total[-1:]
    elif failure is not None:
        raise failure
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return float(value)


def _finite(value: Tensor, trained: Sequence[nn.Parameter], half: bool, place: tuple[int, int]) -> None:
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    if not gradients:
        raise UsageError("the loss does not depend on what shall train; choose other parameters")
    # In half precision a gradient may overflow; the scaler then leaves the step out and lowers its scale.
    if not bool(torch.isfinite(value)) or not (half or _all_finite(gradients)):
        raise _diverged(place)


def _all_finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _diverged(place: tuple[int, int]) -> EdgettaError:
    return EdgettaError(
        f"the loss or its gradient is NaN or infinite in epoch {place[0] + 1}, step {place[1] + 1}; lower the "
        "learning rate, and check the weights and images"
    )
