"""The loss on fixed adversarial images, as a function of a few weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetta.errors import EdgettaError, UsageError
from edgetta.offline.attack import Attack, Proportion, adversarial_images, classified_right
from edgetta.offline.curvature import Processes
from edgetta.offline.rift.suffix import Suffix
from edgetta.offline.rift.weight_groups import WeightGroup


class NotRobustError(EdgettaError):
    """The model gives way to the attack as a coin would: there is no robustness to be critical for."""


@dataclass(frozen=True, eq=False)
class AdversarialSet:
    """Images as an attacker left them, made at the trained weights and fixed from there on (equation 3.3)."""

    clean: Tensor  # (N, C, H, W), as they were
    images: Tensor  # (N, C, H, W) float32 in [0, 1]
    labels: Tensor  # (N,)
    right: Tensor  # (N,) bool: still classified right

    @staticmethod
    def make(
        model: nn.Module, images: Tensor, labels: Tensor, attack: Attack, *, batch: int = 250, seed: int = 0
    ) -> AdversarialSet:
        """Attack images of training data.

        Raises:
            NotRobustError: the share that withstands is no more than that of guessing.
        """
        found = adversarial_images(model, images, labels, attack, batch=batch, seed=seed)
        right = classified_right(model, found, labels, batch)
        with torch.no_grad():
            classes = model(found[:1].to(next(model.parameters()).device)).shape[1]
        share = Proportion.of(right)
        if share.interval[0] <= 1 / classes:
            raise NotRobustError(
                f"only {100 * share.value:.1f} % of {len(right):,} images withstand {attack.name} at {attack.threat}, "
                f"no more than guessing among {classes} classes gives: robust criticality means nothing here. Train "
                "adversarially first, or measure at a smaller epsilon"
            )
        return AdversarialSet(images, found, labels, right)

    def first(self, count: int) -> AdversarialSet:
        """The first `count` images; the set lies in random order."""
        return AdversarialSet(self.clean[:count], self.images[:count], self.labels[:count], self.right[:count])

    def __len__(self) -> int:
        return len(self.labels)


class RobustLoss:
    """Mean cross-entropy over an adversarial set, and its gradient by the weights of one group.

    Only what follows the group's first module is computed anew. Under torch.distributed each process has a share of
    the images, and every process must make the same calls.

    Args:
        model: in evaluation mode, as `evaluation_mode` holds it.
        group: the weights that vary.
        data: the adversarial images.
        batch: images at a time.
        limit: bytes for kept activations, see `Suffix`.
    """

    def __init__(self, model: nn.Module, group: WeightGroup, data: AdversarialSet, batch: int, limit: int) -> None:
        parameters = dict(model.named_parameters())
        self.start = {name: parameters[name].detach() for name in group.parameters}
        self.processes = Processes()
        self.count = len(data)
        device = next(iter(parameters.values())).device
        # Processes share each batch, so that a step over one batch is the same however many they are.
        rows = [self._own(torch.arange(start, min(start + batch, len(data)))) for start in range(0, len(data), batch)]
        self.labels = [data.labels[some].to(device) for some in rows]
        self.suffix = Suffix(model, group.owners, [data.images[some].to(device) for some in rows], limit)
        self.share = self.processes.first(self.suffix.share)  # of the network that a pass computes, above 0 up to 1

    def at(self, weights: Mapping[str, Tensor]) -> tuple[float, float]:
        """Mean loss and accuracy (0 to 1) with these weights; the loss is infinite or NaN where they overflow."""
        total = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for number, labels in enumerate(self.labels):
                if not len(labels):
                    continue
                logits = self.suffix.logits(number, weights).float()
                total[0] += F.cross_entropy(logits, labels, reduction="sum").double().cpu()
                total[1] += (logits.argmax(1) == labels).sum().cpu()
        total = self.processes.sum(total.to(self._device())).cpu() / self.count
        return float(total[0]), float(total[1])

    def gradient(
        self, weights: Mapping[str, Tensor], numbers: Sequence[int] | None = None
    ) -> tuple[float, dict[str, Tensor]]:
        """Mean loss with these weights, and its gradient by each; None in place of a gradient counts as zeros.

        Args:
            numbers: of the batches to look at; by default all.
        """
        leaves = {name: value.detach().requires_grad_(True) for name, value in weights.items()}
        flat = torch.zeros(sum(value.numel() for value in leaves.values()), device=self._device())
        loss, seen = torch.zeros(2, device=self._device()), 0
        for number in range(len(self.labels)) if numbers is None else numbers:
            labels = self.labels[number]
            if not len(labels):
                continue
            seen += len(labels)
            with torch.enable_grad():
                value = F.cross_entropy(self.suffix.logits(number, leaves).float(), labels, reduction="sum")
                parts = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
            loss[0] += value.detach()
            pairs = zip(parts, leaves.values(), strict=True)
            flat += torch.cat([(torch.zeros_like(leaf) if part is None else part).flatten() for part, leaf in pairs])
        loss[1] = seen
        total = self.processes.sum(torch.cat([flat, loss]))
        mean = total[:-1] / total[-1]
        pieces = mean[:-1].split([value.numel() for value in leaves.values()])
        return float(mean[-1]), {
            name: piece.view_as(value) for piece, (name, value) in zip(pieces, leaves.items(), strict=True)
        }

    def _own(self, rows: Tensor) -> Tensor:
        share = self.processes.share(len(rows))
        return rows[share.start : share.stop]

    def _device(self) -> torch.device:
        return next(iter(self.start.values())).device


@torch.no_grad()
def sample_losses(model: nn.Module, images: Tensor, labels: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each image (N,), and whether it is classified right; on the CPU."""
    device = next(model.parameters()).device
    losses, right = [], []
    for some, theirs in zip(images.split(batch), labels.split(batch), strict=True):
        logits = model(some.to(device)).float().cpu()
        losses.append(F.cross_entropy(logits, theirs, reduction="none"))
        right.append(logits.argmax(1) == theirs)
    return torch.cat(losses), torch.cat(right)


