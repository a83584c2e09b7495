"""What the rows of the orders of frames say together: means over corruptions, the worst cells, and each goal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from edgetta.bench.accuracy.camera import FIRST
from edgetta.bench.accuracy.camera_networks import BASELINES, METHODS
from edgetta.bench.accuracy.images import CLEAN
from edgetta.bench.accuracy.orders import AFTER, ORDERS, SHUFFLED

Row = Mapping[str, Any]
MAIN_SEVERITY = 5
STEADY = (SHUFFLED, "runs", "sorted")  # orders that show every class
NARROW = ("one-class", "still")


@dataclass(frozen=True)
class Cell:
    """The mean over seeds of one order, batch, corruption and severity."""

    network: str
    order: str
    batch: int
    corruption: str
    severity: int
    frames: int
    method: str
    error: float
    source: float
    fresh: float | None  # without the frames before, of the orders `after-*`

    @property
    def excess(self) -> float:
        """Points above the source."""
        return self.error - self.source

    def __str__(self) -> str:
        where = f"{self.network}, {self.order}, batch {self.batch}, {self.corruption}"
        shown = where if self.corruption == CLEAN else f"{where} {self.severity}"
        return f"{shown}: {self.error:.1f} (source {self.source:.1f})"


@dataclass(frozen=True)
class Mean:
    """Of the cells of one order and batch, over corruptions."""

    error: float
    excess: float  # points above the source: comparable where methods met different numbers of images
    clean: float  # error on clean images; nan where it was not measured
    by_corruption: Mapping[str, tuple[float, float]]  # error and excess

    def of(self, corruptions: Iterable[str]) -> Mean:
        """The mean over these alone."""
        chosen = {kind: self.by_corruption[kind] for kind in sorted(corruptions)}
        error, excess = (fmean(values) for values in zip(*chosen.values(), strict=True))
        return Mean(error, excess, self.clean, chosen)

    def __str__(self) -> str:
        return f"{self.error:.1f} ({self.clean:.1f})"


Means = Mapping[tuple[Any, ...], Mapping[str, Mean]]


@dataclass(frozen=True)
class Goal:
    """One thing that must be shown, and what was found."""

    what: str
    found: str
    met: bool | None  # None: not measured

    def as_json(self) -> dict[str, Any]:
        return {"goal": self.what, "found": self.found, "met": self.met}


def cells(rows: Iterable[Row]) -> list[Cell]:
    """Rows of the same cell as one."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = ("network", "order", "batch", "corruption", "severity", "method")
        after = row["order"] in AFTER
        long = after and row["frames"] > FIRST
        found.setdefault((*(row[name] for name in key), long), []).append(row)
    return [
        Cell(
            network=network,
            order=order,
            batch=batch,
            corruption=corruption,
            severity=severity,
            frames=max(row["frames"] for row in same),
            method=method,
            error=fmean(row["error"] for row in same),
            source=fmean(row["source_error"] for row in same),
            fresh=fmean(row["fresh_error"] for row in same) if "fresh_error" in same[0] else None,
        )
        for (network, order, batch, corruption, severity, method, _), same in found.items()
    ]


def means(found: Sequence[Cell]) -> Means:
    """(network, severity, order, batch, frames of `after-*`, else 0) -> method -> mean over corruptions."""
    groups: dict[tuple[Any, ...], dict[str, list[Cell]]] = {}
    clean: dict[tuple[Any, ...], float] = {}
    for cell in found:
        where = (cell.order, cell.batch, cell.frames if cell.order in AFTER else 0)
        alone = (cell.network, *where, cell.method)
        if cell.corruption == CLEAN:
            clean[alone] = cell.error
        else:
            group = (cell.network, cell.severity, *where)
            groups.setdefault(group, {}).setdefault(cell.method, []).append(cell)
    result: dict[tuple[Any, ...], dict[str, Mean]] = {}
    for group, methods in sorted(groups.items(), key=_position):
        for method, same in methods.items():
            alone = (group[0], *group[2:], method)
            result.setdefault(group, {})[method] = Mean(
                fmean(cell.error for cell in same),
                fmean(cell.excess for cell in same),
                clean.get(alone, math.nan),
                {cell.corruption: (cell.error, cell.excess) for cell in same},
            )
    return result


