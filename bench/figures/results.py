"""Result files, read when they are asked for, and numbers as tables have them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

HERE = "bench/results"
Rows = list[dict[str, Any]]


class Results:
    """The result files of a folder, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, name: str) -> bool:
        return (self.folder / f"{name}.json").is_file()

    def read(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
        return content

    def rows(self, name: str, **wanted: Any) -> Rows:
        """The rows whose fields are those."""
        rows = self.read(name)["rows"] if self.has(name) else []
        return [row for row in rows if all(row.get(field) == value for field, value in wanted.items())]

    def origin(self, name: str) -> str:
        """Machine, threads, versions and date of a file, in words."""
        content = self.read(name)
        machine, versions = content["machine"], content["versions"]
        threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
        found = [("torch", versions.get("torch")), ("ONNX Runtime", versions.get("onnxruntime"))]
        told = ", ".join(f"{program} {version}" for program, version in found if version)
        return f"{machine['processor']}, {threads}, {told}, {content['date']}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; the first column holds words, the others numbers."""
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def mean(rows: Rows, field: str) -> float | None:
    """Mean of a field; None where there are no rows."""
    return fmean(row[field] for row in rows) if rows else None


def number(value: float | None, form: str = ".1f", unit: str = "") -> str:
    """A number as the tables have it; a dash for none."""
    return "–" if value is None else f"{value:{form}}{unit}"


def megabytes(value: float | None) -> str:
    return number(None if value is None else value / 1e6, ".0f", " MB")
