"""The bar: on standard error of a terminal, and nowhere else."""

from __future__ import annotations

import threading

import pytest

from edgetta.cli.progress import lines, progress_bar

Captured = pytest.CaptureFixture[str]


def work(**options: bool) -> None:
    with progress_bar("warming up", unit="steps", **options) as update:
        update(1, 4)
        update(2, note="loss 0.125")


def test_nothing_is_shown_where_nobody_looks(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    work()
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    work(show=False)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_how_far_things_are(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    work()
    out, err = capsys.readouterr()
    assert out == ""
    for words in ("warming up", "2/4", "steps", "loss 0.125", "left"):
        assert words in err


@pytest.mark.parametrize("width", [64, 80, 160])
def test_no_number_is_cut_short(width: int, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    with progress_bar("running", unit="frames") as update:
        update(1216, 3000, note="119.3/s  entropy 0.883  adapted 19  skipped 3")
    err = capsys.readouterr().err
    assert "1216/3000 frames" in err and "adapted 19" in err and "…" not in err
    bar = max(line.count("━") for line in err.splitlines() if "1216/3000" in line)
    assert (bar > 10) == (width == 160), "the bar has what room there is"


def test_without_a_terminal_a_line_tells_how_far_things_are() -> None:
    said: list[str] = []
    told = threading.Event()

    def write(line: str) -> None:
        said.append(line)
        if "3/8" in line:
            told.set()

    with lines("measuring", None, "steps", write, every=0.001) as update:
        update(3, 8, "wrn")
        assert told.wait(20)
    count = len(said)
    assert any(line.startswith("measuring: 3/8 steps wrn, ") and line.endswith(" s so far") for line in said)
    assert "progress" not in {thread.name for thread in threading.enumerate()} and len(said) == count


def test_without_a_terminal_what_says_nothing_is_told_too() -> None:
    said: list[str] = []
    told = threading.Event()
    with lines("measuring", None, "", lambda line: (said.append(line), told.set()), every=0.001):
        assert told.wait(20)
    assert said[0].startswith("measuring: ") and said[0].endswith(" s so far") and "None" not in said[0]
