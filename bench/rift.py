"""`edgetta bench rift`: what RiFT gains on real images, and what its controls gain, network by network, seed by seed.

A seed decides adversarial training, fine-tuning and attacks. Epochs, alpha and the bound are chosen on training images
kept apart; test images are touched once per variant, at the end. Everything is resumable, stage by stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetta.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from edgetta.offline.attack.evaluation import Images
    from edgetta.offline.rift import RiftReport
    from edgetta.sources.datasets import Images as Arrays


@click.command(epilog="Example: edgetta bench rift --networks adv_resnet4b_at --seeds 0,1,2 --json rift.json")
@click.option("--networks", default="adv_resnet4b_at", show_default=True, help="Comma-separated.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Comma-separated.")
@click.option("--training-images", default=20_000, show_default=True, type=click.IntRange(1000))
@click.option("--validation-images", default=5000, show_default=True, type=click.IntRange(300))
@click.option("--test-images", default=4000, show_default=True, type=click.IntRange(100), help="A multiple of 10.")
@click.option("--epochs", default=10, show_default=True, type=click.IntRange(1), help="Of fine-tuning.")
@click.option("--steps", default=20, show_default=True, type=click.IntRange(1), help="Of PGD, to measure.")
@click.option("--severity", default=3, show_default=True, type=click.IntRange(1, 5), help="Of the 15 corruptions.")
@click.option(
    "--controls",
    default="bn_only,most_critical,last_layer,all_layers,joint",
    show_default=True,
    help="What RiFT is compared with; comma-separated, or nothing.",
)
@click.option(
    "--work", default="build/robust", show_default=True, type=click.Path(path_type=Path), help="Keeps every stage."
)
@click.option("--json", "path", type=click.Path(path_type=Path), help="Result file; what is in it is not redone.")
def command(networks: str, seeds: str, work: Path, path: Path | None, **sizes: Any) -> None:
    """RiFT and its controls: clean, corrupted and robust accuracy, and the bound on what is lost.

    The default takes about 25 minutes on two cores. Networks: adv_resnet4b_at (no BatchNorm), resnet8_at (with
    BatchNorm, four times as long), resnet20_at, and others of `edgetta bench criticality`.
    """
    from edgetta.bench.result_file import rows_to_continue, write_results

    settings = {**sizes, "max_loss": 0.01, "confidence": 0.95, "data": "CIFAR-10 (JPEG-75 copy)"}
    rows = [] if path is None else rows_to_continue(path, settings)
    if not all(seed.strip().isdecimal() for seed in seeds.split(",")):
        raise UsageError(f"--seeds {seeds}: give whole numbers from 0, separated by commas")
    for name in networks.split(","):
        for seed in (int(seed) for seed in seeds.split(",")):
            if any(row["model"] == name and row["seed"] == seed for row in rows):
                continue
            rows += measure(name.strip(), seed, work, sizes)
            if path is not None:
                write_results(path, rows, settings)
    _print(rows)
    if path is not None:
        click.echo(f"wrote {path}")


def measure(name: str, seed: int, work: Path, sizes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of one network and seed."""
    _, report = run(name, seed, work, sizes)
    return [{"seed": seed, "model": name, **asdict(row), "modules": list(row.modules)} for row in report.rows]


def run(name: str, seed: int, work: Path, sizes: Mapping[str, Any]) -> tuple[nn.Module, RiftReport]:
    """One network, trained against attacks and then fine-tuned, and what was found; taken from `work` where it is."""
    from edgetta.bench import robust_networks
    from edgetta.cli.progress import progress_bar
    from edgetta.offline.attack import PGD, Threat
    from edgetta.offline.rift import CriticalityConfig, RiftConfig, fine_tuning, run_rift

    train, validation = robust_networks.training_images(sizes["training_images"], sizes["validation_images"])
    test = robust_networks.test_images(sizes["test_images"])
    folder = work / f"{sizes['training_images']}"
    with progress_bar(f"training {name}", unit="steps") as update:
        model = robust_networks.robust_network(name, seed, train, validation, folder, update)
    config = RiftConfig(
        attack=PGD(Threat("linf", robust_networks.NETWORKS[name].epsilon), sizes["steps"]),
        criticality=CriticalityConfig(seed=seed),
        schedule=fine_tuning(sizes["epochs"], seed),
        controls=tuple(name.strip() for name in sizes["controls"].split(",") if name.strip()),
        seed=seed,
    )
    with progress_bar(f"RiFT, {name}, seed {seed}") as update:
        report = run_rift(
            model,
            train,
            validation,
            robust_networks.tensors(test),
            folder / f"rift-{name}-{seed}",
            config,
            corrupted=_corrupted(test, sizes["severity"]),
            description={"network": name, "severity": sizes["severity"]},
            progress=lambda stage, done, total, note: update(done, total, f"{stage} {note}"),
        )
    return model, report


CORRUPTED_IMAGES = 1000
"""Test images that are corrupted, at most, in each of 15 ways."""


def _corrupted(test: Arrays, severity: int) -> dict[str, Images]:
    from edgetta.bench.robust_networks import tensors
    from edgetta.corruption import CORRUPTIONS, corrupt
    from edgetta.sources.datasets import Images as Arrays

    images, labels = test.images[:CORRUPTED_IMAGES], test.labels[:CORRUPTED_IMAGES]
    return {name: tensors(Arrays(corrupt(images, name, severity), labels, name)) for name in CORRUPTIONS}


def _print(rows: Sequence[dict[str, Any]]) -> None:
    """Means over the seeds; the bound is the highest of them."""
    from edgetta.cli.tables import print_table

    lines = []
    for key in dict.fromkeys((row["model"], row["variant"]) for row in rows):
        some = [row for row in rows if (row["model"], row["variant"]) == key]
        shares = [sum(row[name] for row in some) / len(some) for name in ("clean", "corrupted", "robust")]
        bound = max(row["robust_loss_upper"] for row in some)
        lines.append((*key, len(some), *(f"{100 * share:.2f}" for share in shares), f"{100 * bound:+.2f}"))
    columns = ("network", "variant", "seeds", "clean %", "corrupted %", "robust %", "robust lost, at most")
    print_table(columns, lines, left=("network", "variant"))