def whole_gradient(
    model: nn.Module, groups: Sequence[WeightGroup], data: AdversarialSet, batch: int
) -> tuple[float, float, dict[str, Tensor | None]]:
    """Loss, accuracy, and the gradient by the weights of every group, from one pass; None where there is none.

    Raises:
        UsageError: no weight has a gradient.
    """
    names = list(dict.fromkeys(name for group in groups for name in group.parameters))
    everything = dict(model.named_parameters())
    leaves = {name: everything[name].detach().requires_grad_(True) for name in names}
    device = everything[names[0]].device
    processes = Processes()
    own = processes.share(len(data))
    gradients: dict[str, Tensor | None] = dict.fromkeys(names)
    total = torch.zeros(2, dtype=torch.float64, device=device)
    images, labels = data.images[own.start : own.stop], data.labels[own.start : own.stop]
    for some, theirs in zip(images.split(batch), labels.split(batch), strict=True):
        if not len(theirs):
            continue
        theirs = theirs.to(device)
        with torch.enable_grad():
            logits = torch.func.functional_call(model, leaves, (some.to(device),)).float()
            value = F.cross_entropy(logits, theirs, reduction="sum")
            none = [None] * len(leaves)
            parts = (
                torch.autograd.grad(value, list(leaves.values()), allow_unused=True) if value.requires_grad else none
            )
        total += torch.stack([value.detach().double(), (logits.argmax(1) == theirs).sum().double()])
        for name, part in zip(names, parts, strict=True):
            if part is not None:
                held = gradients[name]
                gradients[name] = part if held is None else held + part
    present = [
        any(flags) for flags in zip(*processes.gather([g is not None for g in gradients.values()]), strict=True)
    ]
    for name, there in zip(names, present, strict=True):
        held = gradients[name]
        gradients[name] = (
            processes.sum(torch.zeros_like(leaves[name]) if held is None else held) / len(data) if there else None
        )
    if not any(present):
        raise UsageError("none of the weights has a gradient; choose groups that the forward pass uses")
    loss, right = (processes.sum(total) / len(data)).tolist()
    return loss, right, gradients
