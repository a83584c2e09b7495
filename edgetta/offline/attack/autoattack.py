"""AutoAttack (Croce and Hein 2020), the standard ensemble, through the optional package `pyautoattack`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from edgetta.errors import MissingDependencyError, UsageError
from edgetta.offline.attack.evaluation_mode import evaluation_mode
from edgetta.offline.attack.loss import Classifier
from edgetta.offline.attack.threat import Threat

RIVALS = 9
"""Classes that the targeted attacks of the standard version aim at, where there are so many."""


@dataclass(frozen=True)
class AutoAttack:
    """APGD with cross-entropy, targeted APGD with DLR, targeted FAB, and Square, one after another.

    The ensemble is made for static models; for one that changes as it predicts it says nothing.
    """

    threat: Threat = field(default_factory=Threat)

    @property
    def name(self) -> str:
        return "AutoAttack (standard)"

    def perturb(self, model: Classifier, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """A point of each image that fools the model where the ensemble finds one, as `PGD.perturb`.

        Raises:
            MissingDependencyError: pyautoattack is not installed.
            UsageError: fewer than 4 classes, for which the targeted DLR loss is not defined.
        """
        attack_class = _package().AutoAttack
        seed = int(torch.randint(2**31, (1,), generator=generator))
        devices = [images.device] if images.device.type == "cuda" else []
        with evaluation_mode(model), torch.random.fork_rng(devices=devices):
            with torch.no_grad():
                classes = model(images[:1]).shape[1]
            if classes < 4:
                raise UsageError(f"AutoAttack needs 4 classes, the model has {classes}; use --attack apgd")
            attack = attack_class(
                model,
                norm="Linf" if self.threat.norm == "linf" else "L2",
                eps=self.threat.epsilon,
                version="standard",
                seed=seed,
                device=images.device,
            )
            attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = min(RIVALS, classes - 1)
            found = attack.run_standard_evaluation(images.contiguous(), labels, batch_size=len(images))
        points = found[0] if isinstance(found, tuple) else found  # releases differ
        return points.detach().to(images)


def _package() -> Any:
    for name in ("pyautoattack", "autoattack"):
        try:
            return __import__(name)
        except ImportError:
            continue
    raise MissingDependencyError("AutoAttack needs pyautoattack: pip install 'edgetta[attack]'")
