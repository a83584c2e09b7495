"""The accuracy costs of a preparation: their options, their measurement on held-out images, and their rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from edgetta.memory.accuracy_costs import AccuracyCosts
    from edgetta.offline.network import Network
    from edgetta.offline.stage_files import StageFiles
    from edgetta.sources.labelled import Labelled

_Function = TypeVar("_Function", bound=Callable[..., Any])

SMALL_IMAGE = 64 * 64
"""Pixels up to which costs are measured unasked: with larger images it takes more than minutes."""


def cost_options(function: _Function) -> _Function:
    """Add the options to a click command."""
    options = [
        click.option(
            "--costs/--no-costs",
            default=None,
            help="Measure what a plan's choices (fewer images that learn, slices) cost in accuracy, on "
            "held-out images under four corruptions, or not. Default: up to 64x64 pixels.",
        ),
        click.option(
            "--cost-images",
            metavar="N",
            type=click.IntRange(64),
            default=256,
            show_default=True,
            help="Held-out images under each corruption for that, at most.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def check_cost_packages(values: Mapping[str, Any], input_shape: tuple[int, int, int]) -> None:
    """Before anything long begins: is there what corruptions are made with, where costs will be measured?

    Raises:
        MissingDependencyError: no.
    """
    from edgetta.extras import require

    if values["costs"] or (values["costs"] is None and input_shape[1] * input_shape[2] <= SMALL_IMAGE):
        require("scipy", "measuring what a plan's choices cost in accuracy (--no-costs leaves it out)")


def cost_images(values: Mapping[str, Any], held_out: Labelled) -> int:
    """How many held-out images costs are measured with; 0 where they are not.

    Raises:
        UsageError: they were asked for, and the images are too few or cannot be corrupted.
    """
    from edgetta.corruption.generate import SMALLEST
    from edgetta.errors import UsageError
    from edgetta.offline.accuracy_costs import BATCH

    if values["costs"] is False:
        return 0
    trouble = ""
    if held_out.images.dim() != 4 or held_out.images.shape[1] != 3 or held_out.images.is_floating_point():
        trouble = "corruptions are made of images of 3 channels as bytes"
    elif min(held_out.images.shape[2:]) < SMALLEST:
        trouble = f"images of less than {SMALLEST} pixels are too small for corruptions"
    elif len(held_out) < BATCH:
        trouble = f"they need {BATCH} held-out images, and there are {len(held_out)}"
    if values["costs"] and trouble:
        raise UsageError(f"--costs: {trouble}; leave it out, or give other images")
    asked = values["costs"] or held_out.images.shape[2] * held_out.images.shape[3] <= SMALL_IMAGE
    return min(values["cost_images"], len(held_out)) if asked and not trouble else 0


def measured_costs(
    network: Network,
    held_out: Labelled,
    images: int,
    rates: Mapping[str, Any] | None,
    seed: int,
    files: StageFiles,
    show: bool,
) -> AccuracyCosts:
    """The costs, at the rates that were measured; the runs that are done are kept in `files`."""
    from edgetta.cli.corrupted import kept_apart
    from edgetta.cli.progress import progress_bar
    from edgetta.offline.accuracy_costs import measure_accuracy_costs
    from edgetta.rate_law import RateLaw

    law = None if rates is None else RateLaw.from_json(rates["law"])
    corrupted = kept_apart(held_out.shuffled(seed, images))
    domains = {name: (shown.numpy(), labels.numpy()) for name, (shown, labels) in corrupted.items()}
    with progress_bar("measuring costs in accuracy", unit="runs", show=show) as update:
        return measure_accuracy_costs(
            network.engine, domains, rate_law=law, content=network.content, stored=files.json, progress=update
        )


def cost_columns(costs: AccuracyCosts) -> tuple[str, str, str]:
    """What the columns of `cost_rows` are."""
    reference = f"instead of learning from {costs.learn} of {costs.batch} images at once: {costs.error:.2f} % error"
    return reference, "points of error", "standard error"


def cost_rows(costs: AccuracyCosts) -> list[tuple[str, str, str]]:
    """The costs, row by row."""
    return [(f"{m.kind} {m.value}", f"{m.cost.points:+.2f}", f"{m.cost.deviation:.2f}") for m in costs.measured]
