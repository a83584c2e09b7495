"""The bench of engines: a row for each, continued where it ended, and refusals told.

The full matrix writes `bench/results/tensorrt_build.json`, network by network.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgetta.bench import tensorrt_build
from edgetta.bench.tensorrt_build import command, run
from edgetta.engines.tensorrt import build
from edgetta.engines.tensorrt.build import BuiltEngine, EngineBuildError
from edgetta.errors import EdgettaError
from edgetta.export import recipe as recipes
from edgetta.export.recipe import Recipe

pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx: it builds without a GPU")
RESULTS = Path(__file__).parent.parent.parent / "bench" / "results" / "tensorrt_build.json"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """`small` is a network of two parts."""
    original = recipes.derive_recipe

    def derive(recipe: Recipe) -> Any:
        derived = original(Recipe("resnet20", width=0.25, parts=2, batch_norm=recipe.batch_norm))
        return type(derived)(recipe, derived.model, derived.adaptable, derived.origin)

    monkeypatch.setattr(recipes, "derive_recipe", derive)


def test_every_program_is_built(small: None) -> None:
    rows = run(["small"], ["source"], ["fp16"], [17])
    assert [row["program"] for row in rows] == ["predict", "measure", "forward", "backward", "recompute"]
    for row in rows:
        assert row["built"] and row["seconds"] > 0 and row["engine_bytes"] > 1000
        assert (row["model"], row["precision"], row["opset"]) == ("small", "fp16", 17)


def test_it_continues_where_it_ended_and_tries_again_what_failed(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "build.json"
    seen: list[tuple[str, str]] = []
    fail = True

    def pretend(model: Any, title: str, options: Any) -> BuiltEngine:
        seen.append((title, options.precision))
        if fail and title == "forward" and options.precision == "fp16":
            raise EngineBuildError("memory ran out")
        return BuiltEngine(b"engine", 0.5, 1 << 20)

    monkeypatch.setattr(build, "build_engine", pretend)
    arguments = ["--model", "small", "--bn", "source", "--opset", "17", "--json", str(file)]
    first = CliRunner().invoke(command, arguments)
    assert isinstance(first.exception, EdgettaError)
    assert "1 of 10 engines were not built, first small forward in fp16: memory ran out" in str(first.exception)
    assert "4 of 5" in first.output
    assert len(json.loads(file.read_text())["rows"]) == 10
    fail = False
    seen.clear()
    again = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert again.exit_code == 0 and "5 of 5" in again.output
    assert {precision for _, precision in seen} == {"fp16"} and len(seen) == 5
    seen.clear()
    CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert seen == []


def test_it_can_be_done_in_pieces(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "build_engine", lambda *_: BuiltEngine(b"engine", 0.5, 1 << 20))
    file = tmp_path / "build.json"
    arguments = ["--model", "small", "--precision", "fp32", "--opset", "17", "--limit", "1", "--json", str(file)]
    for forms in ({"source"}, {"source", "adaptive"}):
        CliRunner().invoke(command, arguments, catch_exceptions=False)
        assert {row["batch_norm"] for row in json.loads(file.read_text())["rows"]} == forms


@pytest.mark.full
@pytest.mark.parametrize("network", tensorrt_build.NETWORKS)
def test_whole_networks(network: str) -> None:
    """All five programs; opset 17 and the newest; float32 and float16."""
    rows = run([network], path=RESULTS)
    assert len(rows) == 2 * 2 * 2 * 5
    assert not [row for row in rows if not row["built"]]
