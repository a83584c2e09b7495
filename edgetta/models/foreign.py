"""Networks from elsewhere: timm, torchvision, a function in a Python file, an exported program."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from edgetta.errors import EdgettaError, UsageError
from edgetta.models.exported import load_exported
from edgetta.models.model import Model
from edgetta.models.normalise import IMAGENET, Constants
from edgetta.models.parts import PublishedParts
from edgetta.models.torchvision_operators import import_with_operators, with_operators
from edgetta.models.wrappers import in_float32, unwrapped


@dataclass(frozen=True)
class Foreign:
    """A network as its source built it: not yet normalising, input shape None where the source does not say."""

    module: nn.Module
    input_shape: tuple[int, int, int] | None = None
    constants: Constants | None = None
    parts: PublishedParts | None = None
    notes: tuple[str, ...] = ()  # what was done to it that its author should know


def build(spec: str, num_classes: int | None, options: Mapping[str, Any]) -> Foreign:
    """Build the model that `spec` names. `options` go to the library or function.

    Raises UsageError for an unknown name, option or function, MissingDependencyError for a library that is not there,
    EdgettaError for what the source itself raises.
    """
    classes = {} if num_classes is None else {"num_classes": num_classes}
    if spec.startswith("timm:"):
        return _timm(spec.removeprefix("timm:"), {**classes, **options})
    if spec.startswith("torchvision:"):
        return _torchvision(spec.removeprefix("torchvision:"), {**classes, **options})
    if spec.endswith(".pt2"):
        if options or classes:
            raise UsageError(f"{spec} is an exported program: it takes no option {', '.join({**classes, **options})}")
        module, (channels, height, width) = load_exported(spec)
        known = None if channels is None or height is None or width is None else (channels, height, width)
        return Foreign(module, known)
    return _function(spec, {**classes, **options})


def _timm(name: str, options: Mapping[str, Any]) -> Foreign:
    timm = import_with_operators("timm")
    module = _made("timm", name, timm.list_models(), lambda: timm.create_model(name, **options))
    config = getattr(module, "pretrained_cfg", {})
    size, mean, std = (config.get(key) for key in ("input_size", "mean", "std"))
    constants = (tuple(mean), tuple(std)) if mean and std else None
    return Foreign(module, tuple(size) if size else None, constants)


def _torchvision(name: str, options: Mapping[str, Any]) -> Foreign:
    models = import_with_operators("torchvision").models
    arguments = dict(options)
    if arguments.pop("pretrained", False):
        arguments["weights"] = "DEFAULT"
    classifiers = models.list_models(module=models)
    module = _made("torchvision", name, classifiers, lambda: models.get_model(name, **arguments))
    transform: Any = next((entry.transforms() for entry in models.get_model_weights(name)), None)
    side = getattr(transform, "crop_size", [224])[0]
    constants = (tuple(transform.mean), tuple(transform.std)) if hasattr(transform, "mean") else IMAGENET
    return Foreign(module, (3, side, side), constants)


def _made(library: str, name: str, known: list[str], build: Callable[[], nn.Module]) -> nn.Module:
    if name.partition(".")[0] not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise UsageError(f"{library} has no model {name!r}" + (f": did you mean {library}:{near[0]}?" if near else ""))
    try:
        return build()
    except TypeError as error:
        raise UsageError(f"{library}:{name} does not take these options: {error}") from error
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EdgettaError(f"{library}:{name} could not be built: {reason[:300]}") from error


def _function(spec: str, options: Mapping[str, Any]) -> Foreign:
    """Run the file, call the function. The user named the file: this is their code."""
    file, separator, name = spec.rpartition(".py:")
    if not separator or not name:
        raise UsageError(f"{spec}: name the function that builds the model, as {spec.rstrip(':')}:function")
    path = Path(file + ".py")
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    function = getattr(_imported(path), name, None)
    if not callable(function):
        raise UsageError(f"{path} has no function {name!r}")
    try:
        inspect.signature(function).bind(**options)
    except TypeError as error:
        given = ", ".join(options) or "no arguments"
        raise UsageError(f"{spec}{inspect.signature(function)} cannot be called with {given}: {error}") from error
    try:
        made = function(**options)
    except Exception as error:
        raise EdgettaError(f"{spec} failed: {type(error).__name__}: {error}") from error
    if isinstance(made, Model):
        return Foreign(made.module, made.input_shape, parts=made.parts, notes=made.notes)
    if not isinstance(made, nn.Module):
        raise EdgettaError(f"{spec} returned a {type(made).__name__}, not a torch.nn.Module")
    network, was = in_float32(unwrapped(made))
    return Foreign(network, notes=() if was is None else (f"{spec} is in {was}; it is taken as float32",))


def _imported(path: Path) -> Any:
    """The file as a module, its own folder importable while it runs."""
    name = f"edgetta_model_file_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise UsageError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(found)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    sys.modules[name] = module  # dataclasses and pickles of the file look their module up
    try:
        with_operators(lambda: found.loader.exec_module(module))  # type: ignore[union-attr]
    except Exception as error:
        del sys.modules[name]
        raise EdgettaError(f"{path} failed to run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
    return module
