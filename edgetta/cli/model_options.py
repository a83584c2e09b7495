"""The options that say which model, and how it becomes adaptable: the same for every verb that takes a MODEL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgetta.errors import EdgettaError, UsageError

if TYPE_CHECKING:
    from edgetta.export.recipe import Recipe

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Those of `edgetta.sources.resize`, spelled out so that `--help` imports no numpy.
POLICIES = ("crop", "pad", "stretch")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")

# Parameter name of the command line -> field of `Recipe`, where they differ.
_FIELDS = {"input_size": "input_shape", "bn": "batch_norm", "option": "options"}
NAMES = (
    *("weights", "num_classes", "width", "input_size", "mean", "std", "option", "parts", "cuts", "bn", "adapt"),
    *("initialisation", "kernel", "precision"),
    *("random_weights", "resize", "short_side", "interpolation", "fill"),
)


def model_options(function: _Function) -> _Function:
    """Add the options to a click command. Each is None (or empty) where the user said nothing."""
    options = [
        click.option(
            "--weights",
            metavar="FILE",
            type=click.Path(),
            callback=_existing_weights,
            help="Trained weights: .safetensors, .npz or a checkpoint (never unpickled beyond plain tensors).",
        ),
        click.option(
            "--random-weights",
            is_flag=True,
            default=None,
            help="Go on with random weights, where nobody gave trained ones.",
        ),
        click.option(
            "--num-classes", metavar="N", type=click.IntRange(2), help="Classes; default what the weights say."
        ),
        click.option("--width", metavar="X", type=float, help="Every channel count times X (built-in networks only)."),
        click.option(
            "--input-size",
            metavar="SIZE",
            help="Images that the model takes: 32, or 3x224x224 (channels, height, width); default the model's own.",
        ),
        click.option(
            "--resize",
            type=click.Choice(POLICIES),
            help="How pictures become the input: crop (short side to --short-side, then the centre; the default for "
            "timm, torchvision and ImageNet's networks), pad (all of the picture, borders filled), or stretch (the "
            "default for others). Part of the bundle.",
        ),
        click.option(
            "--short-side",
            metavar="PIXELS",
            type=click.IntRange(1),
            help="Of a picture before its centre is cut out, as 256 for 224; default as published, else the input's.",
        ),
        click.option(
            "--interpolation",
            type=click.Choice(INTERPOLATIONS),
            help="Of the resizing; default as published, else bilinear.",
        ),
        click.option("--fill", metavar="R,G,B", help="Colour of pad's borders, 0 to 255 each; default black."),
        click.option("--mean", metavar="R,G,B", help="Mean for normalising images in [0, 1], where it is not known."),
        click.option("--std", metavar="R,G,B", help="Standard deviation for the same."),
        click.option(
            "--option",
            metavar="NAME=VALUE",
            multiple=True,
            help="For the library or function that builds the model, e.g. pretrained=true; may be repeated.",
        ),
        click.option(
            "--parts",
            metavar="N",
            type=click.IntRange(1),
            help="Parts with a meta-network beside each; default what the paper has for the network, else 4.",
        ),
        click.option(
            "--cuts",
            metavar="A,B,C",
            help="Cut after these modules instead: the stem's end, then the end of each part.",
        ),
        click.option(
            "--bn",
            type=click.Choice(["adaptive", "source"]),
            help="Frozen BatchNorms follow the stream (adaptive, the default) or are folded away as trained (source).",
        ),
        click.option(
            "--adapt",
            type=click.Choice(["meta", "bias", "affine"]),
            help="What adapts: meta-networks alone; biases inside the frozen parts, too (no memory); or BatchNorm's "
            "weights as well (affine, the default: adapts best, for a bit per element and a slower backward).",
        ),
        click.option(
            "--initialisation",
            type=click.Choice(["identity", "published"]),
            help="Meta-networks start as feature alignment (identity, the default) or at random, as published, "
            "which needs warm-up.",
        ),
        click.option(
            "--kernel",
            type=click.Choice(["1", "3"]),
            help="Of the meta-networks' convolutions; default the published one, else what stays small.",
        ),
        click.option(
            "--precision",
            type=click.Choice(["fp32", "int8"]),
            help="Of the backbone: fp32 (the default), or int8 with ranges from source images (its gradient goes "
            "straight through the rounding, and meta-networks learn to repair it).",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def recipe_from(model: str, values: Mapping[str, Any], seed: int = 0) -> Recipe:
    """The recipe that the options describe. `values` are those of the command; others in it are left alone.

    Raises:
        UsageError: a value that cannot be read.
    """
    from edgetta.export.recipe import Recipe

    read: dict[str, Callable[[Any], Any]] = {
        "input_size": input_shape,
        "fill": _colour,
        "mean": lambda text: _numbers("--mean", text),
        "std": lambda text: _numbers("--std", text),
        "option": _pairs,
        "cuts": lambda text: tuple(name for name in text.replace(" ", "").split(",") if name),
        "kernel": int,
    }
    given = {name: values[name] for name in NAMES if values.get(name) not in (None, ())}
    fields = {_FIELDS.get(name, name): read.get(name, lambda value: value)(value) for name, value in given.items()}
    return Recipe(model, seed=seed, **fields)


def given_names(values: Mapping[str, Any]) -> list[str]:
    """The model options that the user gave, as written on the command line."""
    return [f"--{name.replace('_', '-')}" for name in NAMES if values.get(name) not in (None, ())]


def input_shape(text: str) -> tuple[int, int, int]:
    """(C, H, W) of `32` (square, 3 channels), `24x32` (height, width) or `1x28x28`.

    Raises:
        UsageError: anything else.
    """
    sides = text.lower().replace(",", "x").replace(" ", "").split("x")
    if not all(side.isascii() and side.isdigit() and 0 < int(side) < 2**16 for side in sides) or len(sides) > 3:
        raise UsageError(f"--input-size {text} is no size; write 32, or channels, height and width as 3x224x224")
    numbers = [int(side) for side in sides]
    if len(numbers) == 1:
        numbers *= 2
    return (3, *numbers) if len(numbers) == 2 else tuple(numbers)  # type: ignore[return-value]


def class_names(text: str) -> tuple[str, ...]:
    """Names in a text file, one per line, or separated by commas.

    Raises:
        UsageError: a file that cannot be read, no names, or a name that occurs twice.
    """
    names = text.split(",")
    if len(names) == 1 or Path(text).is_file():
        try:
            names = Path(text).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"cannot read class names from {text} ({error}); give a text file with one name per line, or a,b,c"
            ) from error
    names = [name.strip() for name in names if name.strip()]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise UsageError(f"the class name {doubled!r} occurs twice in {text}; names must differ")
    if len(names) < 2:
        raise UsageError(f"{text} names {len(names)} classes; a classifier has at least 2")
    return tuple(names)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option} {text}: write numbers separated by commas, one per channel") from error


def _colour(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise UsageError(f"--fill {text}: write a colour as three numbers from 0 to 255, e.g. 114,114,114") from error


def _existing_weights(ctx: click.Context, option: click.Parameter, path: str | None) -> str | None:
    """A file that is missing is told at once, not when the network is built."""
    if path is not None and not Path(path).is_file():
        from edgetta.sources.opening import nearest

        raise EdgettaError(f"weights {path}: no such file{nearest(Path(path))}")
    return path


def _pairs(entries: tuple[str, ...]) -> dict[str, Any]:
    """`name=value` with the value as a Python literal where it is one, else as text."""
    import ast

    options: dict[str, Any] = {}
    for entry in entries:
        name, separator, text = entry.partition("=")
        if not separator or not name.isidentifier():
            raise UsageError(f"--option {entry}: write NAME=VALUE, for example pretrained=true")
        spelled = {"true": "True", "false": "False", "none": "None"}.get(text.lower(), text)
        try:
            options[name] = ast.literal_eval(spelled)
        except (ValueError, SyntaxError):
            options[name] = text
    return options
