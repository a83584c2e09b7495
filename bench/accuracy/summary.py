"""What the rows say together: the oracle, the share of the gap closed, means over seeds, paired differences."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from edgetta.bench.accuracy.methods import ORACLES

Row = Mapping[str, Any]
OURS, OFF, BASE, ORACLE = "edgetta", "warm_up_only", "batch_norm_statistics", "oracle"
_T95 = (0.0, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # two-sided, by degrees of freedom
FLIPS = 10_000  # of the permutation test


def run_of(row: Row) -> tuple[Any, ...]:
    """What rows have in common that saw the same images in the same order from the same network."""
    return tuple(row[name] for name in ("stream", "model", "batch", "images", "seed"))


def with_gaps(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows with `gap_closed` = (BN statistics - method) / (BN statistics - oracle), None where a term is missing

    or the oracle is no better; and a row `oracle`, the better of both oracles, for each run that has them.
    """
    measured = [dict(row) for row in rows if row["method"] != ORACLE]
    by_run: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in measured:
        by_run.setdefault(run_of(row), {})[row["method"]] = row
    result = []
    for run in by_run.values():
        oracles = [run[name] for name in ORACLES if name in run]
        both = len(oracles) == len(ORACLES)
        best = min(oracles, key=lambda row: row["error"]) if both else None
        found = list(run.values())
        if best is not None:
            found.append({**best, "method": ORACLE, "of": best["method"]})
        base = run.get(BASE)
        for row in found:
            gap = base["error"] - best["error"] if base is not None and best is not None else 0.0
            row["gap_closed"] = (
                round((base["error"] - row["error"]) / gap, 3) if base is not None and gap > 0 else None
            )
        result += found
    return result


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with half the width of its 95 % confidence interval; nan for one seed."""

    value: float
    half_width: float

    @staticmethod
    def of(values: Sequence[float]) -> Mean:
        count = len(values)
        if count < 2:
            return Mean(fmean(values), math.nan)
        t = _T95[count - 1] if count <= len(_T95) else 1.96
        return Mean(fmean(values), t * stdev(values) / math.sqrt(count))

    def __str__(self) -> str:
        return f"{self.value:.2f}" if math.isnan(self.half_width) else f"{self.value:.2f} ± {self.half_width:.2f}"


def groups(rows: Sequence[Row]) -> dict[tuple[Any, ...], dict[str, list[Row]]]:
    """(stream, model, batch, images) -> method -> its rows, seed by seed."""
    found: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        found.setdefault(run_of(row)[:-1], {}).setdefault(row["method"], []).append(row)
    return found


def paired(ours: Sequence[Row], theirs: Sequence[Row]) -> tuple[float, float]:
    """Mean difference of errors (ours - theirs), and how likely so large a one is by chance (two-sided).

    Pairs are corruptions of the same seed; the chance is that of random signs.
    """
    others = {row["seed"]: row["errors"] for row in theirs}
    differences = [
        error - others[row["seed"]][kind]
        for row in ours
        if row["seed"] in others
        for kind, error in row["errors"].items()
        if kind in others[row["seed"]]
    ]
    if not differences:
        return math.nan, math.nan
    seen, rng = abs(sum(differences)), random.Random(0)
    larger = sum(abs(sum(d if rng.random() < 0.5 else -d for d in differences)) >= seen - 1e-9 for _ in range(FLIPS))
    return fmean(differences), (larger + 1) / (FLIPS + 1)


def table(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heads and cells: one line per method of each group, best first within it."""
    from edgetta.cli.tables import bytes_text

    heads = ("stream", "batch", "images", "method", "error %", "gap closed", "ours - it", "p", "clean after", "kept")
    lines: list[tuple[str, ...]] = []
    for (stream, _, batch, images), methods in groups(with_gaps(rows)).items():
        means = {name: Mean.of([row["error"] for row in found]) for name, found in methods.items()}
        for name in sorted(means, key=lambda name: means[name].value):
            found = methods[name]
            gaps = [row["gap_closed"] for row in found if row["gap_closed"] is not None]
            difference = paired(methods[OURS], found) if OURS in methods and name != OURS else None
            lines.append(
                (
                    *(stream, str(batch), str(images), name, str(means[name])),
                    f"{fmean(gaps):.2f}" if gaps else "",
                    *(("", "") if difference is None else (f"{difference[0]:+.2f}", f"{difference[1]:.4f}")),
                    f"{fmean(row['clean_error_after'] for row in found):.1f}",
                    bytes_text(max(row["kept_bytes"] for row in found)),
                )
            )
    return heads, lines


def markdown(rows: Sequence[Row]) -> str:
    """The same as a Markdown table."""
    heads, lines = table(rows)
    text = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*text, *(f"| {' | '.join(cells)} |" for cells in lines)]) + "\n"
