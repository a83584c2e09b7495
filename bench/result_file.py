"""Result files of benches: rows with the machine, versions, settings and date that they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetta.environment import environment
from edgetta.errors import UsageError
from edgetta.storage import atomic_write_text


def write_results(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write rows to a JSON file, one to a line, atomically; `facts` stand beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**environment(), "settings": dict(settings), **(facts or {})}
    head = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    lines = ",\n    ".join(json.dumps(dict(row), ensure_ascii=False, allow_nan=False) for row in rows)
    atomic_write_text(path, f'{head[:-2]},\n  "rows": [\n    {lines}\n  ]\n}}\n')


def results_to_continue(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What an interrupted run left at `path`; nothing where there is no file.

    Raises:
        UsageError: a file that is no result file, or one of other settings or versions: its rows would be lost.
    """
    if not path.exists():
        return {}
    try:
        written = json.loads(path.read_text())
        versions, earlier = dict(written["versions"]), dict(written["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no result file, or a damaged one; name another, or move it away") from error
    now = json.loads(json.dumps({**environment()["versions"], **settings}))
    before = {**versions, **earlier}
    if before != now:
        other = ", ".join(sorted(name for name in {*before, *now} if before.get(name) != now.get(name)))
        raise UsageError(f"{path} was measured with other settings or versions ({other}); name another, or move it")
    return dict(written)


def rows_to_continue(path: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of `results_to_continue`."""
    return list(results_to_continue(path, settings).get("rows", []))
