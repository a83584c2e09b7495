"""Pages show what the result files hold, and say so where a file is missing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgetta.bench.figures.headline import PICTURE, headline, headline_picture, in_order
from edgetta.bench.figures.pages import BLOCKS, PAGES, with_figures, write_figures
from edgetta.bench.figures.results import Results, mean, number, table

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "bench" / "results"


@pytest.mark.parametrize("page", PAGES)
def test_figures_are_those_of_the_result_files(page: str) -> None:
    text = (ROOT / page).read_text()
    assert with_figures(text, Results(RESULTS), str(Path(page).parent)) == text, "run `make figures`"


def test_the_picture_is_that_of_the_result_files() -> None:
    assert headline_picture(Results(RESULTS)) == (RESULTS / PICTURE).read_text(), "run `make figures`"


def test_every_block_is_on_a_page() -> None:
    shown = re.findall(r"<!-- figures: (\w+) -->", "".join((ROOT / page).read_text() for page in PAGES))
    assert sorted(name for name in shown if name != "end") == sorted(BLOCKS)


def test_readme_is_one_screen_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert text.index("patent application") < text.index("## Install")


@pytest.mark.parametrize("page", [*PAGES, *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
        if "://" not in link:
            assert ((ROOT / page).parent / link).exists(), link


def copied(folder: Path, **changes: Any) -> Results:
    """The result files, with some replaced (None: left out)."""
    shutil.copytree(RESULTS, folder, dirs_exist_ok=True)
    for name, content in changes.items():
        file = folder / f"{name}.json"
        file.unlink(missing_ok=True) if content is None else file.write_text(json.dumps(content))
    return Results(folder)


def camera(error: float) -> dict[str, Any]:
    row = {"order": "sorted", "batch": 64, "severity": 5, "network": "resnet20_jpegft", "corruption": "fog"}
    return {"rows": [{**row, "method": method, "error": error} for method in ("source", "edgetta")]}


def test_a_column_without_its_file_is_left_out(tmp_path: Path) -> None:
    without = copied(tmp_path / "a", camera=None)
    assert in_order(without, "edgetta") is None and "sorted by class" not in headline(without)
    assert "sorted by class" not in headline_picture(without)
    found = copied(tmp_path / "b", camera=camera(31.5))
    assert "31.5 %" in headline(found) and "sorted by class" in headline_picture(found)
    assert "camera.json" in headline(found)


def test_what_a_bench_times_and_weighs_comes_before_what_stands_in_for_it(tmp_path: Path) -> None:
    latency = {"model": "wrn40_2", "batch": 64, "engine": "onnxruntime", "inference_seconds": 0.1}
    latency |= {"step_seconds": 0.25, "tent_seconds": 0.6, "batch_norm_seconds": 0.2}
    memory = json.loads((RESULTS / "memory.json").read_text())
    memory["rows"] = [{**row, "process_bytes": 10 * row["peak_bytes"]} for row in memory["rows"]]
    plain = headline(copied(tmp_path / "a"))
    found = headline(copied(tmp_path / "b", latency={"rows": [latency]}, memory=memory))
    assert "| 2.5x | " in found and "| 6.0x |" in found and "| 2.0x |" in found and "memory of the process" in found
    assert "latency.json" in found and "of the whole process" in found and found != plain


def test_a_figure_that_differs_is_written_anew(tmp_path: Path) -> None:
    for page in PAGES:
        (tmp_path / page).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(ROOT / page, tmp_path / page)
    shutil.copytree(RESULTS, tmp_path / "bench" / "results", dirs_exist_ok=True)
    assert write_figures(tmp_path) == []
    rows = json.loads((RESULTS / "accuracy.json").read_text())
    for row in rows["rows"]:
        row["error"] += 1 if row["method"] == "edgetta" and row["stream"] == "continual" else 0
    (tmp_path / "bench" / "results" / "accuracy.json").write_text(json.dumps(rows))
    changed = {path.relative_to(tmp_path).as_posix() for path in write_figures(tmp_path)}
    assert changed == {"README.md", "bench/README.md", f"bench/results/{PICTURE}"}
    assert (tmp_path / "README.md").read_text() != (ROOT / "README.md").read_text()


def test_tables_and_numbers() -> None:
    assert table(("a", "b"), [("x", "1")]) == "| a | b |\n|---|---:|\n| x | 1 |"
    assert number(None) == "–" and number(1.25, ".1f", "x") == "1.2x"
    assert mean([], "error") is None and mean([{"error": 1.0}, {"error": 2.0}], "error") == 1.5
