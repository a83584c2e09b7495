"""One option per field of `AdaptConfig`, under the field's own name: how the stream is adapted to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgetta.cli.help_tiers import SettingOption

if TYPE_CHECKING:
    from edgetta.adaptation.adapter import AdaptConfig

_Function = TypeVar("_Function", bound=Callable[..., Any])

STATISTICS = "BatchNorm's: of all images since the stream last changed, or of each batch alone."

# Field -> (type, what to write, help). Static, so that `--help` does not import torch.
OPTIONS: dict[str, tuple[Any, str, str]] = {
    "optimizer": (click.Choice(("sgd", "adam")), "sgd|adam", "The bundle's rate law is one of SGD."),
    "learning_rate": (float, "RATE", "Of SGD; the bundle's rate law, where it has one, is the default."),
    "momentum": (float, "M", "Of SGD, below 1."),
    "regulariser": (float, "LAMBDA", "Weight of the self-distilled regularisation."),
    "anchor": (float, "SHARE", "After each update, weights go back by this share of the way to the shipped ones."),
    "entropy_margin": (float, "SHARE", "Samples with entropy above this share of ln(classes) do not count."),
    "passes": (click.IntRange(1, 2), "1|2", "2: the published order, two forwards per step."),
    "when": (
        str,
        "WHEN",
        "Adapt always, off, 'every N' (batches), on-drift (a while after a change), or 'budgeted P%' of the time.",
    ),
    "window": (click.IntRange(1), "IMAGES", "Small batches are gathered: one update per so many images."),
    "small_batch": (click.IntRange(1), "IMAGES", "Batches below this size are small."),
    "statistics": (click.Choice(("stream", "batch")), "stream|batch", STATISTICS),
    "statistics_images": (click.IntRange(1), "IMAGES", "Statistics of the stream reach back so many images at most."),
    "source_share": (
        float,
        "SHARE",
        "Of training's statistics in the stream's; default: found after a change.",
    ),
    "change": (float, "TIMES", "Statistics that depart so many times more than usual begin a new average."),
    "adapt_affine": (
        bool,
        "true|false",
        "Biases and weights inside the frozen parts adapt too, as exported (--adapt).",
    ),
    "mirrored": (
        bool,
        "true|false",
        "Average with the mirror image's prediction: more accurate, twice the inference.",
    ),
    "watched": (click.IntRange(0), "UPDATES", "First updates whose effect may damp a rate of the law; 0: none."),
}


def adaptation_options(function: _Function, but: str | None = None) -> _Function:
    """Add the options to a click command, but one that it has itself. Each is None where the user said nothing."""
    for name, (kind, metavar, text) in reversed(OPTIONS.items()):
        if name != but:
            option = click.option(
                f"--{name.replace('_', '-')}",
                name,
                cls=SettingOption,
                setting=partial(_default, name),
                type=kind,
                metavar=metavar,
                help=text,
            )
            function = option(function)
    return function


def _default(name: str) -> Any:
    """What holds where nobody says anything: the setting's own default; a bundle may say otherwise."""
    from edgetta.adaptation.adapter import AdaptConfig
    from edgetta.adaptation.step_rate import DEFAULT_RATE

    return DEFAULT_RATE if name == "learning_rate" else getattr(AdaptConfig(), name)


def adapt_config(base: AdaptConfig, values: Mapping[str, Any]) -> AdaptConfig:
    """`base` with the options that the user gave. `values` are those of the command.

    Raises:
        UsageError: a value out of its range.
    """
    from dataclasses import replace

    return replace(base, **{name: values[name] for name in OPTIONS if values.get(name) is not None})
