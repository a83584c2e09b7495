"""The demo, quick: every file, every figure where it should be, and a claim that fails is an exit code.

The whole demo, whose claims must hold, is `make demo`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetta.bench.demo import run_demo
from edgetta.bench.demo_report import error_rows
from edgetta.bench.demo_result import METHODS, DemoConfig, DemoResult
from edgetta.cli import main
from edgetta.errors import EdgettaError
from edgetta.offline.warm_up import WarmUpReport

CORRUPTIONS = DemoConfig.quick().corruptions


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoResult, list[str]]:
    """A quick run: its folder, its result and what it said."""
    out = tmp_path_factory.mktemp("demo") / "out"
    said: list[str] = []
    result = run_demo(out, config=DemoConfig.quick(), say=lambda line: said.append(str(line)), show=False)
    return out, result, said


def content_of(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "demo.json").read_text())
    return content


def test_demo_json_holds_every_figure(finished: tuple[Path, DemoResult, list[str]]) -> None:
    out, result, said = finished
    content = content_of(out)
    for method in METHODS:
        by_corruption = [row[method] for row in content["corruptions"]]
        assert (
            content[f"{method}_error"] == pytest.approx(np.mean(by_corruption)) == pytest.approx(result.mean(method))
        )
        assert all(0 <= error <= 100 for error in by_corruption)
    assert [row["corruption"] for row in content["corruptions"]] == list(CORRUPTIONS)
    assert 0 < content["saved_bytes"] < content["stock_saved_bytes"] < content["stock_saved_bytes_with_regulariser"]
    assert all(content[f"{kind}_seconds"] > 0 for kind in ("inference", "predict", "step"))
    assert content["versions"]["torch"] and content["machine"]["cores"] and content["date"]
    assert content["settings"]["severity"] == 5 and content["engine"] == "onnxruntime"
    assert list(content["stage_seconds"]) == [
        "training", "warm-up and export", "corrupting", "running the stream", "measuring",
    ]  # fmt: skip
    assert len(said) == 5 and all(re.match(r"\[ *\d+\.\d s\] \S", line) for line in said)


def test_errors_are_those_of_the_predictions(finished: tuple[Path, DemoResult, list[str]]) -> None:
    """What `edgetta run` wrote row by row gives the figures of the table."""
    out, result, _ = finished
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    with np.load(out / "stream.npz") as stream:
        labels = stream["labels"]
    assert len(rows) == len(labels) == 3 * 64
    wrong = np.array([int(row["class"]) for row in rows]) != labels
    for number, name in enumerate(CORRUPTIONS):
        assert result.errors["adapted"][name] == pytest.approx(100 * wrong[number * 64 :][:64].mean())
    assert any(row["adapted"] for row in rows)


def test_the_bundle_runs_again_to_the_same_predictions(
    finished: tuple[Path, DemoResult, list[str]], tmp_path: Path
) -> None:
    out, _, _ = finished
    again = tmp_path / "again.jsonl"
    arguments = ["run", str(out / "bundle"), str(out / "stream.npz"), "--batch", "32", "-o", str(again), "--quiet"]
    assert main(arguments) == 0
    first, second = (file.read_text().splitlines() for file in (out / "predictions.jsonl", again))
    assert [{**json.loads(row), "time": ""} for row in first] == [{**json.loads(row), "time": ""} for row in second]


class _Page(HTMLParser):
    """Text of the cells, sources of what is loaded, and tags left open."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.loaded: list[str] = []
        self.open: list[str] = []
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img", "path", "use", "br", "rect"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self._in_cell = True
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                continue
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.cells[-1] += data


def test_the_report_shows_the_figures_and_loads_nothing(finished: tuple[Path, DemoResult, list[str]]) -> None:
    out, result, _ = finished
    text = (out / "report.html").read_text()
    page = _Page()
    page.feed(text)
    for row in error_rows(result):
        start = page.cells.index(row[0])
        assert page.cells[start : start + len(row)] == row
    assert page.open == [], "every tag is closed"
    assert all(source.startswith(("data:image/png", "#")) for source in page.loaded)
    assert text.count("<svg") == 2 and text.count("<img") == 1 and "<script" not in text
    for name in ("speckle_noise", "gaussian_blur", "spatter", "saturate"):
        assert name in text, "what warm-up has seen is said"
    assert "nan" not in re.sub(r"<svg.*?</svg>|<img[^>]*>", "", text, flags=re.DOTALL).lower().split()


def test_a_claim_that_does_not_hold_is_exit_code_1_and_every_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network that has learnt nothing gains nothing; the demo says so, in every place."""
    judged = dataclasses.replace(DemoConfig.quick(), corruptions=("contrast",), judge=True)
    monkeypatch.setattr(DemoConfig, "quick", staticmethod(lambda: judged))
    out = tmp_path / "demo"
    assert main(["demo", "--quick", "--engine", "torch", "--out", str(out)]) == 1
    shown = capsys.readouterr()
    assert "FAILS: edgetta takes" in shown.out
    error = " ".join(shown.err.split())
    assert "the demo does not show what it should: edgetta takes" in error and "Traceback" not in error
    claims = content_of(out)["claims"]
    assert len(claims) == 4 and not claims[0]["holds"] and claims[3]["holds"]
    assert "DOES NOT HOLD" in (out / "report.html").read_text()


def outcome(**changes: float) -> DemoResult:
    means = {"source": 60.0, "bn": 30.0, "tent": 29.0, "warm_up_only": 25.0, "adapted": 25.0, **changes}
    return DemoResult(
        errors={method: {"fog": means[method]} for method in METHODS},
        clean_error=5.0,
        warm_up=WarmUpReport(0.5, 0.9, 10, 0.1),
        parameters=100,
        saved_bytes=int(means.get("saved", 100)),
        stock_saved_bytes=300,
        stock_saved_bytes_with_regulariser=330,
        tent_saved_bytes=310,
        step_seconds=0.3,
        predict_seconds=0.15,
        inference_seconds=0.1,
        stage_seconds={},
        curves={},
    )


@pytest.mark.parametrize(
    ("changes", "holding"),
    [
        ({}, [True, True, True, True]),
        ({"source": 34.9}, [False, True, True, True]),
        ({"bn": 25.0}, [True, False, True, True]),
        ({"warm_up_only": 24.4}, [True, True, False, True]),
        ({"warm_up_only": 24.6}, [True, True, True, True]),
        ({"saved": 300}, [True, True, True, False]),
    ],
)
def test_claims_are_judged_by_the_figures(changes: dict[str, float], holding: list[bool]) -> None:
    assert [claim.holds for claim in outcome(**changes).claims()] == holding


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    file = tmp_path / "demo"
    file.write_text("mine")
    with pytest.raises(EdgettaError, match="is a file; name a folder"):
        run_demo(file, config=DemoConfig.quick(), show=False)
    assert file.read_text() == "mine"
