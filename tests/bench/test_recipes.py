"""The recipes are settings that `edgetta rift` takes: nothing but the data is missing for them to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from edgetta.cli.rift import _config, command
from edgetta.cli.robust_options import adversarial_training_from
from edgetta.cli.settings import read_toml, settings_for

RECIPES = sorted((Path(__file__).parent.parent.parent / "bench" / "recipes").glob("rift-*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_everything_but_the_model(path: Path, tmp_path: Path) -> None:
    with click.Context(command, info_name="rift") as ctx:
        ctx.default_map = settings_for(ctx, path, read_toml(path))
        command.parse_args(ctx, ["resnet18", "-o", str(tmp_path)])
        values: dict[str, Any] = ctx.params
    config = _config(values)
    training = adversarial_training_from(values, config.attack.threat, values["batch"], values["flip"])
    assert training is not None and training.schedule.decay_at == (100, 105)
    assert training.attack.steps == 10 and training.attack.step == pytest.approx(2 / 255)
    assert training.threat == config.attack.threat and config.attack.restarts == 3
    assert config.schedule.epochs == 10 and config.schedule.learning_rate == 1e-3
    assert config.constraint.loss == pytest.approx(0.01)
    assert {"cifar10": None, "cifar100": 100, "tiny-imagenet": 200}[path.stem.removeprefix("rift-")] == values[
        "num_classes"
    ]
    for model in ("resnet18", "resnet34", "wrn34_10"):
        assert f"edgetta rift {model}" in path.read_text()


def test_there_is_a_recipe_for_each_data_set() -> None:
    assert [path.stem for path in RECIPES] == ["rift-cifar10", "rift-cifar100", "rift-tiny-imagenet"]
