"""Help in two tiers: what a first day needs, and everything, with defaults that are the settings' own."""

from __future__ import annotations

import re
from dataclasses import fields

import click
import pytest
from click.testing import CliRunner

from edgetta.adaptation.adapter import AdaptConfig
from edgetta.adaptation.step_rate import DEFAULT_RATE
from edgetta.cli import load_verb
from edgetta.cli.help_tiers import two_tiers
from edgetta.offline.augment import Augmentation


def helped(verb: str, option: str) -> str:
    """The help as one line of words."""
    result = CliRunner().invoke(load_verb(verb), [option])
    assert result.exit_code == 0
    return " ".join(result.output.split())


@pytest.mark.parametrize("verb", ["run", "export", "prepare", "attack", "rift", "curvature", "learning-rate"])
def test_the_first_tier_is_short_and_leads_to_the_second(verb: str) -> None:
    basic, everything = helped(verb, "--help"), helped(verb, "--help-all")
    options = {
        name
        for one in load_verb(verb).params
        if isinstance(one, click.Option) and one.name != "help_all"
        for name in one.opts
        if name.startswith("--")
    }
    shown = {name for name in options if re.search(rf"{name}\b(?!-)", basic.partition("Options:")[2])}
    assert len(shown) <= 24 and shown & {"--output", "--out"}
    hidden = re.search(r"--help-all Show the other (\d+) options", basic)
    assert hidden is not None and int(hidden[1]) >= 15
    assert all(name in everything for name in options)


def test_defaults_are_those_of_the_settings() -> None:
    text = helped("run", "--help-all")
    for name, value in ((field.name, field.default) for field in fields(AdaptConfig)):
        if isinstance(value, bool | int | float | str):
            said = (
                str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else value
            )
            option = {"batch_norm": "--bn "}.get(name, f"--{name.replace('_', '-')} ")
            assert re.search(rf"{option}.*?\[default: {re.escape(str(said))}\]", text), name
    assert re.search(rf"--learning-rate RATE .*?\[default: {DEFAULT_RATE:g}\] --momentum", text)
    assert f"--jitter X Probability of colour jitter. [x>=0] [default: {Augmentation().jitter:g}]" in helped(
        "prepare", "--help-all"
    )


def test_a_basic_option_that_is_none_is_noticed() -> None:
    with pytest.raises(AssertionError, match="no option speed"):
        click.command(cls=two_tiers("speed"))(lambda: None)
