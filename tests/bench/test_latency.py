"""The latency bench: rows, file, and wrong arguments. It asserts no time."""

from __future__ import annotations

import json
import math
from pathlib import Path

from click.testing import CliRunner

from edgetta.bench.latency import command
from edgetta.errors import UsageError


def test_writes_rows_with_machine_versions_and_settings(tmp_path: Path) -> None:
    file = tmp_path / "latency.json"
    arguments = (
        "--model resnet20 --batch 4 --engine torch,onnxruntime --gradient exact,local --bn batch --repetitions 1"
    )
    result = CliRunner().invoke(command, [*arguments.split(), "--json", str(file)], catch_exceptions=False)
    assert result.exit_code == 0 and "x" in result.output
    written = json.loads(file.read_text())
    assert (
        written["versions"]["torch"]
        and written["machine"]["cores"]
        and written["date"]
        and written["settings"]["batch"] == 4
    )
    rows = written["rows"]
    assert [(r["engine"], r["gradient"], r["adapt"]) for r in rows] == [
        (engine, gradient, adapt)
        for adapt in ("meta", "affine")
        for engine in ("torch", "onnxruntime")
        for gradient in ("exact", "local")
    ]
    for row in rows:
        assert all(
            row[f"{kind}_seconds"] > 0 and math.isfinite(row[f"{kind}_seconds"])
            for kind in ("inference", "predict", "step")
        )
        assert (row["packing_seconds"] > 0) == (row["gradient"] == "exact"), "only bits are packed"
        assert row["packing_seconds"] < row["step_seconds"]
    assert len({row["predict_seconds"] for row in rows}) == 4, "one per engine and what adapts"


def test_unknown_engine_is_named() -> None:
    result = CliRunner().invoke(command, ["--engine", "tensorflow"])
    assert isinstance(result.exception, UsageError) and "onnxruntime" in str(result.exception)
