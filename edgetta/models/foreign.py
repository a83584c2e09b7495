"""Networks from elsewhere: timm, torchvision, a function in a Python file, an exported program."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import math
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
from edgetta.sources.resize import INTERPOLATIONS, Interpolation, Policy, Resize

_FILE = "give trained ones with --weights"
_PRETRAINED = f"{_FILE}, or take the published ones with --option pretrained=true"


@dataclass(frozen=True)
class Foreign:
    """A network as its source built it: not yet normalising, input shape None where the source does not say."""

    module: nn.Module
    input_shape: tuple[int, int, int] | None = None
    constants: Constants | None = None
    parts: PublishedParts | None = None
    notes: tuple[str, ...] = ()  # what was done to it that its author should know
    resize: Resize | None = None  # as its authors evaluate it, at `input_shape`
    origin: str | None = None  # of its weights; None: they are random
    remedy: str = _FILE  # against random weights
    size_origin: str = "as published"


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
        return Foreign(module, known, origin="the program's own", size_origin="the program's own")
    return _function(spec, {**classes, **options})


def _timm(name: str, options: Mapping[str, Any]) -> Foreign:
    timm = import_with_operators("timm")
    module = _made("timm", name, timm.list_models(), lambda: timm.create_model(name, **options))
    config = getattr(module, "pretrained_cfg", {})
    size, mean, std = (config.get(key) for key in ("input_size", "mean", "std"))
    constants = (tuple(mean), tuple(std)) if mean and std else None
    origin, remedy = None, _PRETRAINED
    classes, published = getattr(module, "num_classes", None), config.get("num_classes")
    if options.get("checkpoint_path"):
        origin = Path(str(options["checkpoint_path"])).name
    elif options.get("pretrained") and classes == published:
        names = (config.get("architecture") or name, config.get("tag"))
        origin = f"timm's {'.'.join(part for part in names if part)}"
    elif options.get("pretrained"):
        remedy = (
            f"its published weights have {published} classes, so that a classifier of {classes} is untrained; {_FILE}"
        )
    return Foreign(
        module,
        tuple(size) if size else None,
        constants,
        resize=_timm_resize(config, mean) if size else None,
        origin=origin,
        remedy=remedy,
    )


def _timm_resize(config: Mapping[str, Any], mean: Any) -> Resize:
    """timm's evaluation transform, as its configuration describes it."""
    size: tuple[int, int] = tuple(config["input_size"][1:])
    share = config.get("crop_pct") or 0.875
    interpolation = _known(config.get("interpolation"), "bicubic")
    if config.get("crop_mode") == "border":
        red, green, blue = (round(255 * value) for value in mean or (0, 0, 0))
        return Resize(size, "pad", None, interpolation, (red, green, blue))
    policy: Policy = "stretch" if config.get("crop_mode") == "squash" else "crop"
    return Resize(size, policy, math.floor(min(size) / share), interpolation)


def _torchvision(name: str, options: Mapping[str, Any]) -> Foreign:
    models = import_with_operators("torchvision").models
    arguments = dict(options)
    if arguments.pop("pretrained", False):
        arguments["weights"] = "DEFAULT"
    classifiers = models.list_models(module=models)
    module = _made("torchvision", name, classifiers, lambda: models.get_model(name, **arguments))
    entries = models.get_model_weights(name)
    entry = _torchvision_weights(entries, arguments.get("weights"))
    origin = None if entry is None else f"torchvision's {entry}"
    transform: Any = next((one.transforms() for one in ((entry,) if entry is not None else entries)), None)
    side = getattr(transform, "crop_size", [224])[0]
    constants = (tuple(transform.mean), tuple(transform.std)) if hasattr(transform, "mean") else IMAGENET
    short = getattr(transform, "resize_size", [side * 8 // 7])[0]
    mode = _known(getattr(getattr(transform, "interpolation", None), "value", None), "bilinear")
    resize = Resize((side, side), "crop", max(side, short), mode)
    return Foreign(module, (3, side, side), constants, resize=resize, origin=origin, remedy=_PRETRAINED)


def _known(interpolation: Any, default: Interpolation) -> Interpolation:
    return interpolation if interpolation in INTERPOLATIONS else default


def _torchvision_weights(entries: Any, asked: Any) -> Any:
    """The entry of published weights that was asked for, which the network now has; None where none was."""
    if asked is None:
        return None
    return entries[asked.rpartition(".")[2]] if isinstance(asked, str) else asked


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
        own = f"{name}'s own"
        return Foreign(
            made.module,
            made.input_shape,
            parts=made.parts,
            resize=made.to_size,
            origin=made.origin or own,
            size_origin=own,
            notes=made.notes,
        )
    if not isinstance(made, nn.Module):
        raise EdgettaError(f"{spec} returned a {type(made).__name__}, not a torch.nn.Module")
    network, was = in_float32(unwrapped(made))
    notes = () if was is None else (f"{spec} is in {was}; it is taken as float32",)
    return Foreign(network, origin=f"{path.name}:{name}'s own", notes=notes)


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
