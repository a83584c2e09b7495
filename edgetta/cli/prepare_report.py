"""What a preparation did, for the terminal and as `report.html`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetta.cli.cost_options import cost_columns, cost_rows
from edgetta.cli.curvature_options import RATE_COLUMNS, rate_rows, show_rates, tuning_words

if TYPE_CHECKING:
    from edgetta.export.preparation import PreparationReport
    from edgetta.export.recipe import Derived
    from edgetta.memory.accuracy_costs import AccuracyCosts
    from edgetta.offline.rift import RiftReport
    from edgetta.offline.stage import Accuracies, Stage
    from edgetta.report import Block, Fact, Picture
    from edgetta.sources.labelled import Labelled

TITLES = {
    "adversarial_training": "adversarial training",
    "rift": "RiFT",
    "meta_networks": "meta-networks put in",
    "warm_up": "warm-up",
    "curvature": "curvature",
}
COLUMNS = ("stage", "clean before %", "after %", "single frames %", "robust before %", "after %", "time")


def stage_rows(stages: Sequence[Stage]) -> list[tuple[str, ...]]:
    """One row per stage: held-out accuracies before and after it, adaptation off."""
    from edgetta.cli.tables import seconds_text

    return [
        (
            TITLES[stage.name],
            *(_percent(share) for share in (stage.before.clean, stage.after.clean, stage.after.running)),
            *(_percent(share) for share in (stage.before.robust, stage.after.robust)),
            seconds_text(stage.seconds),
        )
        for stage in stages
    ]


def show(
    folder: Path,
    derived: Derived,
    train: Labelled,
    report: PreparationReport,
    rates: Mapping[str, Any] | None,
    costs: AccuracyCosts | None,
) -> None:
    """Print the tables."""
    from edgetta.cli.tables import print_facts, print_line, print_table

    skipped = [f"{train.skipped_count:,} skipped"] if train.skipped_count else []
    images = [f"{report.images:,} to train on, {report.held_out:,} held out", *skipped]
    facts = [
        ("model", f"{derived.recipe.model}, {derived.model.num_classes} classes"),
        ("parts", f"{len(derived.adaptable.cuts) - 1}, cuts {derived.origin}: {', '.join(derived.adaptable.cuts)}"),
        ("images", "; ".join(images)),
        *((f"  {frame.name}", frame.reason) for frame in train.skipped[:5]),
        *((TITLES[stage.name], words) for stage in report.stages if (words := _words(stage))),
    ]
    print_facts(facts)
    print_table(COLUMNS, stage_rows(report.stages), left=("stage",))
    if rates is not None:
        show_rates(rates)
    if costs is not None:
        print_table(columns := cost_columns(costs), cost_rows(costs), left=columns[:1])
    print_line(f"report: {folder / 'report.html'}")
    print_line(f"next: edgetta export {shlex.quote(str(folder))} -o bundle/", style="green")


def page(
    derived: Derived,
    report: PreparationReport,
    rift: RiftReport | None,
    rates: Mapping[str, Any] | None,
    costs: AccuracyCosts | None,
) -> str:
    """`report.html`; without plots where matplotlib is not installed."""
    from edgetta.environment import environment
    from edgetta.report import Fact, Facts, Heading, Paragraph, Table, render

    first, last = report.stages[0], report.stages[-1]
    blocks: list[Block] = [
        Facts(
            (
                _accuracy_fact(first.before.clean, last.after.clean, "clean accuracy, adaptation off"),
                *_robust_fact(report.stages),
                Fact(f"{report.held_out:,}", "held-out images, on which all of this is measured"),
            )
        ),
        Heading("Stages"),
        Table(
            COLUMNS,
            stage_rows(report.stages),
            "Held-out images, adaptation off. Single frames: with running statistics instead of a batch's. Robust: "
            "right, and still right under attack; measured on the backbone, not on what adapts later.",
        ),
        *[Paragraph(f"{TITLES[stage.name]}: {words}.") for stage in report.stages if (words := _words(stage))],
    ]
    drawn = find_spec("matplotlib") is not None
    if drawn:
        blocks.append(_bars(report.stages))
    if rift is not None:
        blocks.append(Heading("RiFT"))
        blocks += [_criticality(rift), _interpolation(rift)] if drawn else []
    if rates is not None:
        blocks += [Heading("Learning rate by batch size"), Table(RATE_COLUMNS, rate_rows(rates))]
        blocks.append(Paragraph(f"Tuned {tuning_words(rates)}."))
        blocks += [_law(rates)] if drawn else []
    if costs is not None:
        words = f"{costs.source['images']} held-out images under {costs.source['corruptions']}."
        if costs.errors_per_doubt is not None:
            words += f" Predictions were wrong {costs.errors_per_doubt:.2f} times as often as they say themselves."
        blocks += [Heading("What choices cost in accuracy"), Table(cost_columns(costs), cost_rows(costs), words)]
    now = environment()
    packages = ", ".join(f"{name} {version}" for name, version in now["versions"].items())
    foot = f"{now['machine']['processor']}, {now['machine']['threads']} threads. {packages}. {now['date']}."
    cuts = ", ".join(f"`{name}`" for name in derived.adaptable.cuts)
    subtitle = f"{report.images:,} source images; {len(derived.adaptable.cuts) - 1} parts, cut after {cuts}."
    return render(f"{Path(derived.recipe.model).name}, prepared", blocks, subtitle, foot)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _words(stage: Stage) -> str:
    """What only this kind of stage has to tell."""
    facts = stage.facts
    if stage.name == "adversarial_training":
        best = max(facts["epochs"], key=lambda epoch: epoch["score"])
        return f"{len(facts['epochs'])} epochs, of which the {best['epoch']}. is kept, the most robust one"
    if stage.name == "rift":
        if not facts["alpha"]:
            return "no point on the way was better within the bound: the weights are as before"
        return (
            f"{', '.join(facts['modules'])} at alpha {facts['alpha']:g}; robust accuracy lost "
            f"{100 * facts['robust_loss']:+.2f} points, at most {100 * facts['robust_loss_upper']:+.2f} (95 %)"
        )
    if stage.name == "warm_up":
        return f"{facts['steps']:,} steps, last loss {facts['final_loss']:.3f}"
    return ""


def _accuracy_fact(before: float | None, after: float | None, words: str) -> Fact:
    from edgetta.report import Fact, trend

    change = None if before is None or after is None else after - before
    return Fact(f"{_percent(before)} → {_percent(after)} %", words, trend(change))


def _robust_fact(stages: Sequence[Stage]) -> list[Fact]:
    robust = [stage for stage in stages if stage.after.robust is not None]
    if not robust:
        return []
    before, after = robust[0].before.robust, robust[-1].after.robust
    return [_accuracy_fact(before, after, "robust accuracy of the backbone")]


def _bars(stages: Sequence[Stage]) -> Picture:
    """Clean and robust accuracy as given and after every stage."""
    from edgetta.offline.curvature.plot import figure
    from edgetta.report import PALETTE, plot

    points: list[tuple[str, Accuracies]] = [("as given", stages[0].before)]
    points += [(TITLES[stage.name], stage.after) for stage in stages]
    drawing, axes = figure(7.2, 3.2)
    for offset, name, colour in ((-0.2, "clean", PALETTE[1]), (0.2, "robust", PALETTE[2])):
        shares = [(place, getattr(point, name)) for place, (_, point) in enumerate(points)]
        shown = [(place, share) for place, share in shares if share is not None]
        if shown:
            places, heights = zip(*shown, strict=True)
            bars = axes.bar(
                [place + offset for place in places], [100 * h for h in heights], 0.38, color=colour, label=name
            )
            axes.bar_label(bars, fmt="%.1f", fontsize=8)
    # Long titles stand in lines of their own, and figures above bars stay inside.
    axes.set_xticks(range(len(points)), [title.replace(" ", "\n") for title, _ in points], fontsize=8)
    axes.margins(y=0.12)
    axes.set_ylabel("accuracy, %")
    axes.legend(frameon=False)
    return plot(drawing, "Accuracy on held-out images as given and after every stage, adaptation off.")


def _criticality(rift: RiftReport) -> Picture:
    from edgetta.offline.rift.plot import draw_criticality
    from edgetta.report import plot

    return plot(
        draw_criticality(rift.criticality),
        "How much the robust loss rises at most while a module's weights move by a tenth of their length; grey: not "
        "measured on all images.",
    )


def _interpolation(rift: RiftReport) -> Picture:
    from edgetta.offline.rift.plot import draw_interpolation
    from edgetta.report import plot

    return plot(
        draw_interpolation(rift.interpolations["rift"]),
        "Accuracy on validation images between the trained and the fine-tuned weights.",
    )


def _law(rates: Mapping[str, Any]) -> Picture:
    """The law with its intervals."""
    from edgetta.offline.curvature.plot import figure
    from edgetta.rate_law import RateLaw
    from edgetta.report import PALETTE, plot

    law = RateLaw.from_json(rates["law"])
    sizes = list(law.batch_sizes)
    drawing, axes = figure(6.4, 3.2)
    low, high = zip(*(law.interval(size) for size in sizes), strict=True)
    axes.fill_between(sizes, low, high, color=PALETTE[4], alpha=0.2)
    axes.plot(sizes, [law.rate(size) for size in sizes], marker="o", color=PALETTE[4])
    axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="learning rate")
    return plot(drawing, "The learning rate that each batch size bears, with its interval.")
