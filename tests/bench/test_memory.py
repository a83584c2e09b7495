"""The memory bench: rows from fresh processes, continued; every method's step; the section for pages; bad options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgetta.bench.memory.cases import METHODS, STOCK, Case, cases
from edgetta.bench.memory.command import command
from edgetta.bench.memory.measurement import stock_here
from edgetta.bench.memory.section import section, write_plot
from edgetta.bench.memory.summary import goals, is_exact
from edgetta.bench.plan import exported
from edgetta.bench.result_file import write_results
from edgetta.errors import UsageError

linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is measured on Linux")
FIELDS = {
    *("method", "model", "batch", "engine", "gradient", "bn", "storage", "slice", "kept_bytes", "alive_bytes"),
    *("peak_bytes", "inference_peak_bytes", "analytic_bytes", "step_seconds", "inference_seconds"),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


@linux
def test_rows_are_measured_once_and_stand_beside_inference(work: Path, tmp_path: Path) -> None:
    file = tmp_path / "memory.json"
    options = ["--model", "resnet20", "--batch", "64", "--engine", "onnxruntime", "--storage", "full"]
    options += ["--work", str(work), "--json", str(file)]
    CliRunner().invoke(command, [*options, "--methods", "tent"], catch_exceptions=False)
    before = json.loads(file.read_text())["rows"]
    result = CliRunner().invoke(command, [*options, "--methods", "tent,edgetta"], catch_exceptions=False)
    assert "x1.00" in result.output and "TENT" in result.output and (tmp_path / "memory.svg").is_file()
    rows = json.loads(file.read_text())["rows"]
    assert rows[:3] == before, "what was written is not measured again"
    assert all(set(row) == FIELDS for row in rows)
    plain, torch_plain, tent, whole, sliced = rows
    assert [row["method"] for row in rows] == ["inference", "inference", "tent", "edgetta", "edgetta"]
    assert plain["engine"] == whole["engine"] == "onnxruntime" and torch_plain["engine"] == tent["engine"] == "torch"
    assert whole["inference_peak_bytes"] == plain["peak_bytes"] and whole["inference_seconds"] == plain["step_seconds"]
    assert tent["inference_peak_bytes"] == torch_plain["peak_bytes"]
    assert (whole["slice"], sliced["slice"]) == (0, 8) and sliced["peak_bytes"] < whole["peak_bytes"]
    assert plain["kept_bytes"] == 0 < whole["kept_bytes"] < tent["kept_bytes"] < tent["peak_bytes"]
    for row in (tent, whole, sliced):
        assert abs(row["alive_bytes"] - row["kept_bytes"]) <= 0.1 * row["kept_bytes"], row
    # Meta-networks alone train in one, every BatchNorm in the other.
    assert whole["analytic_bytes"] < tent["analytic_bytes"]


@linux
@pytest.mark.parametrize("method", STOCK)
def test_every_stock_method_takes_a_step(method: str, work: Path) -> None:
    bundle = str(exported("resnet20", work).path)
    found = stock_here(bundle, 0, Case(method, "resnet20", 4, "torch").to_json())
    assert found["seconds"] > 0
    assert (found["kept_bytes"] > 0) == (found["analytic_bytes"] is not None) == (method != "bn")


def test_cases_name_what_differs() -> None:
    found = cases({"wrn40_2": 64}, METHODS, ("onnxruntime", "torch"))
    assert len(set(found)) == len(found) and [case.method for case in found[:2]] == ["inference", "inference"]
    assert all(case.inference in found for case in found)
    own = [case for case in found if case.method == "edgetta" and case.engine == "torch"]
    assert {case.slice for case in own} == {0, 8} and {case.gradient for case in own} == {
        "exact",
        "recompute",
        "local",
    }
    assert {case.slice for case in cases({"a": 8}, ["edgetta"], ["torch"])} == {0, 1}


def row(method: str, megabytes: float, **fields: Any) -> dict[str, Any]:
    case = Case(method, "net", 64, fields.pop("engine", "onnxruntime"), **fields).to_json()
    counts = {"kept_bytes": 1_000_000, "alive_bytes": 1_000_000, "analytic_bytes": None}
    times = {"step_seconds": 2.0, "inference_seconds": 1.0}
    return {**case, **counts, **times, "peak_bytes": round(megabytes * 1e6), "inference_peak_bytes": 20_000_000}


ROWS = [
    row("inference", 20, bn="source"),
    row("tent", 400, engine="torch", gradient="autograd", bn="batch"),
    row("edgetta", 50, gradient="exact", storage="recompute", slice=8),
    row("edgetta", 70, gradient="exact", storage="full"),
    row("edgetta", 42, gradient="exact", storage="recompute-int8", slice=8),
    row("edgetta", 10, engine="torch", gradient="exact", storage="recompute", slice=8),
]


def test_goals_are_those_of_one_engine() -> None:
    smallest, exact, tent = goals(ROWS)
    assert (smallest.ratio, smallest.held) == (pytest.approx(2.1), False) and "missed by 0.10" in smallest.told()
    assert (exact.ratio, exact.held) == (pytest.approx(2.5), True) and is_exact(exact.row)
    assert tent.ratio == pytest.approx(0.105)
    assert (
        tent.told()
        == "net, smallest choice: 0.10 times TENT on stock torch (goal 0.2: holds), `recompute-int8`, slices of 8"
    )
    assert goals(ROWS[:2]) == []
    local = row("edgetta", 41.9, gradient="local", storage="int8", slice=8)
    assert goals([*ROWS, local])[0].row is ROWS[4], "within the noise, the one that gives up least"


def test_the_section_has_a_table_for_each_model_and_the_plot(tmp_path: Path) -> None:
    results = tmp_path / "memory.json"
    write_results(results, ROWS, {})
    plot = write_plot(results.with_suffix(".svg"), ROWS)
    told = section(json.loads(results.read_text()), "results/memory.json", "results/memory.svg")
    assert "| TENT | torch | 1 MB | 400 MB | x20.00 | x1.00 |  |" in told
    assert "| **edgetta** `recompute`, slices of 8 | ONNX Runtime | 1 MB | 50 MB | x2.50 | x0.12 |  |" in told
    assert "(results/memory.svg)" in told and "[results/memory.json](results/memory.json)" in told
    drawn = plot.read_bytes()
    assert b"recompute, slices of 8" in drawn and write_plot(plot, ROWS).read_bytes() == drawn


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--methods", "tnet"], "ecotta-stock"),
        (["--engine", "tensorflow"], "onnxruntime"),
        (["--storage", "tiny"], "recompute-int8"),
    ],
)
def test_bad_options_name_themselves(options: list[str], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        CliRunner().invoke(command, options, catch_exceptions=False)
