"""`edgetta bench criticality`: our measurement of module robust criticality beside the published one.

For each network: the published schedule twice, with two seeds (of the attack's random start and of the order of the
batches), and ours with the first. Both see the same adversarial images. Agreement is Spearman's rank correlation over
the modules; what the published algorithm agrees with itself is the measure. Time is that of the process's processor,
the mean of the published schedule's two runs and the median of three of ours.

Criticality is a maximum, so of two rises found on the same images the higher one is nearer to it. For our finalists
both are in the result file, ours first; the module with the lowest of the higher ones is the least critical, as far as
either schedule knows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import click

REPETITIONS = 3
"""Runs of our schedule, for its time."""


@click.command(epilog="Example: edgetta bench criticality --networks adv_resnet4b --json criticality.json")
@click.option(
    "--networks",
    default="adv_resnet2b,adv_resnet4b,resnet18_narrow_at,wrn40_2_narrow_at",
    show_default=True,
    help="Comma-separated.",
)
@click.option("--images", default=1000, show_default=True, type=click.IntRange(100), help="Adversarial images.")
@click.option(
    "--training-images",
    default=10_000,
    show_default=True,
    type=click.IntRange(1000),
    help="For networks to be trained.",
)
@click.option(
    "--work", default="build/robust", show_default=True, type=click.Path(path_type=Path), help="Keeps the trainings."
)
@click.option("--json", "path", type=click.Path(path_type=Path), help="Result file; networks in it are not redone.")
def command(networks: str, images: int, training_images: int, work: Path, path: Path | None) -> None:
    """Module robust criticality: ours against the published algorithm, and that against itself.

    Networks named _at are trained against attacks first (minutes each, kept in --work).
    """
    from edgetta.bench.result_file import rows_to_continue, write_results

    settings = {"images": images, "training_images": training_images, "attack": "PGD-10", "epsilon": 0.1}
    rows = [] if path is None else rows_to_continue(path, settings)
    names = [name.strip() for name in networks.split(",")]
    for name in names:
        if any(row["model"] == name for row in rows):
            continue
        rows.append(measure(name, images, training_images, work / f"{training_images}"))
        if path is not None:
            write_results(path, rows, settings)
    _print([row for row in rows if row["model"] in names])
    if path is not None:
        click.echo(f"wrote {path}")


def measure(name: str, images: int, training_images: int, work: Path) -> dict[str, Any]:
    """One row of the result file."""
    from scipy.stats import spearmanr

    from edgetta.bench import robust_networks
    from edgetta.cli.progress import progress_bar
    from edgetta.offline.attack import PGD, Threat
    from edgetta.offline.rift import AdversarialSet, CriticalityConfig, measure_criticality, weight_groups

    train, validation = robust_networks.training_images(training_images, 1000)
    with progress_bar(f"training {name}", unit="steps") as update:
        model = robust_networks.robust_network(name, 0, train, validation, work, update)
    groups = weight_groups(model)
    attack = PGD(Threat("linf", robust_networks.NETWORKS[name].epsilon), 10)
    order = [group.name for group in groups]
    published: list[dict[str, int]] = []
    rises: dict[str, dict[str, float]] = {"published": {}, "fast": {}}
    seconds: dict[str, list[float]] = {"published": [], "fast": []}
    chosen: dict[str, list[str]] = {"published": [], "fast": []}
    found: dict[str, int] = {}
    for seed in (0, 1):
        data = AdversarialSet.make(model, train[0][:images], train[1][:images], attack, seed=seed)
        for schedule in ("published", *["fast"] * REPETITIONS) if seed == 0 else ("published",):
            begun = time.process_time()
            with progress_bar(f"{name}, {schedule}", unit="modules") as update:
                criticality = measure_criticality(
                    model,
                    groups,
                    data,
                    CriticalityConfig(schedule, seed=seed),  # type: ignore[arg-type]
                    progress=update,
                )
            seconds[schedule].append(time.process_time() - begun)
            chosen[schedule].append(criticality.least.name)
            places = {score.name: place for place, score in enumerate(criticality.scores)}
            if seed == 0:
                rises[schedule] = {score.name: score.rise for score in criticality.scores if score.final}
            if schedule == "published":
                published.append(places)
            else:
                found = places
    first, second, ours = ([places[module] for module in order] for places in (*published, found))
    finalists = {name: [rise, rises["published"][name]] for name, rise in rises["fast"].items()}
    return {
        "model": name,
        "modules": len(order),
        "robust_accuracy": float(data.right.float().mean()),
        "rank_correlation": float(spearmanr(ours, first).statistic),
        "self_rank_correlation": float(spearmanr(first, second).statistic),
        "same_choice": chosen["fast"][0] == chosen["published"][0],
        "self_same_choice": chosen["published"][0] == chosen["published"][1],
        "choice": chosen["fast"][0],
        "published_choice": chosen["published"][0],
        "finalists": finalists,
        "published_seconds": fmean(seconds["published"]),
        "fast_seconds": median(seconds["fast"]),
        "speedup": fmean(seconds["published"]) / median(seconds["fast"]),
    }


def least_by_both(row: dict[str, Any]) -> str:
    """The finalist whose higher rise of the two schedules is the lowest."""
    rises: dict[str, list[float]] = row["finalists"]
    return min(rises, key=lambda name: max(rises[name]))


def _print(rows: Sequence[dict[str, Any]]) -> None:
    from edgetta.cli.tables import print_table

    print_table(
        (
            "network",
            "modules",
            "rank correlation",
            "published with itself",
            "same choice",
            "least by both",
            "published",
            "ours",
            "times",
        ),
        [
            (
                row["model"],
                row["modules"],
                f"{row['rank_correlation']:.3f}",
                f"{row['self_rank_correlation']:.3f}",
                "yes" if row["same_choice"] else "no",
                least_by_both(row),
                f"{row['published_seconds']:.1f} s",
                f"{row['fast_seconds']:.1f} s",
                f"{row['speedup']:.1f}",
            )
            for row in rows
        ],
        left=("network", "least by both"),
    )
