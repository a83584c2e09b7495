"""Is a plan true? `edgetta bench plan`: budgets, the plans made for them, and what a fresh process then takes.

Each network is exported with random weights and with its cost model, whose steps are measured at other batch sizes
than those that are planned. A plan holds when the measured peak is within its budget, and the prediction at most 10 %
above it and never more than 5 % below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetta.bench.work_folder import work_folder
from edgetta.errors import EdgettaError, UsageError

if TYPE_CHECKING:
    from edgetta.bundle import Bundle
    from edgetta.export.batch_norm import Adapt

NETWORKS = {"wrn40_2": 64, "resnet50_imagenet": 8, "mobilenet_v2_1.0_224": 16}
"""Network -> images per step."""

ABOVE, BELOW = 0.10, 0.05
"""By how much a prediction may lie above and below the measured peak."""


@click.command(
    epilog="Example: edgetta bench plan --model wrn40_2 --budgets 6 --json plan.json\n\n"
    "Example: edgetta bench plan --work bundles/ --json plan.json      (continues after Ctrl-C)"
)
@click.option("--model", "models", default=",".join(NETWORKS), show_default=True, help="Networks, comma-separated.")
@click.option("--batch", metavar="N", type=click.IntRange(1), help="Images per step; default 64, 8 and 16 for these.")
@click.option("--budgets", default=8, show_default=True, type=click.IntRange(1), help="So many for each network.")
@click.option("--engine", "engines", help="Engines to plan with, comma-separated; default those of the processor.")
@click.option(
    "--adapt",
    type=click.Choice(["meta", "bias", "affine"]),
    default="affine",
    show_default=True,
    help="What adapts, as in `edgetta export`.",
)
@click.option(
    "--work",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the bundles here, and use those that are here.",
)
@click.option("--json", "path", metavar="FILE", type=click.Path(path_type=Path), help="Write the result file here.")
def command(
    models: str,
    batch: int | None,
    budgets: int,
    engines: str | None,
    adapt: Adapt,
    work: Path | None,
    path: Path | None,
) -> None:
    """Plan budgets of three networks, run each plan in a process of its own, and compare.

    Exits with 1 where a plan does not hold. Needs Linux.
    """
    names = [name.strip() for name in models.split(",")]
    chosen = _engines(engines)
    rows = run(names, batch, budgets, chosen, work, path, adapt)
    _print(rows)
    if path is not None:
        click.echo(f"wrote {path}")
    broken = [trouble for trouble in map(trouble_of, rows) if trouble]
    if broken:
        raise EdgettaError(f"{len(broken)} of {len(rows)} plans do not hold; the first: {broken[0]}")


def run(
    names: Sequence[str],
    batch: int | None,
    budgets: int,
    engines: Sequence[str],
    work: Path | None = None,
    path: Path | None = None,
    adapt: Adapt = "affine",
) -> list[dict[str, Any]]:
    """Rows of the result file; with `path` they are written one by one, and those that are there are not redone."""
    from edgetta.bench.result_file import rows_to_continue, write_results
    from edgetta.cli.progress import progress_bar

    settings = {"batch": batch, "budgets": budgets, "engines": list(engines), "adapt": adapt, "entropy_margin": 1.0}
    rows = [] if path is None else rows_to_continue(path, settings)
    with (
        progress_bar("planning", total=budgets * len(names), unit="plans") as update,
        work_folder(work, "plan") as folder,
    ):
        for number, name in enumerate(names):
            done = [row for row in rows if row["model"] == name]
            if len(done) < budgets:
                bundle = exported(name, folder, engines, adapt)
                images = batch or NETWORKS.get(name, 16)
                there = {row["budget_bytes"] for row in done}
                for budget in budgets_for(bundle, images, budgets):
                    if budget in there:
                        continue
                    rows.append(measured_plan(bundle, budget, images))
                    if path is not None:
                        write_results(path, rows, settings)
                    update(number * budgets + sum(row["model"] == name for row in rows), note=name)
    return [row for row in rows if row["model"] in names]


def measured_plan(bundle: Bundle, budget: int, batch: int) -> dict[str, Any]:
    """Plan a budget, and measure what the runtime takes that is loaded with it, in a fresh process."""
    from edgetta.memory.fresh_process import in_fresh_process
    from edgetta.memory.plan import plan_step

    plan = plan_step(bundle, budget, wishes(bundle, batch))
    target = "edgetta.bench.plan:measured_here"
    # The runtime itself has to see to the allocator: nothing is set for it from outside.
    found = in_fresh_process(target, give_back=False, bundle=str(bundle.path), budget=budget, batch=batch)
    return {
        "model": bundle.name,
        "batch": batch,
        "budget_bytes": budget,
        "predicted_bytes": plan.cost.peak,
        **found,
        "predicted_times_inference": plan.cost.slowdown,
        "components": plan.cost.components(),
        "choice": plan.choice.to_json(),
    }


def measured_here(bundle: str, budget: int, batch: int) -> dict[str, Any]:
    """The peak of a runtime's steps in this process, beside plain inference on the same engine."""
    import time

    import numpy as np

    from edgetta.bundle import read_bundle
    from edgetta.memory.keep import new_images
    from edgetta.memory.peak import give_back, measure_peak
    from edgetta.runtime import Runtime

    opened = read_bundle(bundle)
    runtime = Runtime(opened, config=wishes(opened, batch).config, budget=budget, batch=batch)
    images = new_images(batch, opened.input_shape, seed=1)
    frames = np.ascontiguousarray((255 * images).astype(np.uint8).transpose(0, 2, 3, 1))
    peak = measure_peak(lambda: runtime.step(frames), warm_up=1, repetitions=3, release=give_back)
    begun = time.perf_counter()
    runtime.step(frames)
    step = time.perf_counter() - begun
    runtime.source(frames)
    begun = time.perf_counter()
    runtime.source(frames)
    return {
        "measured_bytes": peak.peak,
        "changes": runtime.keeper.record.down,
        "times_inference": step / (time.perf_counter() - begun),
    }


