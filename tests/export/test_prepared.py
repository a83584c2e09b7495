"""The folder of a preparation: it can be moved, its parts are checked, and nothing in it is mixed up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from edgetta.errors import BundleError, UsageError
from edgetta.export import prepared
from edgetta.export.preparation import PreparationReport
from edgetta.export.prepared import begin, finish, is_prepared, read_meta, read_prepared
from edgetta.export.recipe import Derived, Recipe
from edgetta.models.model import Model
from tests.adaptation.backbones import SmallNet, randomised, small_model

REPORT = PreparationReport(0.5, 0.6, 0.7, 0.65, images=10, held_out=5, steps=3, final_loss=0.25, seconds=1.5)
STATE = {"metas.0.conv": torch.ones(2, 2)}


def derived(**changes: Any) -> Derived:
    recipe = Recipe("small", input_shape=(3, 16, 16), parts=3, options={"pretrained": True, "depth": 2}, **changes)
    return Derived(recipe, Model(randomised(SmallNet()), "small", (3, 16, 16), 5), small_model(), "automatic")


def finished(folder: Path, of: Derived | None = None) -> Path:
    begin(folder, of or derived(), ("a", "b", "c", "d", "e"), {"data": "x"})
    finish(folder, STATE, REPORT)
    return folder


def test_what_was_found_on_the_way_is_spelled_out(tmp_path: Path) -> None:
    found = read_prepared(finished(tmp_path / "p"))
    assert found.recipe == Recipe(
        "small",
        weights=str(tmp_path / "p" / "weights.safetensors"),
        num_classes=5,
        input_shape=(3, 16, 16),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        resize="stretch",
        interpolation="bilinear",
        fill=(0, 0, 0),
        options={"depth": 2},
        cuts=SmallNet.cuts,
    ), "nothing is left to be chosen or fetched again"
    assert found.classes == ("a", "b", "c", "d", "e") and found.report["accuracy_after"] == 0.7
    figures = {name: getattr(REPORT, name) for name in PreparationReport.__dataclass_fields__}
    assert found.accuracies() == {**figures, "stages": []}
    weights = load_file(tmp_path / "p" / "weights.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in randomised(SmallNet()).state_dict().items())
    assert torch.equal(read_meta(found.meta)["metas.0.conv"], STATE["metas.0.conv"])


@pytest.mark.parametrize("name", ["net.py:build", "net.pt2"])
def test_a_folder_can_be_moved_together_with_the_model_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "old").mkdir()
    of = derived()
    of = replace(of, recipe=replace(of.recipe, model=str(tmp_path / "old" / name)))
    folder = finished(tmp_path / "old" / "p", of)
    assert str(tmp_path) not in (folder / "prepared.json").read_text()
    (tmp_path / "old").rename(tmp_path / "new")
    assert read_prepared(tmp_path / "new" / "p").recipe.model == str(tmp_path / "new" / name)


def test_begun_again_it_continues_or_refuses(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    assert not is_prepared(folder)
    files = begin(folder, derived(), None, {"data": "x", "seed": 1})
    assert files.folder == folder / "stages" and is_prepared(folder)
    checkpoint = files.path("epoch")
    checkpoint.write_bytes(b"epoch 1")
    assert begin(folder, derived(), None, {"data": "x", "seed": 1}).folder == files.folder and checkpoint.exists()
    for other, settings, words in (
        (derived(), {"data": "y", "seed": 1}, "data 'x'"),
        (derived(adapt="bias"), {"data": "x", "seed": 1}, "adapt 'affine'"),
    ):
        with pytest.raises(UsageError, match=f"was begun with other settings \\({words}\\)"):
            begin(folder, other, None, settings)
    changed = derived()
    next(changed.model.module.parameters()).data.add_(1)
    with pytest.raises(UsageError, match=r"was begun with other settings \(given_weights\)"):
        begin(folder, changed, None, {"data": "x", "seed": 1})
    assert checkpoint.exists()
    begin(folder, derived(), None, {"data": "y"}, overwrite=True)
    assert not checkpoint.exists(), "what was begun before does not leak into what begins now"


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="was not made by `edgetta prepare`"):
            begin(tmp_path, derived(), None, {}, overwrite=overwrite)
    with pytest.raises(UsageError, match="was not made by"):
        begin(tmp_path / "photo.jpg", derived(), None, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["photo.jpg"]
    (tmp_path / "empty").mkdir()
    assert begin(tmp_path / "empty", derived(), None, {}).folder.parent == tmp_path / "empty"


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda f: (f / "prepared.json").unlink(), BundleError, "cannot read"),
        (lambda f: (f / "prepared.json").write_text("{"), BundleError, "prepared.json is damaged"),
        (lambda f: (f / "prepared.json").write_text("[]"), BundleError, "was not written by `edgetta prepare`"),
        (lambda f: _edit(f, version=3), BundleError, "was written by a newer edgetta; update this one"),
        (lambda f: _edit(f, version=1), BundleError, "was written by an older edgetta"),
        (lambda f: _edit(f, complete="yes"), BundleError, "does not say whether it is complete"),
        (lambda f: _edit(f, complete=False), UsageError, "is not finished; run its `edgetta prepare` again"),
        (lambda f: _edit(f, recipe={"colour": 1}), BundleError, "unknown field 'colour'"),
        (lambda f: _edit(f, recipe=None), BundleError, "is damaged"),
        (lambda f: (f / "report.json").unlink(), BundleError, "is damaged"),
        (lambda f: (f / "weights.safetensors").unlink(), BundleError, "cannot read .*weights.safetensors"),
        (lambda f: (f / "weights.safetensors").write_bytes(b""), BundleError, "is damaged or was replaced"),
    ],
)
def test_damage(tmp_path: Path, change: Any, kind: type[Exception], message: str) -> None:
    folder = finished(tmp_path / "p")
    change(folder)
    with pytest.raises(kind, match=message):
        read_prepared(folder)


def _edit(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / prepared.MANIFEST).read_text())
    (folder / prepared.MANIFEST).write_text(json.dumps({**manifest, **changes}))


def test_meta_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    for name, message in (("none", "there is no"), ("x", "is no readable safetensors file"), (".", "there is no")):
        with pytest.raises(BundleError, match=message):
            read_meta(tmp_path / name)
