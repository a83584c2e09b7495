"""The bench of plans: a small network's budgets, planned, measured in processes of their own, and continued."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from edgetta.adaptation.config import AdaptConfig
from edgetta.bench import plan as bench
from edgetta.bench.plan import ABOVE, command, trouble_of
from edgetta.errors import EdgettaError, UsageError
from edgetta.memory import plan
from edgetta.memory.plan import BudgetError

linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is measured on Linux")


@linux
@pytest.mark.full
def test_plans_of_a_small_network_are_measured_once(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    options = ["--model", "resnet20", "--batch", "64", "--engine", "onnxruntime", "--work", str(tmp_path / "work")]
    options += ["--budgets", "2", "--json", str(file)]
    first = CliRunner().invoke(command, options)
    assert first.exception is None or isinstance(first.exception, EdgettaError), first.output
    written = json.loads(file.read_text())
    again = CliRunner().invoke(command, options)
    assert json.loads(file.read_text())["rows"] == written["rows"] and again.output == first.output
    assert len(written["rows"]) == 2 and written["settings"]["engines"] == ["onnxruntime"]
    for row in written["rows"]:
        assert row["choice"]["engine"] == "onnxruntime"
        assert 0.8 < row["predicted_bytes"] / row["measured_bytes"] < 1.25, "noise of a loaded machine set aside"


def test_what_breaks_a_plan_is_named() -> None:
    row = {"model": "net", "budget_bytes": 100_000_000, "predicted_bytes": 90_000_000, "measured_bytes": 90_000_000}
    assert trouble_of(row) == ""
    assert "took 101.0 MB" in trouble_of({**row, "measured_bytes": 101_000_000})
    assert "predicted were 90.0" in trouble_of({**row, "measured_bytes": 96_000_000})
    low = round(90_000_000 / (1 + ABOVE)) - 1_000_000
    assert "predicted were 90.0" in trouble_of({**row, "measured_bytes": low})


def test_budgets_begin_with_the_smallest_that_adapts(monkeypatch: pytest.MonkeyPatch) -> None:
    def plan_step(bundle: object, budget: int, wishes: object) -> SimpleNamespace:
        if budget < 500:
            raise BudgetError("too small", 500)
        return SimpleNamespace(cost=SimpleNamespace(peak=1000))

    monkeypatch.setattr(plan, "plan_step", plan_step)
    budgets = bench.budgets_for(SimpleNamespace(config=AdaptConfig()), 8, 4)  # type: ignore[arg-type]
    assert budgets[0] == 500 and len(budgets) == 4 and budgets[-1] > 1000
    ratios = [later / budget for budget, later in itertools.pairwise(budgets)]
    assert max(ratios) == pytest.approx(min(ratios), rel=0.01)


def test_an_unknown_engine_is_named() -> None:
    with pytest.raises(UsageError, match="--engine 'tensorrt' is none of this processor; choose from"):
        CliRunner().invoke(command, ["--engine", "tensorrt"], catch_exceptions=False)
