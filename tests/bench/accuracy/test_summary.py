"""The accuracy bench's arithmetic: gaps, the oracle, intervals, paired differences, and the choice of settings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgetta.bench.accuracy.command import command
from edgetta.bench.accuracy.methods import METHODS, TRIALS
from edgetta.bench.accuracy.plot import plot
from edgetta.bench.accuracy.summary import Mean, markdown, paired, with_gaps
from edgetta.bench.accuracy.tuning import chosen
from edgetta.errors import UsageError


def row(method: str, error: float, seed: int = 0, **errors: float) -> dict[str, Any]:
    run = {"stream": "continual", "model": "m", "batch": 64, "images": 10, "seed": seed}
    others = {"clean_error_after": 9.0, "kept_bytes": 100, "errors": errors or {"a": error, "b": error}}
    return {**run, "method": method, "error": error, **others}


def test_the_gap_is_measured_from_batch_statistics_to_the_better_oracle() -> None:
    rows = with_gaps(
        [
            row("batch_norm_statistics", 22.0),
            row("oracle_affine", 21.0),
            row("oracle_meta", 20.0),
            row("edgetta", 20.5),
        ]
    )
    gaps = {r["method"]: r["gap_closed"] for r in rows}
    assert gaps == {
        "batch_norm_statistics": 0,
        "oracle_affine": 0.5,
        "oracle_meta": 1,
        "edgetta": 0.75,
        "oracle": 1,
    }
    assert [r["of"] for r in rows if r["method"] == "oracle"] == ["oracle_meta"]
    again = with_gaps(rows)
    assert len(again) == len(rows), "summarising twice adds nothing"


def test_without_both_oracles_or_with_worse_ones_there_is_no_gap() -> None:
    assert with_gaps([row("batch_norm_statistics", 22.0), row("oracle_meta", 20.0)])[0]["gap_closed"] is None
    rows = [row("batch_norm_statistics", 22.0), row("oracle_meta", 23.0), row("oracle_affine", 22.5)]
    assert all(r["gap_closed"] is None for r in with_gaps(rows))


def test_runs_of_other_seeds_are_not_mixed() -> None:
    rows = [
        row(name, error + seed, seed)
        for seed in (0, 1)
        for name, error in (
            ("batch_norm_statistics", 22.0),
            ("oracle_affine", 20.0),
            ("oracle_meta", 21.0),
            ("edgetta", 21.0),
        )
    ]
    assert [r["gap_closed"] for r in with_gaps(rows) if r["method"] == "edgetta"] == [0.5, 0.5]


def test_an_interval_over_three_seeds() -> None:
    mean = Mean.of([1.0, 2.0, 3.0])
    assert mean.value == 2 and mean.half_width == pytest.approx(4.30 / math.sqrt(3))
    assert str(Mean.of([2.0])) == "2.00"


def test_a_difference_in_every_pair_is_no_chance_and_a_mixed_one_is() -> None:
    kinds = {f"k{i}": float(i) for i in range(15)}
    ours = [row("edgetta", 0, seed, **{k: v - 0.5 for k, v in kinds.items()}) for seed in range(3)]
    theirs = [row("tent", 0, seed, **kinds) for seed in range(3)]
    difference, chance = paired(ours, theirs)
    assert difference == pytest.approx(-0.5) and chance < 0.001
    mixed = [row("edgetta", 0, 0, **{k: v + (0.5 if i % 2 else -0.5) for i, (k, v) in enumerate(kinds.items())})]
    assert paired(mixed, theirs)[1] > 0.5
    assert math.isnan(paired(ours, [])[0])


def test_the_best_trial_is_chosen_and_every_method_has_as_many() -> None:
    tried = [
        {"method": "tent", "model": "m", "batch": b, "images": 10, "settings": {"learning_rate": r}, "error": e}
        for b, r, e in ((64, 1, 20.0), (64, 2, 19.0), (200, 1, 18.0), (200, 2, 21.0))
    ]
    assert chosen(tried, "tent", 32, "m") == {"learning_rate": 2}
    assert chosen(tried, "tent", 200, "other") == {"learning_rate": 1}
    assert chosen(tried, "eata", 64, "m") == {}
    longer = {**tried[0], "images": 20, "error": 30.0}
    assert chosen([*tried, longer], "tent", 64, "m") == {"learning_rate": 1}, "a longer stream says more"
    assert {len(entry.trials) for entry in METHODS.values()} <= {1, TRIALS}


def test_table_and_picture(tmp_path: Path) -> None:
    rows = [row("edgetta", 20.0, s, a=19.0, b=21.0) for s in (0, 1)] + [
        row("tent", 22.0, s, a=21.0, b=23.0) for s in (0, 1)
    ]
    text = markdown(rows)
    assert "| continual | 64 | 10 | edgetta | 20.00 ± 0.00 |" in text and "-2.00" in text
    plot(rows, tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()


@pytest.mark.parametrize(
    "option", [["--methods", "none"], ["--streams", "none"], ["--batches", "0"], ["--seeds", "x"]]
)
def test_unknown_words_are_named(option: list[str]) -> None:
    result = CliRunner().invoke(command, option)
    assert isinstance(result.exception, UsageError) and option[0] in str(result.exception)


def test_a_finished_file_is_not_run_again(tmp_path: Path) -> None:
    from edgetta.bench.result_file import write_results

    path = tmp_path / "accuracy.json"
    done = {**row("source", 40.0), "model": "resnet20_jpegft", "settings": {}}
    write_results(path, [done], {"severity": 5, "clean": 500, "tuned": False})
    result = CliRunner().invoke(
        command,
        [
            "--methods",
            "source",
            "--images",
            "10",
            "--seeds",
            "0",
            "--json",
            str(path),
            "--markdown",
            str(tmp_path / "t.md"),
        ],
    )
    assert result.exit_code == 0, result.output
    assert json.loads(path.read_text())["rows"] == [done]
    assert "| source | 40.00 |" in (tmp_path / "t.md").read_text()


def test_results_of_other_settings_are_not_overwritten(tmp_path: Path) -> None:
    from edgetta.bench.result_file import write_results

    path = tmp_path / "accuracy.json"
    write_results(path, [row("source", 40.0)], {"severity": 5, "clean": 499, "tuned": False})
    before = path.read_text()
    result = CliRunner().invoke(command, ["--methods", "source", "--json", str(path)])
    assert isinstance(result.exception, UsageError) and "other settings" in str(result.exception)
    assert path.read_text() == before
