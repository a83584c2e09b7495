"""Clean, robust and corrupted accuracy of a model, and two models compared on the same adversarial images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from edgetta.offline.attack.adversarial_images import (
    Attack,
    Progress,
    adversarial_images,
    check_labels,
    classified_right,
)
from edgetta.offline.attack.confidence import PairedLoss, Proportion, all_right
from edgetta.offline.attack.loss import Classifier

Images = tuple[Tensor, Tensor]
"""Images (N, C, H, W), uint8 or floats in [0, 1], and their labels (N,)."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Which images a model classified right: as they are, attacked, and corrupted in several ways."""

    clean: Tensor  # (N,) bool
    robust: Tensor | None = None  # (N,) bool: right, and still right under attack; None where nobody attacked
    corrupted: Mapping[str, Tensor] = field(default_factory=dict)  # by name of the corruption, (N,) bool each

    @property
    def corrupted_all(self) -> Tensor:
        """All corruptions one after another: their mean is the mean accuracy."""
        return torch.cat(list(self.corrupted.values()))

    def to_json(self) -> dict[str, Any]:
        """Accuracies (0 to 1) with their intervals, by name."""
        found: dict[str, Any] = {"clean": _json(self.clean)}
        if self.robust is not None:
            found["robust"] = _json(self.robust)
        if self.corrupted:
            found["corrupted"] = _json(self.corrupted_all)
            found["corruptions"] = {name: _json(mask) for name, mask in self.corrupted.items()}
        return found


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two models on the same images, the same corruptions and the same adversarial images."""

    first: Evaluation
    second: Evaluation

    def clean_loss(self) -> PairedLoss:
        return PairedLoss.of(self.first.clean, self.second.clean)

    def robust_loss(self) -> PairedLoss:
        assert self.first.robust is not None and self.second.robust is not None
        return PairedLoss.of(self.first.robust, self.second.robust)


def evaluate(
    model: Classifier,
    images: Tensor,
    labels: Tensor,
    attack: Attack | None = None,
    *,
    corrupted: Mapping[str, Images] | None = None,
    batch: int = 250,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model, in evaluation mode; every module's mode is as before afterwards.

    Args:
        images: (N, C, H, W), uint8 or floats in [0, 1].
        labels: (N,).
        attack: for the robust accuracy; images that are wrong already count as not robust.
        corrupted: images under corruptions with their labels, by name.
        progress: told of attacked images.

    Raises:
        As `adversarial_images` and `classified_right`.
    """
    check_labels(model, images, labels)
    clean = classified_right(model, images, labels, batch)
    robust = None
    if attack is not None:
        found = adversarial_images(
            model, images, labels, attack, only=clean, batch=batch, seed=seed, progress=progress
        )
        robust = clean & classified_right(model, found, labels, batch)
    others = {name: classified_right(model, *pairs, batch) for name, pairs in (corrupted or {}).items()}
    return Evaluation(clean, robust, others)


def compare(
    first: Classifier,
    second: Classifier,
    images: Tensor,
    labels: Tensor,
    attack: Attack,
    *,
    corrupted: Mapping[str, Images] | None = None,
    batch: int = 250,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Measure two models on the same inputs.

    Each model is attacked, and each must withstand what was found against either: an attack that happened to fail on
    one of them does not count in its favour.

    Raises:
        As `evaluate`.
    """
    models = (first, second)
    for model in models:
        check_labels(model, images, labels)
    found: list[Tensor] = []
    for number, model in enumerate(models):

        def tell(done: int, total: int, before: int = number) -> None:
            if progress is not None:
                progress(done + before * total, len(models) * total)

        found.append(adversarial_images(model, images, labels, attack, batch=batch, seed=seed, progress=tell))
    measured = []
    for model in models:
        plain = evaluate(model, images, labels, corrupted=corrupted, batch=batch)
        robust = all_right([plain.clean, *(classified_right(model, points, labels, batch) for points in found)])
        measured.append(Evaluation(plain.clean, robust, plain.corrupted))
    return Comparison(measured[0], measured[1])


def _json(right: Tensor) -> dict[str, float | int]:
    share = Proportion.of(right)
    low, high = share.interval
    return {"accuracy": share.value, "low": low, "high": high, "images": share.count}
