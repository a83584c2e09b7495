"""`edgetta plan`: what a memory budget allows, before anything runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetta.cli.adaptation_options import adapt_config, adaptation_options
from edgetta.cli.help_tiers import two_tiers
from edgetta.cli.settings import config_option
from edgetta.errors import UsageError
from edgetta.segments.engine_names import ENGINES

if TYPE_CHECKING:
    from edgetta.adaptation.step_plan import StepPlan
    from edgetta.memory.plan import Plan

EXAMPLES = """\b
Examples:
  edgetta plan bundle/ --budget 256MiB
  edgetta plan bundle/ --device orin-nano-8gb --batch 16
  edgetta plan bundle/ --budget 64MiB --engine torch --json
  edgetta run bundle/ camera:0 --budget 256MiB        (plans the same way, and keeps it)
"""


@click.command(cls=two_tiers("budget", "device", "batch", "engine", "as_json"), epilog=EXAMPLES)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--budget",
    metavar="SIZE",
    help="Memory that steps may take above the loaded model: 256MiB, 1.5GB, or a number of bytes.",
)
@click.option(
    "--device",
    metavar="NAME",
    help="A device profile (orin-nano-8gb, raspberry-pi-5-8gb, ...), for a budget to start from where you give none.",
)
@click.option(
    "--batch", metavar="N", type=click.IntRange(1), default=64, show_default=True, help="Frames per step, at most."
)
@click.option(
    "--engine",
    type=click.Choice(["auto", *ENGINES]),
    default="auto",
    show_default=True,
    help="What runs the programs. auto: any that the bundle was measured on.",
)
@click.option("--recompute", is_flag=True, help="Allow only ways that keep nothing for the backward.")
@click.option(
    "--slice",
    metavar="IMAGES",
    type=click.IntRange(0),
    help="Allow only this number of images in a slice of an update, 0 for all; default: whatever the plan finds.",
)
@adaptation_options
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, for programs.")
@config_option
def command(**values: Any) -> None:
    """Find the best way to adapt within a memory budget.

    BUNDLE is what `edgetta export` wrote, with the programs that were measured then. All ways to do a step are
    searched: images that learn, bits that are kept or not, slices, images that are predicted at a time, engine. Of
    those that fit with 5 % to spare the one wins that costs least accuracy, then time. Printed are the choice, the
    peak that it is predicted to have, its time beside plain inference, and what it gives up.

    The exit code is 2 where nothing fits; the message says which budget would do.
    """
    from edgetta.bundle import read_bundle
    from edgetta.memory.plan import Wishes, plan_step

    bundle = read_bundle(values["bundle"])
    budget, origin = _budget(values)
    wishes = Wishes(
        batch=values["batch"],
        engine=values["engine"],
        memory=_memory(values),
        config=adapt_config(bundle.config, values),
    )
    plan = plan_step(bundle, budget, wishes)
    if as_json := values["as_json"]:
        click.echo(json.dumps({"bundle": bundle.name, "batch": values["batch"], **plan.to_json()}, indent=2))
    if not as_json:
        from edgetta.cli.tables import print_facts

        print_facts(
            [
                ("bundle", f"{bundle.name}, {values['batch']} frames per step"),
                *facts(plan, origin, bundle.has_batch_norm),
            ]
        )


def facts(plan: Plan, origin: str = "", batch_norm: bool = True) -> Iterator[tuple[str, str]]:
    """A plan as lines for people; of BatchNorm nothing where the backbone has none."""
    from edgetta.memory.sizes import size_text

    choice, cost = plan.choice, plan.cost
    yield "budget", f"{size_text(plan.budget)} above the loaded model{origin}"
    yield "choice", choice.told()
    yield "engine", f"{choice.engine}, freed memory returned at once"
    if batch_norm:
        yield "BatchNorm", _STATISTICS[plan.batch_norm]
    parts = [f"{size_text(count)} {name}" for name, count in cost.components().items() if count]
    yield "predicted peak", f"{size_text(cost.peak)}: {', '.join(parts)}"
    times = "not measured" if cost.slowdown is None else f"{cost.slowdown:.2f} times plain inference on this engine"
    yield "predicted time", times
    yield "learning rate", f"{plan.rate.rate:.3g}: {plan.rate.reason}"
    yield "given up", "\n".join(entry.told() for entry in plan.given_up) or "nothing"
    yield "accuracy", _accuracy(plan)
    on = plan.costs.measured_on
    versions = ", ".join(f"{name} {version}" for name, version in on.get("versions", {}).items())
    yield "measured", f"at export, {on.get('date')}, {on.get('architecture')}, {on.get('threads')} threads, {versions}"


def _accuracy(plan: Plan) -> str:
    """On what the costs were measured, and what adaptation is worth there."""
    costs = plan.accuracy
    if costs is None:
        return "costs not measured; `edgetta prepare --costs` does"
    images = f"{costs.source.get('images')} images under {costs.source.get('corruptions')}"
    return (
        f"{costs.error:.2f} % error at its best on {images}; without adaptation {costs.of('adaptation', 'off').told()}"
    )


_STATISTICS = {
    "stream": "statistics of the source, moved as far as there is evidence of a shift",
    "batch": "statistics of each batch",
    "source": "statistics of training",
}


def _memory(values: dict[str, Any]) -> StepPlan | None:
    """The way that was asked for; None leaves it to the plan."""
    from edgetta.adaptation.step_plan import StepPlan

    if values["slice"] is None and not values["recompute"]:
        return None
    return StepPlan(keep=not values["recompute"], slice=values["slice"] or 0)


def _budget(values: dict[str, Any]) -> tuple[int, str]:
    """Bytes, and where they are from.

    Raises:
        UsageError: neither a budget nor a device, a size that is none, or an unknown device.
    """
    from edgetta.devices.profile import load_profile
    from edgetta.memory.sizes import parse_size, size_text

    profile = None if values["device"] is None else load_profile(values["device"])
    if values["budget"] is not None:
        budget = parse_size(values["budget"])
        if profile is None or budget <= profile.memory_bytes:
            return budget, ""
        return budget, f" (more than the {size_text(profile.memory_bytes)} of a {profile.title})"
    if profile is None:
        raise UsageError("give --budget SIZE, or --device NAME for a budget to start from")
    return profile.suggested_budget_bytes, f" (half of what a {profile.title} has left beside its system: advice)"
