"""When to learn: always, never, every so many batches, after a change of the stream, or for a share of the time."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from edgetta.errors import UsageError

ON_DRIFT = "on-drift"


@dataclass(frozen=True)
class Spent:
    """What steps have taken so far, in seconds: what a schedule by time goes by."""

    updating: float = 0.0  # of updates, beyond predicting as many images
    total: float = 0.0  # of all steps
    predicting: float = 0.0  # of steps without an update
    predicted: int = 0  # images of these

    def after(self, seconds: float, images: int, updated: bool) -> Spent:
        """With one more step."""
        total = self.total + seconds
        if not updated:
            return replace(self, total=total, predicting=self.predicting + seconds, predicted=self.predicted + images)
        plain = self.predicting / self.predicted * images if self.predicted else 0.0
        return replace(self, total=total, updating=self.updating + max(0.0, seconds - plain))


Due = Callable[[int, bool, Spent], bool]
"""Whether to learn from the batch of that number, from 0, the last change being over or not, after what was spent."""


def schedule(when: str) -> Due:
    """The schedule of that name: "always", "off", "every N", "on-drift", "budgeted P%".

    Budgeted: updates as long as they have taken at most that share of the time. What is saved while the stream rests
    is spent when images come. The clock decides, so that two runs need not update on the same batches.

    Raises `UsageError` for another one.
    """
    plain: dict[str, Due] = {
        "always": lambda step, settled, spent: True,
        "off": lambda step, settled, spent: False,
        ON_DRIFT: lambda step, settled, spent: not settled,
    }
    if when in plain:
        return plain[when]
    every = re.fullmatch(r"every +(\d+)", when)
    if every is not None and int(every[1]) > 0:
        period = int(every[1])
        return lambda step, settled, spent: step % period == 0
    budgeted = re.fullmatch(r"budgeted +(\d+(?:\.\d+)?) *%", when)
    if budgeted is not None and 0 < float(budgeted[1]) <= 100:
        share = float(budgeted[1]) / 100
        return lambda step, settled, spent: spent.updating <= share * spent.total
    raise UsageError(
        f"unknown schedule {when!r}; use 'always', 'off', 'on-drift', 'every N' with N of at least 1, "
        "or 'budgeted P%' with P above 0 and at most 100"
    )
