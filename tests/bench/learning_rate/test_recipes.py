"""The recipes for a GPU load: every key is an option of its verb, with a value that the verb takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest

from edgetta.bench.learning_rate.command import _listed, _rates
from edgetta.bench.learning_rate.command import command as bench
from edgetta.bench.learning_rate.learner import LearnerBenchConfig
from edgetta.cli.curvature import command as curvature
from edgetta.cli.learning_rate import _sizes
from edgetta.cli.learning_rate import command as learning_rate
from edgetta.cli.settings import read_toml, settings_for
from edgetta.models.architectures import architecture
from edgetta.offline.learning_rate import PUBLISHED

FOLDER = Path(__file__).parents[3] / "bench" / "recipes"
LAWS = sorted(FOLDER.glob("learning-rate-*.toml"))


def values(command: click.Command, names: tuple[str, ...], path: Path, *arguments: str) -> dict[str, Any]:
    """What the verb receives for `arguments` with the recipe as its settings."""
    benches = click.Group("bench", commands={"learning-rate": bench})
    group = click.Group("edgetta", {"learning-rate": learning_rate, "curvature": curvature, "bench": benches})
    context = click.Context(group, info_name="edgetta")
    if "bench" in names:
        context = click.Context(benches, parent=context, info_name="bench")
    with click.Context(command, parent=context, info_name=names[-1]) as ctx:
        ctx.default_map = settings_for(ctx, path, read_toml(path))
        command.parse_args(ctx, list(arguments))
        return ctx.params


def test_there_is_one_for_each_network_of_the_papers() -> None:
    assert [path.stem.removeprefix("learning-rate-") for path in LAWS] == [
        *("imagenet", "vgg16-cifar100", "wrn28_10-cifar100"),
    ]


@pytest.mark.parametrize("path", LAWS, ids=lambda path: path.stem)
def test_a_law_is_one_command_away(path: Path, tmp_path: Path) -> None:
    (model,) = set(re.findall(r"edgetta learning-rate (\w+) --weights", path.read_text()))
    architecture(model)
    given = (model, "--data", "train", "-o", str(tmp_path))
    rates = values(learning_rate, ("edgetta", "learning-rate"), path, *given)
    assert _sizes(rates["batch_sizes"])[-1] >= 256 and rates["device"] == "cuda" and rates["samples"] >= 8192
    spectrum = values(curvature, ("edgetta", "curvature"), path, *given)
    assert spectrum["batch"] >= 128 and spectrum["memory_limit"] == rates["memory_limit"]
    if "cifar100" in path.stem:
        assert rates["num_classes"] == spectrum["num_classes"] == 100 and rates["adam_reference"] == 128


def test_the_published_learner_is_there_by_name() -> None:
    path = FOLDER / "learner-preresnet110-cifar100.toml"
    found = values(bench, ("edgetta", "bench", "learning-rate"), path, "--part", "learner", "--data", "cifar100/")
    training = {name: found[name] for name in LearnerBenchConfig.__dataclass_fields__ if name in found}
    config = LearnerBenchConfig(**training | {"rules": _listed("", found["rules"]), "grid": _rates(found["grid"])})
    assert (config.model, config.width, config.epochs, config.batch) == ("preresnet110", 1.0, 300, 128)
    architecture(config.model)
    for rule in config.rules[:3]:
        published = PUBLISHED[rule]
        assert (published.iterations, published.batches, published.batch_size, published.every_epochs) == (
            20,
            1,
            1024,
            20,
        )
