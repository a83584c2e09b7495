"""Attack many images batch by batch, and ask what a model says to them.

Under torch.distributed processes take turns with the batches, and all get the whole result, the same as one process
gets: every process must make the same calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from edgetta.errors import EdgettaError, UsageError
from edgetta.offline.attack.evaluation_mode import evaluation_mode
from edgetta.offline.attack.loss import Classifier
from edgetta.offline.attack.threat import Threat
from edgetta.offline.curvature import Processes
from edgetta.offline.pixels import as_floats

Progress = Callable[[int, int], None]  # images done, images in all


class Attack(Protocol):
    """PGD, APGD, AutoAttack, or anything that finds a point in the threat's ball that the model gets wrong."""

    @property
    def threat(self) -> Threat: ...

    @property
    def name(self) -> str: ...

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor: ...


def adversarial_images(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    attack: Attack,
    *,
    only: Tensor | None = None,
    batch: int = 250,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """The worst point that the attack finds for each image: (N, C, H, W) float32 in [0, 1], on the CPU.

    Args:
        model: any module or function of torch; where it computes is where the attack runs.
        images: uint8, or floats in [0, 1].
        labels: (N,), from 0 to classes - 1.
        only: mask (N,) of the images to attack, such as those that are right so far; the others come back as they are.
        batch: images at a time; each batch has its own random numbers, from `seed` and its place.

    Raises:
        UsageError: labels that the model has no output for, or a different number of them than images.
        EdgettaError: a gradient that is not finite.
    """
    device = device_of(model)
    check_labels(model, images, labels)
    if only is not None:
        points = as_floats(images).clone()
        if bool(only.any()):
            points[only] = adversarial_images(
                model, images[only], labels[only], attack, batch=batch, seed=seed, progress=progress
            )
        return points

    def attacked(start: int) -> Tensor:
        rows = slice(start, start + batch)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
        points = attack.perturb(model, as_floats(images[rows]).to(device), labels[rows].to(device), generator)
        if progress is not None:
            progress(min(start + batch, len(labels)), len(labels))
        return points.cpu()

    return _shared(attacked, len(labels), batch)


@torch.no_grad()
def classified_right(model: Classifier, images: Tensor, labels: Tensor, batch: int = 250) -> Tensor:
    """Which images (N,) the model classifies right, in evaluation mode; the mask is on the CPU.

    Raises:
        EdgettaError: logits that are NaN or infinite.
    """
    device = device_of(model)

    def right(start: int) -> Tensor:
        rows = slice(start, start + batch)
        logits = model(as_floats(images[rows]).to(device))
        if not bool(torch.isfinite(logits).all()):
            raise EdgettaError("the model answers with NaN or infinite logits; check the weights")
        return logits.argmax(1).cpu() == labels[rows]

    with evaluation_mode(model):
        return _shared(right, len(labels), batch)


def check_labels(model: Classifier, images: Tensor, labels: Tensor) -> None:
    """Find what would be wrong with labels before anything long begins.

    Raises:
        UsageError: no images, another number of labels, or labels that the model has no output for.
    """
    if len(images) != len(labels) or len(images) == 0:
        raise UsageError(
            f"{len(images)} images and {len(labels)} labels: give one label for each, and one image at least"
        )
    with torch.no_grad(), evaluation_mode(model):
        classes = model(as_floats(images[:1]).to(device_of(model))).shape[1]
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise UsageError(
            f"a label is {wrong}, and the model has {classes} classes, from 0; give data of its classes, or weights "
            "for these"
        )


def _shared(compute: Callable[[int], Tensor], count: int, batch: int) -> Tensor:
    """The results for batches that begin at 0, batch, ..., one after another; processes take turns with batches."""
    if batch < 1:
        raise UsageError(f"batch size {batch} is not possible; give 1 or more")
    processes = Processes()
    starts = list(range(0, count, batch))
    found: dict[int, Tensor] = {}
    failure: Exception | None = None
    try:
        for start in starts[processes.rank :: processes.count]:
            found[start] = compute(start)
    except Exception as error:  # told to the other processes by sum(), which raises it again
        failure = error
    if processes.together or failure is not None:
        cuda = torch.cuda.is_available() and torch.distributed.get_backend() == "nccl" if processes.together else False
        processes.sum(torch.zeros(1, device="cuda" if cuda else "cpu"), failure)
    everything = {start: part for share in processes.gather(found) for start, part in share.items()}
    return torch.cat([everything[start] for start in starts]) if starts else torch.zeros(0, dtype=torch.bool)


def device_of(model: Classifier) -> torch.device:
    """Where a model computes: where its weights are; the CPU for a function."""
    if isinstance(model, nn.Module):
        return next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))
    return torch.device("cpu")
