"""The rate law of a preparation: its options, its measurement on held-out images, and its table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgetta.errors import UsageError

if TYPE_CHECKING:
    from edgetta.offline.curvature import Progress
    from edgetta.offline.network import Network
    from edgetta.sources.labelled import Labelled

_Function = TypeVar("_Function", bound=Callable[..., Any])

TUNED_AT = 64
"""Batch size at which the height of the law is tuned: the window of small batches, and a common batch."""
IMAGES = 600
"""Held-out images under each corruption, at most."""


def curvature_options(function: _Function) -> _Function:
    """Add the options to a click command."""
    options = [
        click.option(
            "--curvature",
            is_flag=True,
            help="Also measure which learning rate each batch size bears, on held-out images under four corruptions.",
        ),
        click.option(
            "--curvature-batch-sizes",
            metavar="A,B,C",
            default="8,16,32,64",
            show_default=True,
            help=f"Batch sizes to measure, {TUNED_AT} among them: a rate is tuned there.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def curvature_sizes(values: Mapping[str, Any]) -> tuple[int, ...]:
    """The batch sizes to measure, ascending; none without `--curvature`.

    Raises:
        UsageError: they cannot give a law.
    """
    if not values["curvature"]:
        return ()
    text = values["curvature_batch_sizes"]
    try:
        sizes = tuple(sorted({int(size) for size in text.split(",") if size.strip()}))
    except ValueError as error:
        raise UsageError(f"--curvature-batch-sizes {text}: write whole numbers separated by commas") from error
    if len(sizes) < 2 or sizes[0] < 1 or TUNED_AT not in sizes:
        raise UsageError(f"--curvature-batch-sizes {text}: give two positive sizes at least, {TUNED_AT} among them")
    return sizes


def check_curvature(held_out: Labelled, sizes: tuple[int, ...]) -> None:
    """Find out whether the law can be measured on these images, before anything long begins.

    Raises:
        UsageError: fewer held-out images than a batch, or images that cannot be corrupted.
    """
    from edgetta.cli.corrupted import kept_apart

    if sizes and len(held_out) < sizes[-1]:
        raise UsageError(
            f"{len(held_out)} held-out images are fewer than one batch of {sizes[-1]}; keep more apart with "
            "--held-out, or give other --curvature-batch-sizes"
        )
    if sizes:
        kept_apart(held_out.subset([0]))


def measured_rates(
    network: Network, held_out: Labelled, sizes: tuple[int, ...], seed: int, show: bool
) -> dict[str, Any]:
    """The law, from held-out images under corruptions that no benchmark's stream has, as `AdaptationRates.to_json`.

    Raises:
        UsageError: images that cannot be corrupted.
        CurvatureError: too few images, or too little memory.
    """
    from edgetta.adaptation.config import AdaptConfig
    from edgetta.cli.corrupted import kept_apart
    from edgetta.cli.progress import progress_bar
    from edgetta.offline.learning_rate.adaptation_curvature import measure_adaptation
    from edgetta.offline.learning_rate.adaptation_law import adaptation_rates

    config = AdaptConfig()
    domains = kept_apart(held_out.shuffled(seed, IMAGES))
    images = {name: corrupted for name, (corrupted, _) in domains.items()}
    with progress_bar("measuring rates", show=show) as update:

        def tell(event: Progress) -> None:
            update(event.step, event.total, event.message)

        curvature = measure_adaptation(network, images, config, sizes, seed=seed, progress=tell)
        return adaptation_rates(network, domains, config, curvature, batch_size=TUNED_AT, progress=tell).to_json()


RATE_COLUMNS = ("batch size", "learning rate", "low", "high", "regime")


def rate_rows(rates: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """The law that `measured_rates` found, row by row."""
    from edgetta.rate_law import RateLaw

    law = RateLaw.from_json(rates["law"])
    return [
        (size, *(f"{x:.3g}" for x in (law.rate(size), *law.interval(size))), law.regime(size))
        for size in law.batch_sizes
    ]


def tuning_words(rates: Mapping[str, Any]) -> str:
    """How the law's height was found."""
    errors = ", ".join(f"{rate:g}: {100 * error:.2f}" for rate, error in rates["tuning"]["errors"])
    return f"at batch size {rates['tuning']['batch_size']}; error in % by rate (0: off): {errors}"


def show_rates(rates: Mapping[str, Any]) -> None:
    """The law as a table, and how its height was found."""
    from edgetta.cli.tables import print_facts, print_table

    print_table(RATE_COLUMNS, rate_rows(rates), left=("regime",))
    print_facts([("rate tuned", tuning_words(rates))])
