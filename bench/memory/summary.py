"""What the rows come to: ratios to plain inference and to TENT, and whether the goals hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgetta.adaptation.step_plan import KEEP
from edgetta.bench.memory.cases import OWN, Case

ENGINE = "onnxruntime"
"""The engine for which the goals are set."""

SMALLEST_TIMES, TENT_SHARE = 2.0, 0.2
SMALLEST_PROCESS, DEFAULT_PROCESS, TENT_PROCESS_SHARE = 110e6, 180e6, 0.25
"""Bytes of a whole process of WRN-40-2 at batch 64, and the share of TENT's on stock torch."""

PROCESS_MODEL = "wrn40_2"

NOISE = 0.01
"""Peaks that differ by less are the same."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """Something that a row should not exceed: a ratio, or megabytes."""

    what: str
    unit: str
    row: Row
    value: float
    limit: float

    @property
    def held(self) -> bool:
        return self.value <= self.limit

    def told(self) -> str:
        verdict = "holds" if self.held else f"missed by {self.value - self.limit:.2f}"
        value = f"{self.value:.2f} {self.unit} (goal {self.limit:g}: {verdict})"
        return f"{self.row['model']}, {self.what}: {value}, {way(self.row)}"


def goals(rows: Sequence[Row]) -> list[Goal]:
    """Of every model whose steps were measured on ONNX Runtime."""
    return [goal for model in dict.fromkeys(row["model"] for row in rows) for goal in _goals_of(rows, model)]


def _goals_of(rows: Sequence[Row], model: str) -> Iterator[Goal]:
    own = [r for r in rows if (r["model"], r["method"], r["engine"]) == (model, OWN, ENGINE)]
    if not own:
        return
    smallest = smallest_of(own)
    times = float(smallest["peak_bytes"]) / float(smallest["inference_peak_bytes"])
    yield Goal("smallest choice", "times plain inference", smallest, times, SMALLEST_TIMES)
    tent = tent_of(rows, smallest)
    if tent is not None:
        share = smallest["peak_bytes"] / tent["peak_bytes"]
        yield Goal("smallest choice", "times TENT on stock torch", smallest, share, TENT_SHARE)
    if model != PROCESS_MODEL:
        return
    leanest = min(own, key=lambda row: row["process_bytes"])
    yield Goal("smallest process", "MB", leanest, leanest["process_bytes"] / 1e6, SMALLEST_PROCESS / 1e6)
    default = next((row for row in own if Case.of(row).plan == KEEP), None)
    if default is not None:
        yield Goal("process without a budget", "MB", default, default["process_bytes"] / 1e6, DEFAULT_PROCESS / 1e6)
        if tent is not None:
            share = default["process_bytes"] / tent["process_bytes"]
            yield Goal("process without a budget", "times TENT's", default, share, TENT_PROCESS_SHARE)


def way(row: Row) -> str:
    """How edgetta's step uses memory."""
    slices = f", slices of {row['slice']}" if row["slice"] else ""
    learn = f", learning from {row['learn']}" if row["learn"] else ""
    return f"`{'keep' if row['keep'] else 'recompute'}`{slices}{learn}"


def smallest_of(rows: Sequence[Row]) -> Row:
    """The row with the lowest peak; of those within a percent of it the quickest."""
    lowest = min(row["peak_bytes"] for row in rows)
    alike = [row for row in rows if row["peak_bytes"] <= (1 + NOISE) * lowest]
    return min(alike, key=lambda row: row["step_seconds"])


def tent_of(rows: Sequence[Row], row: Row) -> Row | None:
    """TENT's row for the model and batch of another one."""
    same = (row["model"], row["batch"], "tent")
    return next((r for r in rows if (r["model"], r["batch"], r["method"]) == same), None)


def ratio_text(value: float, base: float | None) -> str:
    """A ratio for people; "-" where there is nothing to compare with."""
    return f"x{value / base:.2f}" if base else "-"
