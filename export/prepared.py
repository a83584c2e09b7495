"""The folder that `edgetta prepare` fills and `edgetta export` takes as a MODEL: everything an export needs.

prepared.json           the recipe with its cuts spelled out, class names, and what the warm-up was started with
weights.safetensors     of the backbone, so that the folder serves when the original file is gone or changed
meta.safetensors        what ships of the network (all that adapts, statistics, content), once it is made
report.json             settings, accuracies stage by stage, what RiFT found
report.html             the same for people
rates.json              which learning rate each batch size bears, where that was measured
stages/                 what is done of a preparation that is not finished
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from edgetta.errors import BundleError, EdgettaError, UsageError
from edgetta.export.preparation import PreparationReport
from edgetta.export.quantise import Ranges
from edgetta.export.recipe import Derived, Recipe
from edgetta.memory.accuracy_costs import AccuracyCosts
from edgetta.models.normalise import normalisation_of
from edgetta.offline.curvature import Processes
from edgetta.offline.stage_files import StageFiles
from edgetta.rate_law import RateLaw
from edgetta.storage import atomic_write_bytes, atomic_write_json, atomic_write_text

FORMAT = "edgetta.prepared"
VERSION = 2
"""1 held the state of a network of frozen segments."""
MANIFEST, WEIGHTS, META, REPORT, PAGE, RATES, STAGES = (
    *("prepared.json", "weights.safetensors", "meta.safetensors"),
    *("report.json", "report.html", "rates.json", "stages"),
)
_MAX_JSON_BYTES = 16 << 20
_FROM_ELSEWHERE = ("pretrained", "weights")  # options that make a library fetch weights, which lie in the folder now


@dataclass(frozen=True)
class Prepared:
    """A finished preparation: what to export."""

    folder: Path
    recipe: Recipe
    classes: tuple[str, ...] | None
    report: Mapping[str, Any]
    rates: Mapping[str, Any] | None  # what `AdaptationRates.to_json` wrote; None where it was not measured
    costs: AccuracyCosts | None  # what a plan's choices cost in accuracy; None where it was not measured

    @property
    def rate_law(self) -> RateLaw | None:
        """The law that ships.

        Raises:
            BundleError: it is damaged.
        """
        return None if self.rates is None else RateLaw.from_json(self.rates.get("law"))

    @property
    def meta(self) -> Path:
        return self.folder / META

    def accuracies(self) -> dict[str, Any]:
        """The report without settings and paths: what may travel in a bundle."""
        return {name: self.report[name] for name in PreparationReport.__dataclass_fields__ if name in self.report}


def is_prepared(path: Path) -> bool:
    """Whether `path` is a folder that `edgetta prepare` began to fill."""
    return (path / MANIFEST).is_file()


def read_prepared(folder: Path) -> Prepared:
    """Read a finished preparation.

    Raises:
        UsageError: the warm-up is not finished.
        BundleError: no such folder, damaged, or of a newer version.
    """
    data = _manifest(folder)
    if not data["complete"]:
        raise UsageError(f"{folder} is not finished; run its `edgetta prepare` again, which continues where it ended")
    try:
        recipe = Recipe.from_json(data["recipe"])
        classes = None if data["classes"] is None else tuple(str(name) for name in data["classes"])
        digest = data["weights_sha256"]
        report = json.loads((folder / REPORT).read_bytes())
        rates = json.loads((folder / RATES).read_bytes()) if (folder / RATES).is_file() else None
        costs = AccuracyCosts.from_json(report["costs"]) if report.get("costs") is not None else None
    except (KeyError, TypeError, ValueError, OSError, UsageError, BundleError) as error:
        raise BundleError(f"{folder} is damaged ({error}); prepare again into another folder") from error
    if _sha256(folder / WEIGHTS) != digest:
        raise BundleError(f"{folder / WEIGHTS} is damaged or was replaced; prepare again into another folder")
    located = replace(recipe, model=_from(folder, recipe.model), weights=str(folder / WEIGHTS))
    return Prepared(folder, located, classes, report, rates, costs)


def begin(
    folder: Path,
    derived: Derived,
    classes: tuple[str, ...] | None,
    settings: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> StageFiles:
    """Write down what is about to be prepared, or find that it was begun before; returns where stages are kept.

    Under torch.distributed the first process does it, and the others wait.

    Args:
        folder: made where it is missing; its parent must exist.
        derived: the model and its programs.
        classes: names of the classes.
        settings: everything else that the result depends on (data, stages); JSON-compatible.
        overwrite: start again where something else was begun or finished.

    Raises:
        UsageError: the folder holds another preparation, a finished one, or other files.
        StorageError: the disk is full and the like.
    """
    processes, failure = Processes(), None
    if processes.rank == 0:
        try:
            _begin(folder, derived, classes, settings, overwrite)
        except EdgettaError as error:
            failure = error
    if processes.first(failure is not None):
        raise failure or EdgettaError("the first process could not begin; its own message says why")
    return StageFiles(folder / STAGES, settings)


def _begin(
    folder: Path, derived: Derived, classes: tuple[str, ...] | None, settings: Mapping[str, Any], overwrite: bool
) -> None:
    weights = _weights(derived.model.module)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "complete": False,
        "recipe": _portable(folder, derived).to_json(),
        "classes": None if classes is None else list(classes),
        "given_weights_sha256": hashlib.sha256(weights).hexdigest(),
        "settings": json.loads(json.dumps(settings)),
    }
    if is_prepared(folder) and not overwrite:
        earlier = _manifest(folder)
        if earlier["complete"]:
            raise UsageError(f"{folder} is prepared already; choose another folder, or start again with --overwrite")
        differing = [key for key in manifest if key != "complete" and manifest[key] != earlier.get(key)]
        if differing:
            raise UsageError(
                f"{folder} was begun with other settings ({_difference(manifest, earlier, differing)}); "
                "repeat those, choose another folder, or start again with --overwrite"
            )
        return
    if folder.exists() and not is_prepared(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and was not made by `edgetta prepare`; choose another folder")
    for name in (META, REPORT, PAGE, RATES):
        with suppress(FileNotFoundError):
            (folder / name).unlink()
    shutil.rmtree(folder / STAGES, ignore_errors=True)
    with suppress(FileExistsError, FileNotFoundError):
        folder.mkdir()
    atomic_write_json(folder / MANIFEST, {**manifest, "weights_sha256": manifest["given_weights_sha256"]})
    atomic_write_bytes(folder / WEIGHTS, weights)


def replace_weights(folder: Path, module: nn.Module) -> None:
    """Ship these weights of the backbone, and not those that were given: a stage has trained it.

    Raises:
        StorageError: the disk is full and the like.
    """
    weights = _weights(module)
    atomic_write_bytes(folder / WEIGHTS, weights)
    atomic_write_json(folder / MANIFEST, {**_manifest(folder), "weights_sha256": hashlib.sha256(weights).hexdigest()})


def finish(
    folder: Path,
    state: Mapping[str, Tensor],
    report: PreparationReport,
    rates: Mapping[str, Any] | None = None,
    *,
    ranges: Ranges | None = None,
    findings: Mapping[str, Any] | None = None,
    page: str | None = None,
) -> None:
    """Write the result and mark the folder as finished.

    Args:
        folder: that `begin` prepared.
        state: what ships, as `Network.tensors` gives it.
        report: accuracies.
        rates: what `AdaptationRates.to_json` gives.
        ranges: of an int8 backbone.
        findings: what else stages found, by their names.
        page: of the report, for people.

    Raises:
        StorageError: the disk is full and the like; the stages are kept then.
    """
    manifest = _manifest(folder)
    manifest["recipe"]["ranges"] = ranges
    atomic_write_bytes(folder / META, save({name: t.detach().cpu().clone().contiguous() for name, t in state.items()}))
    figures = {**asdict(report), **(findings or {}), "recipe": manifest["recipe"], "settings": manifest["settings"]}
    atomic_write_json(folder / REPORT, figures)
    if page is not None:
        atomic_write_text(folder / PAGE, page)
    if rates is not None:
        atomic_write_json(folder / RATES, rates)
    atomic_write_json(folder / MANIFEST, {**manifest, "complete": True})
    shutil.rmtree(folder / STAGES, ignore_errors=True)


def read_meta(path: Path) -> dict[str, Tensor]:
    """The tensors of a `meta.safetensors`.

    Raises:
        BundleError: no such file, or damaged.
    """
    if not path.is_file():
        raise BundleError(f"there is no {path}; give the meta.safetensors that `edgetta prepare` wrote")
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise BundleError(f"{path} is no readable safetensors file ({error}); prepare again") from error


def _weights(module: nn.Module) -> bytes:
    return save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in module.state_dict().items()})


def _portable(folder: Path, derived: Derived) -> Recipe:
    """The recipe with everything spelled out that was found on the way, and nothing outside the folder needed."""
    recipe, model = derived.recipe, derived.model
    mean, std = normalisation_of(model.module)
    return replace(
        recipe,
        model=_to(folder, recipe.model),
        weights=None,
        # A function of the user's need not take them, nor does a program.
        num_classes=model.num_classes if _file_of(recipe.model)[0] is None else recipe.num_classes,
        input_shape=model.input_shape,
        mean=tuple(mean),
        std=tuple(std),
        resize=model.resize.policy,
        short_side=model.resize.short_side,
        interpolation=model.resize.interpolation,
        fill=model.resize.fill,
        options={name: value for name, value in recipe.options.items() if name not in _FROM_ELSEWHERE},
        parts=None,
        cuts=derived.adaptable.cuts,
        ranges=None,  # those that ship are known when every stage is done
    )


def _to(folder: Path, model: str) -> str:
    """A model that is a file, named as seen from the folder."""
    file, function = _file_of(model)
    return model if file is None else Path(os.path.relpath(file, folder)).as_posix() + function


def _from(folder: Path, model: str) -> str:
    file, function = _file_of(model)
    return model if file is None else os.path.normpath(folder / file) + function


def _file_of(model: str) -> tuple[str | None, str]:
    """(path, ":function") of a model that is a file, else (None, "")."""
    if model.endswith(".pt2"):
        return model, ""
    file, separator, function = model.rpartition(".py:")
    return (f"{file}.py", f":{function}") if separator else (None, "")


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(_MAX_JSON_BYTES))
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    except ValueError as error:
        raise BundleError(f"{path} is damaged ({error}); prepare again into another folder") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("version"), int):
        raise BundleError(f"{path} was not written by `edgetta prepare`; choose another folder")
    if data["version"] > VERSION:
        raise BundleError(f"{path} was written by a newer edgetta; update this one")
    if data["version"] < VERSION:
        raise BundleError(f"{path} was written by an older edgetta, whose networks this one cannot use; prepare again")
    if not isinstance(data.get("complete"), bool):
        raise BundleError(f"{path} is damaged (it does not say whether it is complete); prepare again")
    return data


def _difference(now: Mapping[str, Any], earlier: Mapping[str, Any], keys: list[str]) -> str:
    """The first few settings that differ, by name."""
    words: list[str] = []
    for key in keys:
        new, old = now[key], earlier.get(key)
        if isinstance(new, dict) and isinstance(old, dict):
            words += [f"{name} {old.get(name)!r}" for name in new if new[name] != old.get(name)]
        else:
            words.append(key.replace("_sha256", ""))
    return ", ".join(word[:80] for word in words[:4])


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror or error}; prepare again") from error
