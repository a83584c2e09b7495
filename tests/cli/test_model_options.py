"""The options that name a model: what is written on the command line, and what becomes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from edgetta.cli import model_options as model_options_module
from edgetta.cli.model_options import NAMES, class_names, given_names, input_shape, model_options, recipe_from
from edgetta.errors import EdgettaError, UsageError
from edgetta.export.recipe import Recipe
from edgetta.sources import resize


def parsed(*arguments: str) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    @click.command()
    @model_options
    def trial(**values: Any) -> None:
        seen.update(values)

    result = CliRunner().invoke(trial, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return seen


def test_what_nobody_said_is_left_to_the_recipe() -> None:
    values = parsed()
    assert set(values) == set(NAMES)
    assert recipe_from("wrn40_2", values) == Recipe("wrn40_2") and given_names(values) == []


def test_everything_that_can_be_said(tmp_path: Path) -> None:
    weights = tmp_path / "w.pt"
    weights.touch()
    arguments = (
        *("--weights", str(weights), "--num-classes", "7", "--width", "0.5", "--input-size", "1x28x20"),
        *("--mean", "0.5,0.25,0.125", "--std", "1,2,3", "--option", "pretrained=true", "--option", "name=big net"),
        *("--option", "depth=3", "--cuts", "stem, block1,block2", "--bn", "source", "--adapt", "bias"),
        *("--initialisation", "published", "--kernel", "1", "--random-weights", "--resize", "crop"),
        *("--short-side", "36", "--interpolation", "bicubic", "--fill", "114,0,255"),
    )
    values = parsed(*arguments)
    assert recipe_from("x.py:build", values, seed=4) == Recipe(
        "x.py:build",
        weights=str(weights),
        num_classes=7,
        width=0.5,
        input_shape=(1, 28, 20),
        mean=(0.5, 0.25, 0.125),
        std=(1.0, 2.0, 3.0),
        options={"pretrained": True, "name": "big net", "depth": 3},
        cuts=("stem", "block1", "block2"),
        batch_norm="source",
        adapt="bias",
        initialisation="published",
        kernel=1,
        random_weights=True,
        resize="crop",
        short_side=36,
        interpolation="bicubic",
        fill=(114, 0, 255),
        seed=4,
    )
    assert given_names(values) == [
        *("--weights", "--num-classes", "--width", "--input-size", "--mean", "--std", "--option", "--cuts", "--bn"),
        *("--adapt", "--initialisation", "--kernel", "--random-weights", "--resize", "--short-side"),
        *("--interpolation", "--fill"),
    ]
    assert recipe_from("x", parsed("--parts", "5", "--adapt", "meta")) == Recipe("x", parts=5, adapt="meta")


@pytest.mark.parametrize(
    ("text", "shape"),
    [("32", (3, 32, 32)), ("24x32", (3, 24, 32)), ("1x28x28", (1, 28, 28)), ("3, 224, 200", (3, 224, 200))],
)
def test_sizes(text: str, shape: tuple[int, int, int]) -> None:
    assert input_shape(text) == shape


@pytest.mark.parametrize("text", ["", "x", "0", "32x", "-1", "1x2x3x4", "3x32x99999", "large", "1.5", "²"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="is no size; write 32, or channels, height and width as 3x224x224"):
        input_shape(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mean", "a,b"), "--mean a,b: write numbers separated by commas"),
        (("--option", "pretrained"), "--option pretrained: write NAME=VALUE"),
        (("--option", "a b=1"), "write NAME=VALUE"),
        (("--option", "num_classes=4"), "num_classes cannot be handed on to what builds the model; it has"),
        (("--parts", "3", "--cuts", "a,b"), "give the number of parts or the cuts, not both"),
    ],
)
def test_values_that_cannot_be_read(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe_from("x", parsed(*arguments))


def test_class_names(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\n dog \n\nbird\n", encoding="utf-8")
    assert class_names(str(tmp_path / "names.txt")) == ("cat", "dog", "bird")
    assert class_names("cat, dog,bird") == ("cat", "dog", "bird")
    (tmp_path / "one.txt").write_text("cat\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for text, message in (
        (str(tmp_path / "none.txt"), "cannot read class names from"),
        (str(tmp_path / "binary.txt"), "cannot read class names from"),
        (str(tmp_path / "one.txt"), "names 1 classes; a classifier has at least 2"),
        ("a,b,a", "the class name 'a' occurs twice"),
    ):
        with pytest.raises(UsageError, match=message):
            class_names(text)


def test_names_spelled_out_are_those_of_the_resizing() -> None:
    assert model_options_module.POLICIES == resize.POLICIES
    assert model_options_module.INTERPOLATIONS == resize.INTERPOLATIONS


def test_a_missing_weights_file_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "net.pt").touch()
    with pytest.raises(EdgettaError, match=r"weights .*nett.pt: no such file; did you mean .*net.pt\?"):
        parsed("--weights", str(tmp_path / "nett.pt"))


def test_a_fill_that_is_no_colour() -> None:
    with pytest.raises(UsageError, match="--fill black: write a colour as three numbers from 0 to 255"):
        recipe_from("x", parsed("--fill", "black"))