def table(rows: Iterable[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heads and cells: a line per network, severity, order and batch, a column per method: mean (clean)."""
    found = means(cells(rows))
    names = [name for name in METHODS if any(name in methods for methods in found.values())]
    lines = []
    for (network, severity, order, batch, frames), methods in found.items():
        shown = f"{order}, {frames}" if frames else order
        values = [str(methods[name]) if name in methods else "" for name in names]
        lines.append((network, str(severity), shown, str(batch), *values))
    return ("network", "severity", "order", "batch", *names), lines


def worst(rows: Iterable[Row], method: str, count: int = 10) -> list[Cell]:
    """The cells in which a method is most above the source."""
    return sorted((c for c in cells(rows) if c.method == method), key=lambda c: -c.excess)[:count]


def goals(rows: Iterable[Row], method: str) -> list[Goal]:
    """Each goal that orders of frames can show, for a method."""
    found = cells(rows)
    ours = [cell for cell in found if cell.method == method]
    small = [cell for cell in ours if not cell.network.startswith("mobilenet")]
    large = [cell for cell in ours if cell.network.startswith("mobilenet")]
    average = means(found)
    return [
        _largest("clean: at most 0.3 above the source on iid, runs, sorted", 0.3, _clean(small, STEADY)),
        _largest("clean: at most 0.5 above the source on one-class, still", 0.5, _clean(small, NARROW)),
        _largest("mean on runs and sorted at most 1 point above iid", 1.0, _against_iid(average, method)),
        _largest("mean on one-class and still below the source", 0.0, _against(average, method, ("source",), NARROW)),
        _largest("mean on every order below every baseline", 0.0, _against(average, method, BASELINES, ORDERS)),
        _largest(
            "no cell more than 2 points above the source",
            2.0,
            ((cell.excess, str(cell)) for cell in small if cell.order not in AFTER),
        ),
        _largest(f"after degenerate frames the next {FIRST} at most 1 point worse", 1.0, _after(ours)),
        _largest("1,000 classes, clean: at most 1 above the source", 1.0, _clean(large, STEADY)),
        _largest("1,000 classes: mean at least 10 below the source", -10.0, _many_classes(average, method)),
    ]


Found = Iterator[tuple[float, str]]


def _largest(what: str, limit: float, found: Iterable[tuple[float, str]]) -> Goal:
    """Met where no figure is above the limit; the largest is shown, and how many are above."""
    figures = sorted(found, reverse=True)
    if not figures:
        return Goal(what, "not measured", None)
    above = sum(value > limit + 1e-9 for value, _ in figures)
    value, where = figures[0]
    return Goal(what, f"at most {value:+.2f}: {where}; {above} of {len(figures)} above {limit:g}", above == 0)


def _clean(ours: Iterable[Cell], orders: Sequence[str]) -> Found:
    return ((c.excess, str(c)) for c in ours if c.corruption == CLEAN and c.order in orders)


def _against_iid(average: Means, method: str) -> Found:
    for (network, severity, order, batch, frames), methods in average.items():
        shuffled = average.get((network, severity, SHUFFLED, batch, frames), {})
        if order in ("runs", "sorted") and _small(network, severity):
            for ours, iid in _pairs(methods.get(method), shuffled.get(method)):
                where = f"{order}, batch {batch}, {network}: {ours.error:.1f}, iid {iid.error:.1f}"
                yield ours.error - iid.error, where


def _against(average: Means, method: str, others: Sequence[str], orders: Sequence[str]) -> Found:
    for (network, severity, order, batch, frames), methods in average.items():
        if order in orders and _small(network, severity):
            for name in others:
                for ours, other in _pairs(methods.get(method), methods.get(name)):
                    shown = f"{order}, {frames}" if frames else order
                    where = f"{shown}, batch {batch}, {network}: {ours.error:.1f}, {name} {other.error:.1f}"
                    yield ours.excess - other.excess, where


def _pairs(one: Mean | None, other: Mean | None) -> Iterator[tuple[Mean, Mean]]:
    """Both, over the corruptions that both met; nothing where one was not measured."""
    if one is not None and other is not None:
        common = one.by_corruption.keys() & other.by_corruption.keys()
        if common:
            yield one.of(common), other.of(common)


def _after(ours: Iterable[Cell]) -> Found:
    """Means over corruptions and clean images: so few frames decide no single cell."""
    groups: dict[tuple[str, int, str], list[Cell]] = {}
    for cell in ours:
        if cell.order in AFTER and cell.frames <= FIRST and cell.fresh is not None:
            groups.setdefault((cell.order, cell.batch, cell.network), []).append(cell)
    for (order, batch, network), same in groups.items():
        now, fresh = fmean(c.error for c in same), fmean(c.fresh for c in same if c.fresh is not None)
        yield now - fresh, f"{order}, batch {batch}, {network}: {now:.1f}, never seen {fresh:.1f}"


def _many_classes(average: Means, method: str) -> Found:
    """Means over severities."""
    groups: dict[tuple[str, str, int], list[Mean]] = {}
    for (network, _, order, batch, frames), methods in average.items():
        if network.startswith("mobilenet") and not frames and method in methods:
            groups.setdefault((network, order, batch), []).append(methods[method])
    for (network, order, batch), same in groups.items():
        error, excess = fmean(mean.error for mean in same), fmean(mean.excess for mean in same)
        yield excess, f"{order}, batch {batch}, {network}: {error:.1f}, source {error - excess:.1f}"


def _small(network: str, severity: int) -> bool:
    return severity == MAIN_SEVERITY and not network.startswith("mobilenet")


def _position(item: tuple[tuple[Any, ...], Any]) -> tuple[Any, ...]:
    network, severity, order, batch, frames = item[0]
    return network, -severity, ORDERS.index(order), batch, frames
