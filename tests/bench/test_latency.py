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
    for engine in ("torch", "onnxruntime"):
        arguments = f"--model resnet20 --batch 4 --engine {engine} --repetitions 1 --json {file}"
        result = CliRunner().invoke(command, arguments.split(), catch_exceptions=False)
        assert result.exit_code == 0 and "step / TENT" in result.output
    written = json.loads(file.read_text())
    assert written["versions"]["torch"] and written["machine"]["cores"] and written["date"]
    assert [(row["engine"], row["batch"]) for row in written["rows"]] == [("torch", 4), ("onnxruntime", 4)]
    for row in written["rows"]:
        seconds = [value for name, value in row.items() if name.endswith("_seconds")]
        assert len(seconds) == 9 and all(value > 0 and math.isfinite(value) for value in seconds)
        assert row["learn_images"] == 4


def test_unknown_engine_is_named() -> None:
    result = CliRunner().invoke(command, ["--engine", "tensorflow"])
    assert isinstance(result.exception, UsageError) and "onnxruntime" in str(result.exception)
