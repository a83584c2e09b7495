"""The memory bench: rows from fresh processes, continued; every method's step; README's section; bad options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgetta.adaptation.step_plan import KEEP, StepPlan
from edgetta.bench.memory import cases as cases_of
from edgetta.bench.memory.cases import METHODS, STOCK, Case, cases
from edgetta.bench.memory.command import command
from edgetta.bench.memory.measurement import measure
from edgetta.bench.memory.section import section, write_plot
from edgetta.bench.memory.summary import goals
from edgetta.bench.result_file import write_results
from edgetta.errors import UsageError

linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is measured on Linux")
FIELDS = {
    *("method", "model", "batch", "engine", "keep", "learn", "slice", "predict", "kept_bytes", "alive_bytes"),
    *("peak_bytes", "process_bytes", "inference_peak_bytes", "analytic_bytes", "step_seconds", "inference_seconds"),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


@linux
def test_rows_are_measured_once_and_stand_beside_inference(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "memory.json"
    monkeypatch.setattr(cases_of, "WAYS", (KEEP, StepPlan(False, slice=4, predict=8)))
    options = ["--model", "resnet20", "--batch", "64", "--engine", "onnxruntime"]
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
    assert (whole["keep"], sliced["keep"], sliced["slice"]) == (True, False, 4)
    assert sliced["peak_bytes"] < whole["peak_bytes"]
    assert plain["kept_bytes"] == sliced["kept_bytes"] == 0 < whole["kept_bytes"] < tent["kept_bytes"]
    for row in (tent, whole):
        assert abs(row["alive_bytes"] - row["kept_bytes"]) <= 0.1 * row["kept_bytes"], row
    assert all(row["process_bytes"] > row["peak_bytes"] for row in rows)
    assert sliced["process_bytes"] < tent["process_bytes"]


@linux
@pytest.mark.parametrize("method", STOCK)
def test_every_stock_method_takes_a_step(method: str) -> None:
    found = measure(Case(method, "resnet20", 4, "torch"), "no bundle is needed", None)
    assert found["step_seconds"] > 0 and found["process_bytes"] > found["peak_bytes"]
    assert (found["kept_bytes"] > 0) == (found["analytic_bytes"] is not None) == (method != "bn")


def test_cases_name_what_differs() -> None:
    found = cases({"wrn40_2": 64}, METHODS, ("onnxruntime", "torch"))
    assert len(set(found)) == len(found) and [case.method for case in found[:2]] == ["inference", "inference"]
    assert all(case.inference in found for case in found)
    own = [case.plan for case in found if case.method == "edgetta" and case.engine == "torch"]
    assert own == list(cases_of.WAYS)
    assert all(case.slice < 8 for case in cases({"a": 8}, ["edgetta"], ["torch"])), "no slices of all and more"


def row(method: str, megabytes: float, process: float = 300, model: str = "net", **fields: Any) -> dict[str, Any]:
    case = Case(method, model, 64, fields.pop("engine", "onnxruntime"), **fields).to_json()
    counts = {"kept_bytes": 1_000_000, "alive_bytes": 1_000_000, "analytic_bytes": None}
    times = {"step_seconds": 2.0, "inference_seconds": 1.0, "process_bytes": round(process * 1e6)}
    return {**case, **counts, **times, "peak_bytes": round(megabytes * 1e6), "inference_peak_bytes": 20_000_000}


ROWS = [
    row("inference", 20),
    row("tent", 400, 600, engine="torch"),
    row("edgetta", 200, 170),
    row("edgetta", 42, 120, keep=False, slice=4, predict=8),
    row("edgetta", 10, 90, engine="torch", keep=False, slice=1),
]


def test_goals_are_those_of_one_engine() -> None:
    smallest, tent = goals(ROWS)
    assert (smallest.value, smallest.held) == (pytest.approx(2.1), False) and "missed by 0.10" in smallest.told()
    expected = "net, smallest choice: 0.10 times TENT on stock torch (goal 0.2: holds), `recompute`, slices of 4"
    assert tent.value == pytest.approx(0.105) and tent.told() == expected
    assert goals(ROWS[:2]) == []
    quicker = row("edgetta", 42.1, slice=8) | {"step_seconds": 1.0}
    assert goals([*ROWS, quicker])[0].row is quicker, "within the noise, the quickest"


def test_whole_processes_have_goals_of_their_own() -> None:
    _, _, smallest, default, of_tent = goals([{**entry, "model": "wrn40_2"} for entry in ROWS])
    assert (smallest.value, smallest.held) == (120, False) and (default.value, default.held) == (170, True)
    assert of_tent.value == pytest.approx(170 / 600) and "missed by 0.03" in of_tent.told()


def test_the_section_has_its_table_its_goals_and_its_plot(tmp_path: Path) -> None:
    results = tmp_path / "memory.json"
    write_results(results, ROWS, {})
    plot = write_plot(results.with_suffix(".svg"), ROWS)
    text = section(json.loads(results.read_text()), "results/memory.json", "results/memory.svg")
    assert "| TENT | torch | 1 MB | 400 MB | x20.00 | x1.00 | 600 MB |  |" in text
    own = "| **edgetta** `recompute`, slices of 4 | ONNX Runtime | 1 MB | 42 MB | x2.10 | x0.10 | 120 MB |  |"
    assert own in text and "goal 0.2: holds" in text
    assert "(results/memory.svg)" in text and "[results/memory.json](results/memory.json)" in text
    drawn = plot.read_bytes()
    assert b"recompute, slices of 4" in drawn and write_plot(plot, ROWS).read_bytes() == drawn


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--methods", "tnet"], "ecotta-stock"),
        (["--engine", "tensorflow"], "onnxruntime"),
    ],
)
def test_bad_options_name_themselves(options: list[str], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        CliRunner().invoke(command, options, catch_exceptions=False)
