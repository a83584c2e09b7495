"""Pages: what is better is green, what is worse is not, and nothing is cut off."""

from __future__ import annotations

import pytest

from edgetta.cli.prepare_report import _accuracy_fact
from edgetta.report import Fact, Facts, render, trend


def test_worse_figures_are_not_green() -> None:
    html = Facts((Fact("9 %", "more", trend(0.1)), Fact("7 %", "less", trend(-0.1)), Fact("3", "images"))).html()
    assert "<b class=better>9 %</b>" in html and "<b class=worse>7 %</b>" in html and "<b>3</b>" in html
    page = render("title", [])
    assert ".facts .better { color: var(--own) }" in page and ".facts .worse { color: var(--worse) }" in page


def test_an_accuracy_that_fell_is_worse() -> None:
    assert _accuracy_fact(0.8, 0.7, "clean") == Fact("80.00 → 70.00 %", "clean", "worse")
    assert _accuracy_fact(0.7, 0.8, "clean").trend == "better"
    assert _accuracy_fact(0.7, 0.7, "clean").trend == "" and _accuracy_fact(None, 0.7, "clean").trend == ""


def test_long_titles_stay_inside_the_picture() -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    from edgetta.cli.prepare_report import _bars
    from edgetta.offline.stage import Accuracies, Stage

    point = Accuracies(0.99, 0.98, 0.97)
    markup = _bars([Stage(name, point, point, 1.0) for name in ("adversarial_training", "meta_networks", "curvature")])
    assert "adversarial training" not in markup.markup, "its words stand one below the other"
    assert markup.markup.count(">99.0<") == 4
