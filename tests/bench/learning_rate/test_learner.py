"""The learner bench: runs on real digits, rows that are kept, wrong arguments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgetta.bench.learning_rate.command import command
from edgetta.bench.learning_rate.learner import against_the_grid
from edgetta.errors import UsageError

TINY = (
    "--part learner --model resnet20 --width 0.25 --data digits --training-images 64 --test-images 64 --epochs 3 "
    "--rules quantile"
)


def test_a_learner_trains_beside_the_grid_and_what_is_done_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "learner.json"
    arguments = [*TINY.split(), "--grid", "0.05", "--batch", "16", "--json", str(file)]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert (
        result.exit_code == 0 and "quantile" in result.output and "points against the best constant" in result.output
    )
    rows = json.loads(file.read_text())["rows"]
    methods = ("quantile, falling", "quantile", "0.05", "0.05, falling")
    assert [(row["method"], row["seed"]) for row in rows] == [(m, s) for s in (0, 1, 2) for m in methods]
    ours = rows[0]
    assert len(ours["rates"]) == 2 and all(0 < rate < 100 for rate in ours["rates"])
    assert 0 < ours["analysis_share"] < 1 and rows[2]["analysis_share"] == 0
    assert rows[2]["final_accuracy"] != rows[3]["final_accuracy"], "a rate that falls is another training"
    assert all(0 <= row["final_accuracy"] <= 1 and row["optimizer"] == "sgd, momentum 0.9" for row in rows)
    file.write_text(file.read_text().replace(f"{ours['final_accuracy']}", "0.123", 1))
    CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert json.loads(file.read_text())["rows"][0]["final_accuracy"] == 0.123, "it was not measured again"


def test_the_score_is_against_the_best_rate_of_each_kind() -> None:
    def rows(method: str, *accuracies: float) -> list[dict[str, object]]:
        return [{"method": method, "final_accuracy": accuracy} for accuracy in accuracies]

    found = [*rows("quantile", 0.7, 0.72), *rows("0.1", 0.6, 0.8), *rows("1", 0.75, 0.5), *rows("1, falling", 0.73)]
    assert against_the_grid(found, ("quantile",)) == {
        "quantile": {"constant": pytest.approx(1.0), "falling": pytest.approx(-2.0)}
    }
    found += rows("quantile, falling", 0.74)
    assert against_the_grid(found, ("quantile",))["quantile, falling"]["falling"] == pytest.approx(1.0)
    assert "falling" not in against_the_grid(rows("quantile", 0.7) + rows("0.1", 0.6), ("quantile",))["quantile"]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--rules", "sgd", "rule 'sgd' is unknown; choose from quantile, ssgd"),
        ("--grid", "0.1,fast", "write numbers separated by commas"),
        ("--grid", "0", "rates are positive"),
        ("--rules", " ", "--rules names nothing"),
    ],
)
def test_wrong_arguments_are_named(option: str, value: str, words: str) -> None:
    result = CliRunner().invoke(command, [*TINY.split(), option, value])
    assert isinstance(result.exception, UsageError) and words in str(result.exception)
