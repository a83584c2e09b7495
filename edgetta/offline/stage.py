"""What one stage of a preparation did: accuracies before and after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

StageName = Literal["adversarial_training", "rift", "meta_networks", "warm_up", "curvature"]


@dataclass(frozen=True)
class Accuracies:
    """Shares (0 to 1) of the held-out images that are classified right, adaptation off."""

    clean: float
    robust: float | None = None  # right, and still right under attack; None where nobody attacked
    running: float | None = None  # with running statistics, as for single frames; None before there are meta-networks


@dataclass(frozen=True)
class Stage:
    """One stage, in the order in which they were done."""

    name: StageName
    before: Accuracies
    after: Accuracies
    seconds: float  # of the run that finished it
    facts: Mapping[str, Any] = field(default_factory=dict)  # of this kind of stage alone; JSON-compatible
