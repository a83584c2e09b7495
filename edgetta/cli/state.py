"""`edgetta state`: the saves of a state, what is in one, how two differ, and the way back."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgetta.state_files.contents import Contents

EXAMPLES = """\b
Examples:
  edgetta state list learnt.safetensors
  edgetta state diff learnt.safetensors.2 learnt.safetensors
  edgetta state restore learnt.safetensors 1
  edgetta state export learnt.safetensors best.safetensors
"""


@click.group(epilog=EXAMPLES)
def command() -> None:
    """Look at what was learnt. STATE is the file of `edgetta run --state`; FILE.1 and FILE.2 are the saves before."""


_FILE = click.Path(path_type=Path)


@command.command("list")
@click.argument("state", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, for programs.")
def list_(state: Path, as_json: bool) -> None:
    """Show the saves of STATE, the newest first, and what was set aside."""
    from edgetta.cli.tables import print_line, print_table
    from edgetta.errors import BundleError
    from edgetta.state_files import StateFile

    file = StateFile(state)
    rows = [_row(number, path) for number, path in enumerate(file.generations) if path.exists()]
    aside = [path.name for path in file.damaged]
    if not rows and not aside:
        raise BundleError(f"there is no state {state}, nor a save before it")
    if as_json:
        click.echo(json.dumps({"saves": rows, "set_aside": aside}, indent=2))
        return
    columns = ("generation", "file", "saved", "batches", "updates", "bytes", "state")
    print_table(columns, [[row[column] for column in columns] for row in rows], left=("file", "saved", "state"))
    for name in aside:
        print_line(f"set aside: {name}", style="yellow")


@command.command()
@click.argument("file", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, for programs.")
def show(file: Path, as_json: bool) -> None:
    """Show what is in FILE: its facts, and each array."""
    import numpy as np

    from edgetta.cli.tables import print_facts, print_table
    from edgetta.state_files.contents import read

    contents = read(file)
    rows = []
    for name, array in sorted(contents.arrays.items()):
        values = array.astype(np.float64)
        ends = (float(values.min()), float(values.max())) if values.size else (None, None)
        norm = float(np.linalg.norm(values))
        rows.append({"array": name, "shape": list(array.shape), "norm": norm, "low": ends[0], "high": ends[1]})
    if as_json:
        click.echo(json.dumps({"info": dict(contents.info), "arrays": rows}, indent=2))
        return
    print_facts((name, _plain(value)) for name, value in contents.info.items())
    columns = ("array", "shape", "norm", "low", "high")
    print_table(columns, [[_cell(row[column]) for column in columns] for row in rows], left=("array", "shape"))


@command.command()
@click.argument("first", type=_FILE)
@click.argument("second", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, for programs.")
def diff(first: Path, second: Path, as_json: bool) -> None:
    """Show how far the arrays of two saves are from each other, those that differ most first."""
    from edgetta.cli.tables import print_line, print_table
    from edgetta.state_files.contents import read

    rows = differences(read(first), read(second))
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    moved = [row for row in rows if row["distance"] != 0]
    columns = ("array", "distance", "relative", "note")
    print_table(columns, [[_cell(row[column]) for column in columns] for row in moved], left=("array", "note"))
    print_line(f"{len(moved)} of {len(rows)} arrays differ")


@command.command()
@click.argument("state", type=_FILE)
@click.argument("generation", type=click.IntRange(1))
def restore(state: Path, generation: int) -> None:
    """Make an earlier save of STATE the newest again; the present one becomes the one before it."""
    from edgetta.cli.tables import print_line
    from edgetta.state_files import StateFile

    file = StateFile(state)
    with file.lock():
        file.restore(generation)
    print_line(f"{state} is again what it was {generation} {'save' if generation == 1 else 'saves'} ago")


@command.command()
@click.argument("state", type=_FILE)
@click.argument("file", type=_FILE)
@click.option("--overwrite", is_flag=True, help="Replace FILE where it exists.")
def export(state: Path, file: Path, overwrite: bool) -> None:
    """Copy the newest whole save of STATE to FILE, for another device or to keep."""
    from edgetta.cli.tables import print_line
    from edgetta.errors import BundleError, UsageError
    from edgetta.state_files import StateFile, encode
    from edgetta.state_files.contents import StateError, read
    from edgetta.storage import atomic_write_bytes

    if file.exists() and not overwrite:
        raise UsageError(f"{file} exists; choose another file, or say so with --overwrite")
    for path in StateFile(state).generations:
        try:
            contents = read(path)
        except StateError:
            continue
        atomic_write_bytes(file, encode(contents))
        print_line(f"{file} is a copy of {path}")
        return
    raise BundleError(f"{state} has no save that is whole")


def differences(first: Contents, second: Contents) -> list[dict[str, Any]]:
    """Per array: the L2 distance, and as a share of the first one's norm; None where they cannot be compared."""
    import numpy as np

    rows: list[dict[str, Any]] = []
    for name in sorted({*first.arrays, *second.arrays}):
        a, b = first.arrays.get(name), second.arrays.get(name)
        row: dict[str, Any] = {"array": name, "distance": None, "relative": None, "note": ""}
        if a is None or b is None:
            row["note"] = f"only in the {'second' if a is None else 'first'}"
        elif a.shape != b.shape:
            row["note"] = f"{a.shape} and {b.shape}"
        else:
            row["distance"] = float(np.linalg.norm(a.astype(np.float64) - b.astype(np.float64)))
            norm = float(np.linalg.norm(a.astype(np.float64)))
            row["relative"] = row["distance"] / norm if norm else None
        rows.append(row)
    return sorted(rows, key=lambda row: -(float("inf") if row["distance"] is None else row["relative"] or 0.0))


def _row(generation: int, path: Path) -> dict[str, Any]:
    from edgetta.state_files.contents import StateError, read

    status = path.stat()
    saved = datetime.datetime.fromtimestamp(status.st_mtime, datetime.timezone.utc).isoformat(timespec="seconds")
    row: dict[str, Any] = {"generation": generation, "file": path.name, "saved": saved, "bytes": status.st_size}
    try:
        contents = read(path)
    except StateError as error:
        return {**row, "batches": None, "updates": None, "bundle": None, "state": str(error)}
    counters = contents.info.get("counters")
    counters = counters if isinstance(counters, dict) else {}
    known = {"batches": counters.get("steps"), "updates": counters.get("updates")}
    return {**row, **known, "bundle": contents.info.get("bundle"), "state": "whole"}


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else _plain(value)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