def wishes(bundle: Bundle, batch: int) -> Any:
    """Every image counts and every batch is learnt from at once: the most that a step can take."""
    from dataclasses import replace

    from edgetta.memory.keep import rehearsing
    from edgetta.memory.plan import Wishes

    return Wishes(batch=batch, config=replace(rehearsing(bundle.config), small_batch=1, when="always"))


def budgets_for(bundle: Bundle, batch: int, count: int) -> list[int]:
    """Budgets from one in which little fits to one in which everything does, each larger by the same factor."""
    from edgetta.memory.plan import MARGIN, BudgetError, plan_step

    asked = wishes(bundle, batch)
    everything = plan_step(bundle, 1 << 40, asked).cost.peak
    low, high = everything / 5, everything * (1 + 2 * MARGIN)
    try:
        plan_step(bundle, round(low), asked)
    except BudgetError as error:
        low = error.needed
    steps = max(1, count - 1)
    return [round(low * (high / low) ** (i / steps)) for i in range(count)]


def trouble_of(row: dict[str, Any]) -> str:
    """Why a plan does not hold; empty where it does."""
    predicted, measured, budget = row["predicted_bytes"], row["measured_bytes"], row["budget_bytes"]
    where = f"{row['model']} within {budget / 1e6:.1f} MB"
    if measured > budget:
        return f"{where} took {measured / 1e6:.1f} MB"
    if not 1 - BELOW <= predicted / measured <= 1 + ABOVE:
        return f"{where} took {measured / 1e6:.1f} MB, predicted were {predicted / 1e6:.1f}"
    return ""


def exported(name: str, folder: Path, engines: Sequence[str] = (), adapt: Adapt = "affine") -> Bundle:
    """The bundle of a network with random weights, written where it is not there, with the costs on some engines."""
    from edgetta.adaptation.config import AdaptConfig
    from edgetta.bundle import read_bundle
    from edgetta.export.bundle_writer import Shipment, write_bundle
    from edgetta.export.recipe import Recipe, derive_recipe, load
    from edgetta.memory.calibration import measure_cost_model

    path = folder / (name if adapt == "affine" else f"{name}-{adapt}")
    if not path.exists():
        recipe = Recipe(name, adapt=adapt, seed=0)
        adaptable = derive_recipe(recipe, load(recipe)).adaptable
        write_bundle(
            path,
            Shipment(adaptable.programs, adaptable.cuts, adaptable.batch_norm),
            name=name,
            config=AdaptConfig(),
            measure=(lambda written: measure_cost_model(str(written), engines)) if engines else None,
        )
    bundle = read_bundle(path)
    measured = bundle.cost_model.engines() if bundle.cost_model is not None else []
    if engines and set(measured) != set(engines):
        raise UsageError(f"bundle {path} was not measured on {', '.join(engines)}; remove it, so that it is made anew")
    return bundle


def _engines(text: str | None) -> list[str]:
    """The engines in an option. Raises `UsageError` for one that is not of this processor."""
    from edgetta.bundle import processor_engines

    names = [name.strip() for name in text.split(",")] if text is not None else list(processor_engines())
    for name in names:
        if name not in processor_engines():
            raise UsageError(
                f"--engine {name!r} is none of this processor; choose from {', '.join(processor_engines())}"
            )
    return names


def _print(rows: Sequence[dict[str, Any]]) -> None:
    from edgetta.cli.tables import print_table
    from edgetta.memory.choice import Choice

    columns = ("model", "budget", "predicted", "measured", "off by", "times inference", "engine", "choice")
    lines = []
    for row in rows:
        predicted, measured = row["predicted_bytes"], row["measured_bytes"]
        choice = Choice.from_json(row["choice"])
        sizes = [f"{count / 1e6:.1f}" for count in (row["budget_bytes"], predicted, measured)]
        off = f"{100 * (predicted / measured - 1):+.1f} %"
        lines.append((row["model"], *sizes, off, f"{row['times_inference']:.2f}", choice.engine, choice.told()))
    print_table(columns, lines, left=("model", "engine", "choice"))
