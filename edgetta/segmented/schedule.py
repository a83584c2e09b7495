"""When to adapt: always, never, every so many batches, after a change of the stream, or for a share of the time."""

from __future__ import annotations

import re
from collections.abc import Callable

from edgetta.errors import UsageError

ON_DRIFT = "on-drift"


class Schedule:
    """Decides, batch by batch, whether to adapt. This one: always."""

    def due(self, step: int, settled: bool) -> bool:
        """Whether to adapt to the batch of that number, from 0; `settled`: the last change of the stream is over."""
        return True

    def record(self, seconds: float, images: int, updated: bool) -> None:
        """Take in what a step took."""


class Off(Schedule):
    """Never."""

    def due(self, step: int, settled: bool) -> bool:
        return False


class Every(Schedule):
    """Every so many batches."""

    def __init__(self, period: int) -> None:
        self.period = period

    def due(self, step: int, settled: bool) -> bool:
        return step % self.period == 0


class OnDrift(Schedule):
    """From a change of the stream until its statistics are settled."""

    def due(self, step: int, settled: bool) -> bool:
        return not settled


class Budgeted(Schedule):
    """As long as updates have taken at most a share of the time.

    What an update takes is what its step takes beyond predicting as many images. What is saved while the stream rests
    is spent when images come. The clock decides, so that two runs need not update on the same batches.

    share  above 0 and at most 1
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.updating = self.total = 0.0
        """Seconds of updates, and of all steps."""
        self._predicting = 0.0  # seconds of steps without an update, and their images
        self._predicted = 0

    def due(self, step: int, settled: bool) -> bool:
        return self.updating <= self.share * self.total

    def record(self, seconds: float, images: int, updated: bool) -> None:
        self.total += seconds
        if updated:
            plain = self._predicting / self._predicted * images if self._predicted else 0.0
            self.updating += max(0.0, seconds - plain)
        else:
            self._predicting += seconds
            self._predicted += images


def schedule(when: str) -> Schedule:
    """The schedule of that name: "always", "off", "every N", "on-drift", "budgeted P%".

    Raises `UsageError` for another one.
    """
    plain: dict[str, Callable[[], Schedule]] = {"always": Schedule, "off": Off, ON_DRIFT: OnDrift}
    if when in plain:
        return plain[when]()
    every = re.fullmatch(r"every +(\d+)", when)
    if every is not None and int(every[1]) > 0:
        return Every(int(every[1]))
    budgeted = re.fullmatch(r"budgeted +(\d+(?:\.\d+)?) *%", when)
    if budgeted is not None and 0 < float(budgeted[1]) <= 100:
        return Budgeted(float(budgeted[1]) / 100)
    raise UsageError(
        f"unknown schedule {when!r}; use 'always', 'off', 'on-drift', 'every N' with N of at least 1, "
        "or 'budgeted P%' with P above 0 and at most 100"
    )
