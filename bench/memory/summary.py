"""What the rows come to: ratios to plain inference and to TENT, and whether the goals hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgetta.bench.memory.cases import OWN

ENGINE = "onnxruntime"
"""The engine for which the goals are set."""

EXACT = ("full", "recompute")
"""Storages whose gradients are exact to 1e-5."""

SMALLEST_TIMES, EXACT_TIMES, TENT_SHARE = 2.0, 3.0, 0.2

NOISE = 0.01
"""Peaks that differ by less are the same."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """A ratio that a row should not exceed."""

    what: str
    base: str
    row: Row
    ratio: float
    limit: float

    @property
    def held(self) -> bool:
        return self.ratio <= self.limit

    def told(self) -> str:
        verdict = "holds" if self.held else f"missed by {self.ratio - self.limit:.2f}"
        ratio = f"{self.ratio:.2f} times {self.base} (goal {self.limit:g}: {verdict})"
        return f"{self.row['model']}, {self.what}: {ratio}, {way(self.row)}"


def goals(rows: Sequence[Row]) -> list[Goal]:
    """Of every model whose steps were measured on ONNX Runtime: the smallest choice, and the smallest exact one."""
    return [goal for model in dict.fromkeys(row["model"] for row in rows) for goal in _goals_of(rows, model)]


def _goals_of(rows: Sequence[Row], model: str) -> Iterator[Goal]:
    own = [r for r in rows if (r["model"], r["method"], r["engine"]) == (model, OWN, ENGINE)]
    if not own:
        return
    smallest, exact = smallest_of(own), smallest_of([r for r in own if is_exact(r)] or own)
    yield Goal("smallest choice", "plain inference", smallest, _peaks(smallest), SMALLEST_TIMES)
    if is_exact(exact):
        yield Goal("exact gradients", "plain inference", exact, _peaks(exact), EXACT_TIMES)
    tent = tent_of(rows, smallest)
    if tent is not None:
        share = smallest["peak_bytes"] / tent["peak_bytes"]
        yield Goal("smallest choice", "TENT on stock torch", smallest, share, TENT_SHARE)


def way(row: Row) -> str:
    """How edgetta keeps what a step needs: storage, gradient where it is not exact bits, slices."""
    slices = f", slices of {row['slice']}" if row["slice"] else ""
    gradient = "" if row["gradient"] == "exact" else f", gradient `{row['gradient']}`"
    return f"`{row['storage']}`{gradient}{slices}"


def is_exact(row: Row) -> bool:
    """Whether the gradients are exact, to rounding."""
    return row["method"] == OWN and row["gradient"] != "local" and row["storage"] in EXACT


def smallest_of(rows: Sequence[Row]) -> Row:
    """The row with the lowest peak; of those within a percent of it the one that gives up and keeps least."""
    lowest = min(row["peak_bytes"] for row in rows)
    alike = [row for row in rows if row["peak_bytes"] <= (1 + NOISE) * lowest]
    return min(alike, key=lambda row: (row["gradient"] == "local", not is_exact(row), row["kept_bytes"]))


def tent_of(rows: Sequence[Row], row: Row) -> Row | None:
    """TENT's row for the model and batch of another one."""
    same = (row["model"], row["batch"], "tent")
    return next((r for r in rows if (r["model"], r["batch"], r["method"]) == same), None)


def ratio_text(value: float, base: float | None) -> str:
    """A ratio for people; "-" where there is nothing to compare with."""
    return f"x{value / base:.2f}" if base else "-"


def _peaks(row: Row) -> float:
    return float(row["peak_bytes"]) / float(row["inference_peak_bytes"])
