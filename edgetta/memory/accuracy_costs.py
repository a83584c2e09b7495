"""What each choice costs in accuracy, as `edgetta prepare` measured it: it ships in the bundle, and orders plans.

Costs are points of error (0 to 100) above the reference: batches of `batch` images, updates that learn from `learn`
of them at once. They were measured one choice at a time, on the same images, and are added up. A cost within two
standard errors of zero, and a gain, count as none; they are shown all the same. Only the standard library is needed
here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edgetta.errors import BundleError
from edgetta.memory.choice import Choice

VERSION = 2
SIZED = ("learn", "slice")
"""Costs that depend on a number of images: those that an update learns from, and those of its slices."""
OFF = ("adaptation", "off")


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
    """What one choice was seen to cost: ("learn", "16"), ("slice", "4"), ("adaptation", "off")."""

    kind: str
    value: str
    cost: AccuracyCost


@dataclass(frozen=True)
class AccuracyCosts:
    """All that was measured.

    error   of the reference, in %
    batch   images of a batch
    learn   of these, how many an update of the reference learns from
    doubt   of the reference's predictions: 1 minus the probability of the class predicted, its mean in %; None in
            bundles from before it was measured
    source  data, images, learning rate, date: for the reader
    """

    error: float
    batch: int
    learn: int
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

    def of_learn(self, images: int, instead_of: int) -> AccuracyCost:
        """Of updates that learn from fewer images."""
        return NOTHING if images >= instead_of else self._between("learn", images, instead_of)

    def of_slice(self, images: int) -> AccuracyCost:
        """Of updates in slices of so many images; 0: all at once, which costs nothing."""
        return NOTHING if not 0 < images < self.learn else self._between("slice", images, self.learn)

    def counted(self, choice: Choice, images: int, instead_of: int) -> float:
        """Points of a choice whose updates learn from `images`, where they might from `instead_of`.

        The sum of what can be told from none. Fewer images count no less than any larger number of them.
        """
        if not choice.adapts:
            return self.of(*OFF).counted
        size = choice.plan.slice if choice.plan.slice < images else 0
        learn = max(self.of_learn(n, instead_of).counted for n in (images, *self._sizes("learn", images)))
        sliced = max(self.of_slice(n).counted for n in (size, *self._sizes("slice", size))) if size else 0.0
        return learn + sliced

    def _sizes(self, kind: str, least: int) -> list[int]:
        return [int(m.value) for m in self.measured if m.kind == kind and int(m.value) >= least]

    def _between(self, kind: str, images: int, instead_of: int) -> AccuracyCost:
        here, there = self._at(kind, images), self._at(kind, instead_of)
        return AccuracyCost(here.points - there.points, math.hypot(here.deviation, there.deviation))

    def _at(self, kind: str, images: int) -> AccuracyCost:
        """Between measured sizes by the logarithm, beyond them as at the nearest."""
        sizes = {int(m.value): m.cost for m in self.measured if m.kind == kind}
        sizes[self.learn] = NOTHING
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
            "learn": self.learn,
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
            raise BundleError(
                f"its accuracy costs have version {version!r}, and this edgetta reads {VERSION}; "
                "prepare and export again"
            )
        try:
            batch, learn = _size(data["batch"], "batch"), _size(data["learn"], "learn")
            measured = tuple(_measured(entry) for entry in data["measured"])
            kinds = {m.kind for m in measured}
            lacking = [kind for kind in ("adaptation", *SIZED) if kind not in kinds]
            if lacking:
                raise ValueError(f"{lacking[0]} is missing")
            source = {str(key): str(value) for key, value in data["source"].items()}
            doubt = None if data.get("doubt") is None else _number(data["doubt"], 0, 100)
            return AccuracyCosts(_number(data["error"], 0, 100), batch, learn, measured, source, doubt)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"its accuracy costs cannot be used ({error}); prepare and export again") from error


def _measured(entry: Any) -> MeasuredCost:
    kind, value = entry["kind"], entry["value"]
    sized = kind in SIZED and isinstance(value, str) and value.isdecimal() and 1 <= int(value) < 1 << 31
    if not sized and (kind, value) != OFF:
        raise ValueError(f"a cost of {str(kind)[:40]!r} {str(value)[:40]!r}")
    cost = AccuracyCost(_number(entry["points"], -100, 100), _number(entry["deviation"], 0, 100))
    return MeasuredCost(kind, value, cost)


def _size(value: Any, what: str) -> int:
    if type(value) is not int or not 1 <= value < 1 << 31:
        raise ValueError(f"{what} of {str(value)[:40]!r}")
    return value


def _number(value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{str(value)[:40]!r} is no number from {low} to {high}")
    return float(value)
