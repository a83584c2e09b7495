"""`edgetta bench accuracy --stream ORDER`: orders of frames as a camera shows them, resumable, into one file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgetta.bench.accuracy.camera import FIRST, LONG, STARTS, Camera, Row, Work, conditions
from edgetta.bench.accuracy.camera_networks import METHODS, OURS, network
from edgetta.bench.accuracy.camera_summary import goals, table, worst
from edgetta.bench.accuracy.images import ImageCache
from edgetta.bench.accuracy.orders import BEFORE, HELD, ORDERS, SCENES
from edgetta.bench.result_file import rows_to_continue, write_results
from edgetta.cli.progress import progress_bar
from edgetta.cli.tables import print_line, print_table
from edgetta.errors import UsageError

ALL = "all"
WRITE_AFTER = 20.0  # seconds between two writings of the result file
NOT_MEASURED = "WRN-40-2 and ResNet-18: no weights at hand, and to train them takes a processor a day"
SETTINGS = {
    "scenes": SCENES,
    "held": HELD,
    "before": BEFORE,
    "first": FIRST,
    "long": LONG,
    "starts": STARTS,
    "severity 0": "clean images",
}


def run_camera(
    orders: Sequence[str],
    methods: Sequence[str],
    models: Sequence[str],
    batches: Sequence[int],
    seeds: Sequence[int],
    images: int,
    corruptions: Sequence[str],
    cache: ImageCache,
    path: Path | None = None,
    end: float | None = None,
    again: bool = False,
    before: int = BEFORE,
    severities: Sequence[int] = (),
) -> list[Row]:
    """Run what the result file does not hold yet, write it, and print the summary of all that it holds.

    Rows of a cell that was measured on fewer images give way to those of more. `again` drops the rows of the chosen
    methods first. `severities` are those of the network where none is given. Raises `UsageError` for a file of
    another bench, or what does not exist.
    """
    check(orders, methods)
    settings = {**SETTINGS, "before": before}
    rows: list[Row] = [] if path is None else rows_to_continue(path, settings)
    if again:
        chosen = set(methods)
        rows = [row for row in rows if row["method"] not in chosen or row["network"] not in models]
    found = {_cell(row): row for row in rows}
    planned = [
        Work(model, order, batch, seed, method, images)
        for seed in seeds
        for model in models
        for batch in batches
        for method in methods
        for order in orders
    ]
    written = time.monotonic()
    cameras: dict[tuple[str, int], Camera] = {}
    try:
        with progress_bar("cells", unit="orders") as update:
            for position, work in enumerate(planned):
                update(position, len(planned), f"{work.network}, {work.method}, {work.order}, batch {work.batch}")
                held = network(work.network, cache, images, work.seed, tuple(severities))
                key = work.key().items()
                same = [row for row in found.values() if all(row[name] == value for name, value in key)]
                done = [row for row in same if row["images"] >= images]
                if not done:
                    done = work.known(list(found.values()))
                    found |= {_cell(row): row for row in done}
                wanted = len(conditions(work.order, held.severities, corruptions))
                if len({(row["corruption"], row["severity"]) for row in done}) >= wanted:
                    continue
                camera = cameras.setdefault((work.network, work.seed), Camera(held, corruptions, before))
                for row in camera.rows(work, done):
                    found[_cell(row)] = row
                    if path is not None and time.monotonic() - written > WRITE_AFTER:
                        write(path, list(found.values()), settings)
                        written = time.monotonic()
                    if end is not None and time.monotonic() > end:
                        return list(found.values())
    finally:
        if path is not None and found:
            write(path, list(found.values()), settings)
        show(list(found.values()))
    return list(found.values())


def check(orders: Sequence[str], methods: Sequence[str]) -> None:
    """Raises `UsageError` for an order or method that does not exist."""
    for option, names, known in (("--stream", orders, ORDERS), ("--methods", methods, METHODS)):
        for name in names:
            if name not in known:
                raise UsageError(f"{option} {name!r} is unknown; choose from {', '.join(known)}")


def write(path: Path, rows: Sequence[Row], settings: dict[str, Any]) -> None:
    """The rows with what was run, the goals and the worst cells beside them."""
    measured = [name for name in OURS if any(row["method"] == name for row in rows)]
    facts = {
        "run": was_run(rows),
        "not measured": NOT_MEASURED,
        "goals": {name: [goal.as_json() for goal in goals(rows, name)] for name in measured},
        "worst": {name: [str(cell) for cell in worst(rows, name)] for name in measured},
    }
    write_results(path, rows, settings, facts)


def was_run(rows: Sequence[Row]) -> list[str]:
    """What was run, a line per network, batch and method: orders with their corruptions and seeds, images."""
    groups: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in rows:
        key = row["network"], row["batch"], row["method"]
        groups.setdefault(key, {}).setdefault(row["order"], []).append(row)
    lines = []
    for (name, batch, method), orders in sorted(groups.items()):
        same = [row for found in orders.values() for row in found]
        images = ", ".join(map(str, sorted({row["images"] for row in same})))
        shown = (f"{order} ({_extent(orders[order])})" for order in ORDERS if order in orders)
        lines.append(f"{name}, batch {batch}, {method}, {images} images: {', '.join(shown)}")
    return lines


def _extent(rows: Sequence[Row]) -> str:
    kinds = {(row["corruption"], row["severity"]) for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    return f"{len(kinds)} conditions, seed {' '.join(map(str, seeds))}"


def show(rows: Sequence[Row]) -> None:
    """Print means, worst cells and goals."""
    if not rows:
        return
    print_table(*table(rows), left=("network", "order"))
    for method in OURS:
        if any(row["method"] == method for row in rows):
            print_line(f"{method}, most above the source:")
            for cell in worst(rows, method, 5):
                print_line(f"  {cell}")
            for goal in goals(rows, method):
                state = {True: "met", False: "MISSED", None: "-"}[goal.met]
                print_line(f"  {state:7s} {goal.what}: {goal.found}")


def _cell(row: Row) -> tuple[Any, ...]:
    """What rows of the same cell have in common."""
    names = ("order", "batch", "corruption", "severity", "seed", "network", "method")
    return *(row[name] for name in names), row.get("starts", 0) > 1
