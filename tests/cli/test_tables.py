"""Figures as people read them, and lines that are never folded in a pipe."""

from __future__ import annotations

import pytest

from edgetta.cli.tables import bytes_text, print_facts, print_table, seconds_text


def test_bytes() -> None:
    assert [bytes_text(count) for count in (0, 999, 1000, 80_120_000, 2.5e9, 4e12)] == [
        *("0 B", "999 B", "1.0 kB", "80.1 MB", "2.50 GB"),
        "4000.00 GB",
    ]


def test_seconds() -> None:
    texts = [seconds_text(seconds) for seconds in (0.0032, 0.9, 1.74, 119, 725, 7325)]
    assert texts == ["3.2 ms", "900.0 ms", "1.7 s", "119.0 s", "12 min 5 s", "2 h 2 min"]


def test_facts_stand_below_each_other_and_markup_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts([("a", "one\ntwo"), ("longer", "[red]3[/red] " + "x" * 300), ("none", "")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["a       one", "        two"] and lines[2] == "longer  [red]3[/red] " + "x" * 300
    assert len(lines) == 4


def test_tables_go_where_they_are_asked_to(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("part", "bytes"), [("part1", 12), ("[b]", 1200)], left=("part",), stderr=True)
    out, err = capsys.readouterr()
    assert out == ""
    rows = [line.split() for line in err.splitlines() if line.strip()]
    assert rows[0] == ["part", "bytes"] and rows[-2:] == [["part1", "12"], ["[b]", "1200"]]
