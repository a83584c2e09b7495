"""`edgetta bench exactness`: derived gradients of whole networks against autograd, with a tolerance that must hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetta.errors import EdgettaError, UsageError

if TYPE_CHECKING:
    from edgetta.export.recipe import Recipe


@click.command(
    epilog="Example: edgetta bench exactness --model wrn40_2,timm:resnet18 --json exactness.json\n\n"
    "Example: edgetta bench exactness --model my_network.py:build --input-size 64"
)
@click.option("--model", "models", help="Networks, comma-separated; default the 18 of the matrix (half an hour).")
@click.option("--input-size", metavar="SIZE", help="Images: 64, or 3x64x96; default the network's in the matrix.")
@click.option("--batch", default=4, show_default=True, type=click.IntRange(2), help="Images.")
@click.option(
    "--json",
    "path",
    type=click.Path(path_type=Path),
    help="Write the result file here; networks in it are not redone.",
)
def command(models: str | None, input_size: str | None, batch: int, path: Path | None) -> None:
    """Derived gradients against torch.autograd in float64: every part, BatchNorm policy, gradient mode and engine.

    Weights are random. Shown are the largest relative L2 errors over the parts: of the derived graphs in float64, in
    float32 with the masks of float64 imposed, and in float32 with the engine's own masks. Exits with 1 where one
    exceeds its tolerance.
    """
    from edgetta.bench.exactness.networks import NETWORKS
    from edgetta.cli.model_options import input_shape
    from edgetta.export.recipe import Recipe

    shape = None if input_size is None else input_shape(input_size)
    if models is None and shape is not None:
        raise UsageError("--input-size needs --model: the networks of the matrix have sizes of their own")
    recipes = dict(NETWORKS)
    if models is not None:
        names = [name.strip() for name in models.split(",")]
        recipes = {n: NETWORKS[n] if shape is None and n in NETWORKS else Recipe(n, input_shape=shape) for n in names}
    rows = run(recipes, batch, path)
    _print(rows)
    if path is not None:
        click.echo(f"wrote {path}")
    exceeding = [row["excess"] for row in rows if row["excess"]]
    if exceeding:
        more = f" (and {len(exceeding) - 1} more)" if len(exceeding) > 1 else ""
        raise EdgettaError(f"not exact: {exceeding[0]}{more}")


def run(recipes: dict[str, Recipe], batch: int, path: Path | None) -> list[dict[str, Any]]:
    """The rows of the networks given. With `path` they are added to that file, network by network, and what a run of
    the same versions and settings left there is not done again."""
    from edgetta.bench.exactness import measurement
    from edgetta.bench.result_file import rows_to_continue, write_results
    from edgetta.cli.progress import progress_bar

    settings = {
        "batch": batch,
        "weights": "random",
        "momentum": measurement.MOMENTUM,
        "tolerances": {
            "float64_error": measurement.FLOAT64,
            "imposed_error": measurement.IMPOSED,
            "own_masks_error": measurement.OWN_MASKS,
            "own_masks_error, rounded": measurement.ROUNDED,
        },
    }
    rows = [] if path is None else rows_to_continue(path, settings)
    done = {row["network"] for row in rows}
    with progress_bar("exactness", len(recipes), unit="networks") as update:
        for count, (name, recipe) in enumerate(recipes.items()):
            update(count, note=name)
            if name in done:
                continue
            rows += measurement.worst(measurement.measure(name, recipe, batch=batch))
            if path is not None:
                write_results(path, rows, settings)
    return [row for row in rows if row["network"] in recipes]


def _print(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Largest relative error of the input gradient over the parts")
    for name in ("network", "policy", "gradient", "engine"):
        table.add_column(name, no_wrap=True)
    errors = ("float64_error", "imposed_error", "own_masks_error")
    for name in ("float64", "masks imposed", "own masks", "flipped"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        policy = f"{row['policy']} + biases" if row["adapt"] == "bias" else row["policy"]
        worst = ["-" if row[name] is None else f"{row[name]:.1e}" for name in errors]
        flipped = f"{row['flipped']} of {row['masks'] / 1e6:.1f}M"
        table.add_row(row["network"], policy, row["gradient"], row["engine"], *worst, flipped)
    console = Console()
    console.width = max(console.width, 132)
    console.print(table)
