"""Goals, means and worst cells of rows that are written down here."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from edgetta.bench.accuracy.camera_summary import cells, goals, means, table, worst

NET = "resnet20"


def row(order: str, method: str, error: float, source: float = 40.0, **other: Any) -> dict[str, Any]:
    filled = {"batch": 64, "corruption": "fog", "severity": 5, "images": 300, "frames": 300, "seed": 0, "network": NET}
    return {"order": order, "method": method, "error": error, "source_error": source, **filled, **other}


def clean(order: str, method: str, error: float, source: float = 12.0, **other: Any) -> dict[str, Any]:
    return row(order, method, error, source, corruption="clean", severity=0, **other)


def both(order: str, error: float, source: float = 40.0) -> Iterable[dict[str, Any]]:
    return row(order, "edgetta", error, source), row(order, "source", source, source)


def met(rows: list[dict[str, Any]]) -> dict[str, bool | None]:
    return {goal.what.split(":")[0]: goal.met for goal in goals(rows, "edgetta")}


def test_a_cell_is_the_mean_of_seeds() -> None:
    found = cells([row("iid", "edgetta", 20.0), row("iid", "edgetta", 24.0, 42.0, seed=1)])
    assert len(found) == 1 and (found[0].error, found[0].source, found[0].excess) == (22.0, 41.0, -19.0)
    assert str(found[0]) == "resnet20, iid, batch 64, fog 5: 22.0 (source 41.0)"


def test_means_are_over_corruptions_with_the_clean_error_beside() -> None:
    rows = [row("iid", "edgetta", 20.0), row("iid", "edgetta", 30.0, corruption="snow"), clean("iid", "edgetta", 12.5)]
    found = means(cells(rows))[NET, 5, "iid", 64, 0]["edgetta"]
    assert (found.error, found.excess, found.clean) == (25.0, -15.0, 12.5) and set(found.by_corruption) == {
        "fog",
        "snow",
    }
    heads, lines = table([*rows, row("iid", "source", 40.0)])
    assert heads[4:] == ("source", "edgetta") and lines[0][4:] == ("40.0 (nan)", "25.0 (12.5)")
    assert math.isnan(means(cells([row("still", "source", 1.0)]))[NET, 5, "still", 64, 0]["source"].clean)


def test_nothing_measured_is_neither_met_nor_missed() -> None:
    assert {goal.met for goal in goals([], "edgetta")} == {None}


def test_goals_that_are_met() -> None:
    rows = [
        *both("iid", 22.0),
        *both("runs", 22.9),
        *both("sorted", 23.0),
        *both("one-class", 30.0),
        *both("still", 9),
    ]
    rows += [clean("sorted", "edgetta", 12.3), clean("one-class", "edgetta", 12.5), row("runs", "rotta", 25.0)]
    rows += [row("after-black", "edgetta", 33.0, frames=32, fresh_error=32.5, starts=4)]
    found = met(rows)
    assert [name for name, state in found.items() if state is not True] == ["1,000 classes, clean", "1,000 classes"]


def test_goals_that_are_missed() -> None:
    rows = [*both("iid", 22.0), *both("sorted", 23.1), *both("still", 42.1)]
    rows += [clean("sorted", "edgetta", 12.4), clean("still", "edgetta", 12.6), row("sorted", "note", 23.0)]
    rows += [row("after-black", "edgetta", 33.6, frames=32, fresh_error=32.5, starts=4)]
    found = met(rows)
    assert all(state is False for name, state in found.items() if not name.startswith("1,000"))
    missed = next(goal for goal in goals(rows, "edgetta") if goal.what.startswith("no cell"))
    assert missed.found.startswith("at most +2.10: resnet20, still, batch 64, fog 5") and "1 of 5" in missed.found


def test_methods_are_compared_under_the_same_corruptions_and_by_their_distance_from_the_source() -> None:
    rows = [row("iid", "edgetta", 20.0), row("iid", "note", 15.0, corruption="snow"), row("iid", "rotta", 19.0, 38.0)]
    rows += [row("iid", "rotta", 60.0, corruption="snow")]
    goal = next(goal for goal in goals(rows, "edgetta") if "every baseline" in goal.what)
    assert goal.found.startswith("at most -1.00: iid, batch 64, resnet20: 20.0, rotta 19.0") and goal.met


def test_networks_of_many_classes_have_goals_of_their_own() -> None:
    name = {"network": "mobilenet_v2"}
    rows = [clean("iid", "edgetta", 13.1, **name)]
    for severity, error in ((3, 29.0), (4, 41.0)):
        rows += [row("iid", m, e, 45.0, severity=severity, **name) for m, e in (("edgetta", error), ("source", 45.0))]
    found = met(rows)
    assert found["1,000 classes, clean"] is False and found["1,000 classes"] is True
    assert found["no cell more than 2 points above the source"] is None


def test_worst_cells() -> None:
    rows = [row("iid", "edgetta", 41.0), row("still", "edgetta", 45.0), row("runs", "note", 90.0)]
    assert [cell.order for cell in worst(rows, "edgetta")] == ["still", "iid"]
