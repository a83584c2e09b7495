"""What each choice costs in accuracy, as `edgetta prepare` measured it: it ships in the bundle, and orders plans.

Costs are points of error (0 to 100) above the reference: updates of `batch` images, exact gradients, everything kept.
They were measured one choice at a time, on the same images, and are added up. A cost within two standard errors of
zero, and a gain, count as none; they are shown all the same. Only the standard library is needed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edgetta.errors import BundleError
from edgetta.memory.choice import Choice

VERSION = 1
NEEDED = (("adaptation", "off"), ("gradient", "local"), *(("storage", s) for s in ("half", "int8", "recompute-int8")))
"""What must be measured, beside smaller batches."""

EXACT = ("full", "recompute")
"""Storages that cost nothing: the same gradients to rounding."""


@dataclass(frozen=True)
class AccuracyCost:
    """Points of error that something costs, with their standard error."""

    points: float
    deviation: float

    @property
    def counted(self) -> float:
        """The points, where they can be told from none; what seems to gain costs nothing."""
        return self.points if self.points > 2 * self.deviation else 0.0

    def told(self) -> str:
        return f"{self.points:+.2f} ± {self.deviation:.2f} points of error"


NOTHING = AccuracyCost(0.0, 0.0)


@dataclass(frozen=True)
class MeasuredCost:
    """What one choice was seen to cost: ("gradient", "local"), ("storage", "int8"), ("batch", "16"), ..."""

    kind: str
    value: str
    cost: AccuracyCost


@dataclass(frozen=True)
class AccuracyCosts:
    """All that was measured.

    error   of the reference, in %
    batch   images per update of the reference
    doubt   of the reference's predictions: 1 minus the probability of the class predicted, its mean in %; None in
            bundles from before it was measured
    source  data, images, learning rate, date: for the reader
    """

    error: float
    batch: int
    measured: tuple[MeasuredCost, ...]
    source: Mapping[str, str] = field(default_factory=dict)
    doubt: float | None = None

    @property
    def errors_per_doubt(self) -> float | None:
        """How many times more often predictions are wrong than they say themselves; None where it was not measured."""
        return self.error / self.doubt if self.doubt else None

    def of(self, kind: str, value: str) -> AccuracyCost:
        """What one choice was seen to cost. Raises `KeyError` where it was not measured."""
        found = {(measured.kind, measured.value): measured.cost for measured in self.measured}
        return found[kind, value]

    def of_gradient(self, gradient: str) -> AccuracyCost:
        return self.of("gradient", "local") if gradient == "local" else NOTHING

    def of_storage(self, storage: str) -> AccuracyCost:
        return NOTHING if storage in EXACT else self.of("storage", storage)

    def of_batch(self, images: int, instead_of: int) -> AccuracyCost:
        """Of updates of fewer images: between measured sizes by the logarithm, beyond them as at the nearest."""
        if images == instead_of:
            return NOTHING
        here, there = self._at(images), self._at(instead_of)
        return AccuracyCost(here.points - there.points, math.hypot(here.deviation, there.deviation))

    def counted(self, choice: Choice, update: int) -> float:
        """Points of a choice whose updates might see `update` images: the sum of those that can be told from none.

        A batch counts no less than any larger one.
        """
        gradient, storage = self.of_gradient(choice.gradient), self.of_storage(choice.storage)
        sizes = [int(m.value) for m in self.measured if m.kind == "batch" and choice.batch <= int(m.value) <= update]
        batch = max(self.of_batch(size, update).counted for size in (choice.batch, *sizes))
        return gradient.counted + storage.counted + batch

    def _at(self, images: int) -> AccuracyCost:
        sizes = {int(m.value): m.cost for m in self.measured if m.kind == "batch"}
        sizes[self.batch] = NOTHING
        inside = min(max(images, min(sizes)), max(sizes))
        below, above = max(size for size in sizes if size <= inside), min(size for size in sizes if size >= inside)
        if below == above:
            return sizes[below]
        share = math.log(inside / below) / math.log(above / below)
        low, high = sizes[below], sizes[above]
        points = low.points + share * (high.points - low.points)
        return AccuracyCost(points, low.deviation + share * (high.deviation - low.deviation))

    def to_json(self) -> dict[str, Any]:
        measured = [{"kind": m.kind, "value": m.value, **asdict(m.cost)} for m in self.measured]
        return {
            "version": VERSION,
            "error": self.error,
            "batch": self.batch,
            "doubt": self.doubt,
            "measured": measured,
            "source": dict(self.source),
        }

    @staticmethod
    def from_json(data: Any) -> AccuracyCosts:
        """Read what `to_json` wrote.

        Raises:
            BundleError: another version, or a field that cannot be.
        """
        version = data.get("version") if isinstance(data, Mapping) else None
        if version != VERSION:
            raise BundleError(f"its accuracy costs have version {version!r}, and this edgetta reads {VERSION}")
        try:
            batch = data["batch"]
            if type(batch) is not int or not 1 <= batch < 1 << 31:
                raise ValueError(f"batch of {str(batch)[:40]!r}")
            measured = tuple(_measured(entry) for entry in data["measured"])
            lacking = set(NEEDED) - {(m.kind, m.value) for m in measured}
            if lacking:
                raise ValueError(f"{' '.join(min(lacking))} is missing")
            source = {str(key): str(value) for key, value in data["source"].items()}
            doubt = None if data.get("doubt") is None else _number(data["doubt"], 0, 100)
            return AccuracyCosts(_number(data["error"], 0, 100), batch, measured, source, doubt)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"its accuracy costs cannot be used ({error}); prepare and export again") from error


def _measured(entry: Any) -> MeasuredCost:
    kind, value = entry["kind"], entry["value"]
    sized = kind == "batch" and isinstance(value, str) and value.isdecimal() and 1 <= int(value) < 1 << 31
    if not sized and (kind, value) not in NEEDED:
        raise ValueError(f"a cost of {str(kind)[:40]!r} {str(value)[:40]!r}")
    cost = AccuracyCost(_number(entry["points"], -100, 100), _number(entry["deviation"], 0, 100))
    return MeasuredCost(kind, value, cost)


def _number(value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{str(value)[:40]!r} is no number from {low} to {high}")
    return float(value)
