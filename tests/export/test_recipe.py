"""Recipes: what they choose when nobody says, and that they survive being written down."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from edgetta.errors import UsageError
from edgetta.export import recipe as recipes
from edgetta.export.recipe import Recipe, derive_recipe, load, load_trained
from edgetta.models import published_parts
from tests.tiny_model import write_model

FULL = Recipe(
    "x.py:build",
    weights="w.pt",
    num_classes=7,
    width=0.5,
    input_shape=(1, 28, 20),
    mean=(0.5,),
    std=(1.0,),
    options={"depth": 3},
    cuts=("stem", "block"),
    batch_norm="source",
    adapt="bias",
    initialisation="published",
    kernel=1,
    resize="pad",
    short_side=None,
    interpolation="bicubic",
    fill=(1, 2, 3),
    random_weights=True,
    seed=4,
)


def test_written_down_and_read_again() -> None:
    for recipe in (FULL, Recipe("wrn40_2", parts=5)):
        assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    with pytest.raises(UsageError, match="unknown field 'colour'"):
        Recipe.from_json({"model": "x", "colour": "red"})


def test_contradictions() -> None:
    with pytest.raises(UsageError, match="not both"):
        Recipe("x", parts=2, cuts=("a", "b"))
    with pytest.raises(UsageError, match="parts must be at least 1, not 0"):
        Recipe("x", parts=0)
    for name in ("weights", "num_classes", "input_shape"):
        with pytest.raises(UsageError, match=f"{name} cannot be handed on"):
            Recipe("x", options={name: 1})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the derivation was asked for; it is not carried out."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(recipes, "derive", lambda *arguments, seed: calls.append(arguments))
    return calls


@pytest.mark.parametrize(
    ("model", "parts", "origin"),
    [
        ("wrn40_2", None, "published"),
        ("wrn40_2", 5, "published"),
        ("wrn40_2", 3, "by stages"),
        ("resnet50", 4, "inferred"),
        ("resnet20", None, "by stages"),
    ],
)
def test_built_in_networks_are_cut_as_published(
    asked: list[tuple[Any, ...]], model: str, parts: int | None, origin: str
) -> None:
    derived = derive_recipe(Recipe(model, width=0.25, parts=parts))
    (_, shape, cuts, _, batch_norm, adapt, initialisation, kernel) = asked[0]
    assert cuts == published_parts(model).cuts(parts) and kernel == published_parts(model).kernel
    assert derived.origin == origin and shape == (3, 32, 32)
    assert (batch_norm, adapt, initialisation) == ("adaptive", "affine", "identity")


def test_what_is_said_wins(asked: list[tuple[Any, ...]]) -> None:
    recipe = Recipe("resnet50", width=0.25, cuts=("relu", "layer2.0"), kernel=3, batch_norm="source", adapt="bias")
    derived = derive_recipe(recipe)
    assert asked[0][2:] == (("relu", "layer2.0"), 4, "source", "bias", "identity", 3) and derived.origin == "given"


def test_other_networks_are_cut_automatically_into_what_they_have(
    asked: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    derived = derive_recipe(Recipe(write_model(tmp_path), input_shape=(3, 8, 8)))
    cuts = asked[0][2]
    assert derived.origin == "automatic" and 2 <= len(cuts) <= 4, "a model too small for four parts gets fewer"
    assert cuts == tuple(sorted(cuts, key=["stem", "stem.relu", "block1", "block1.relu", "block2"].index))
    asked.clear()
    derive_recipe(Recipe(write_model(tmp_path), input_shape=(3, 8, 8), parts=1))
    assert asked[0][2:4] == (None, 1), "a number that was asked for is not bent"


def test_random_weights_come_from_the_seed_and_leave_torch_alone(tmp_path: Path) -> None:
    write_model(tmp_path)
    recipe = Recipe(f"{tmp_path / 'net.py'}:untrained", input_shape=(3, 8, 8))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = load(recipe).module.state_dict()
    assert torch.equal(torch.rand(1), expected), "torch's own generator went on undisturbed"
    second = load(recipe).module.state_dict()
    other = load(Recipe(recipe.model, input_shape=(3, 8, 8), seed=1)).module.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


def test_random_weights_are_refused_whatever_builds_the_model(tmp_path: Path) -> None:
    own, untrained = write_model(tmp_path), f"{tmp_path / 'net.py'}:untrained"
    cases = {
        "wrn40_2": "give trained ones with --weights",
        "torchvision:squeezenet1_1": "or take the published ones with --option pretrained=true",
        "timm:resnet10t": "or take the published ones with --option pretrained=true",
        untrained: "stem.conv.weight is another one at each call",
    }
    for name, remedy in cases.items():
        recipe = Recipe(name, input_shape=(3, 32, 32))
        with pytest.raises(UsageError) as error:
            load_trained(recipe)
        assert f"{name} has random weights" in str(error.value) and remedy in str(error.value)
        assert load_trained(replace(recipe, random_weights=True)).origin is None
    assert load_trained(Recipe(own, input_shape=(3, 32, 32))).origin == "net.py:build's own"
    path = tmp_path / "w.safetensors"
    save_file(load(Recipe("wrn40_2", width=0.25)).module.state_dict(), path)
    assert load_trained(Recipe("wrn40_2", width=0.25, weights=str(path))).origin == str(path)


def test_a_function_that_loads_all_but_the_classifier_has_random_weights(tmp_path: Path) -> None:
    write_model(tmp_path)
    source = (tmp_path / "net.py").read_text()
    partly = "\n\ndef partly():\n    net = build()\n    torch.seed()\n    net.fc = nn.Linear(8, 3)\n    return net\n"
    (tmp_path / "net.py").write_text(source + partly)
    with pytest.raises(UsageError, match=r"fc\.weight is another one at each call"):
        load_trained(Recipe(f"{tmp_path / 'net.py'}:partly", input_shape=(3, 8, 8)))
