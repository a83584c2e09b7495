"""Errors: what a foreign library says becomes one line of bounded length."""

from __future__ import annotations

from edgetta.errors import one_line


def test_one_line_joins_and_shortens() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(ValueError()) == "ValueError"
    assert one_line(KeyError("weight")) == "'weight' is missing"
    long = one_line(RuntimeError("start " + "x" * 1000 + " end"))
    assert long.startswith("start x") and long.endswith("x end") and len(long) <= 405
