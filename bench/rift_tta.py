"""`edgetta bench rift-tta`: does a robust network stay robust when it adapts, and does adaptation still pay?

{standard, adversarially trained, RiFT} x {source, BatchNorm statistics, warm-up only, edgetta}: accuracy on clean
images, on the corrupted stream, and under attack. Every method gets whole streams in batches, from its own start.

- static: points against the network without adaptation, as an attacker prepares them who knows the weights that were
  shipped.
- adaptive: the attacker knows every weight at every moment, those that adaptation has moved included, and the batch
  statistics are part of what he differentiates; he changes whole batches. Static points are among his starts.

An adapted network is as robust as the adaptive attack says, and no more.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from edgetta.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgetta.export.recipe import Derived
    from edgetta.offline.attack import PGD
    from edgetta.offline.network import Network

MODELS = ("standard", "adversarial", "rift")
ADAPTATIONS = ("source", "bn", "warm_up", "edgetta")
Batches = Sequence[tuple["Tensor", "Tensor"]]  # images in [0, 1] and labels


@dataclass(frozen=True)
class Settings:
    """Written into the result file: rows of other settings are not continued."""

    network: str
    seed: int
    images: int  # test images, on each stream
    corrupted_images: int  # under each of the 15 corruptions
    severity: int
    batch: int
    warm_up_images: int
    warm_up_epochs: int
    steps: int  # of the attack
    sizes: Mapping[str, Any]  # of `edgetta bench rift`, from which the networks are taken
    data: str = "CIFAR-10 (JPEG-75 copy)"


@click.command(epilog="Example: edgetta bench rift-tta --json rift_tta.json")
@click.option(
    "--network", default="resnet8_at", show_default=True, help="One of `edgetta bench rift`, with BatchNorm."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--images", default=500, show_default=True, type=click.IntRange(20), help="A multiple of 10.")
@click.option("--corrupted-images", default=200, show_default=True, type=click.IntRange(20), help="A multiple of 10.")
@click.option("--severity", default=5, show_default=True, type=click.IntRange(1, 5), help="Of the 15 corruptions.")
@click.option(
    "--batch", default=100, show_default=True, type=click.IntRange(16), help="Images of the stream at a time."
)
@click.option("--warm-up-images", default=5000, show_default=True, type=click.IntRange(64))
@click.option("--warm-up-epochs", default=3, show_default=True, type=click.IntRange(1))
@click.option("--steps", default=20, show_default=True, type=click.IntRange(1), help="Of PGD.")
@click.option("--training-images", default=10_000, show_default=True, type=click.IntRange(1000), help="As bench rift.")
@click.option("--validation-images", default=2000, show_default=True, type=click.IntRange(300), help="As bench rift.")
@click.option("--test-images", default=2000, show_default=True, type=click.IntRange(100), help="As bench rift.")
@click.option("--epochs", default=5, show_default=True, type=click.IntRange(1), help="As bench rift.")
@click.option("--controls", default="bn_only", show_default=True, help="As bench rift.")
@click.option("--rift-severity", default=3, show_default=True, type=click.IntRange(1, 5), help="As bench rift.")
@click.option(
    "--work", default="build/robust", show_default=True, type=click.Path(path_type=Path), help="Keeps every training."
)
@click.option("--json", "path", type=click.Path(path_type=Path), help="Result file; rows in it are not redone.")
def command(work: Path, path: Path | None, **values: Any) -> None:
    """Robust networks that adapt: clean, corrupted and robust accuracy, attacked before and through adaptation.

    Networks are those of `edgetta bench rift`, trained here where --work does not have them: about a quarter of an
    hour on two cores by default.
    """
    from edgetta.bench.baselines.batch_norm_statistics import batch_norms
    from edgetta.bench.result_file import rows_to_continue, write_results
    from edgetta.bench.robust_networks import described

    names = ("training_images", "validation_images", "test_images", "epochs", "controls")
    sizes = {**{name: values.pop(name) for name in names}, "steps": 20, "severity": values.pop("rift_severity")}
    settings = Settings(**values, sizes=sizes)
    batch_norms(described(settings.network).load())
    rows = [] if path is None else rows_to_continue(path, asdict(settings))
    for model in MODELS:
        missing = [
            name for name in ADAPTATIONS if not any((row["model"], row["adaptation"]) == (model, name) for row in rows)
        ]
        if not missing:
            continue
        for row in measure(model, missing, settings, work):
            rows.append(row)
            if path is not None:
                write_results(path, rows, asdict(settings))
    _print(rows)
    if path is not None:
        click.echo(f"wrote {path}")


class Adapted(Protocol):
    """One way to adapt a network."""

    def start(self) -> None:
        """Forget everything learnt."""
        ...

    def step(self, images: Tensor) -> Tensor:
        """Logits (N, classes), predicted before anything is learnt from the batch."""
        ...

    def differentiable(self) -> Callable[[Tensor], Tensor] | None:
        """The network as it is now, through every operation; None where images do not depend on each other."""
        ...


class Fixed:
    """A network that learns nothing: with its statistics of training, or with those of each batch."""

    def __init__(self, network: nn.Module, *, batch_statistics: bool) -> None:
        from edgetta.bench.baselines.batch_norm_statistics import with_batch_statistics

        self.network = with_batch_statistics(network) if batch_statistics else network.eval()
        self._together = batch_statistics

    def start(self) -> None:
        """There is nothing to forget."""

    def step(self, images: Tensor) -> Tensor:
        import torch

        with torch.no_grad():
            logits: Tensor = self.network(images)
        return logits

    def differentiable(self) -> Callable[[Tensor], Tensor] | None:
        return self.network if self._together else None


class Meta:
    """edgetta's network with its meta-networks, adapting or not."""

    def __init__(self, derived: Derived, network: Network, *, adapts: bool) -> None:
        from edgetta.adaptation.config import AdaptConfig
        from edgetta.bench.baselines import EcottaStock
        from edgetta.bench.baselines.ecotta_stock import stock_metas

        config = AdaptConfig(when="always" if adapts else "off", batch_norm="batch")
        self._adapter = network.adapter(config)
        self._twin = EcottaStock(
            derived.model.module, derived.adaptable.cuts, stock_metas(network.programs), constant_statistics=False
        )

    def start(self) -> None:
        self._adapter.state = self._adapter.begin()

    def step(self, images: Tensor) -> Tensor:
        import torch

        return torch.from_numpy(self._adapter.step(images.numpy()).logits)

    def differentiable(self) -> Callable[[Tensor], Tensor] | None:
        self._twin.follow(self._adapter.engine.programs, self._adapter.state.parameters)
        return lambda images: self._twin.forward(images, regulariser=False)[0]


def measure(model: str, adaptations: Sequence[str], settings: Settings, work: Path) -> Iterator[dict[str, Any]]:
    """The rows of one network."""
    from edgetta.bench import robust_networks
    from edgetta.cli.progress import progress_bar
    from edgetta.corruption import CORRUPTIONS, corrupt
    from edgetta.offline.attack import PGD, Threat, adversarial_images, classified_right
    from edgetta.sources.datasets import Images

    network = _network(model, settings, work)
    attack = PGD(Threat("linf", robust_networks.NETWORKS[settings.network].epsilon), settings.steps)
    images, labels = robust_networks.tensors(robust_networks.test_images(settings.images))
    clean = _batches(images, labels, settings.batch)
    few = robust_networks.test_images(settings.corrupted_images)
    corrupted = [
        batch
        for name in CORRUPTIONS
        for batch in _batches(
            *robust_networks.tensors(Images(corrupt(few.images, name, settings.severity), few.labels, name)),
            settings.batch,
        )
    ]
    with progress_bar(f"attacking {model}", unit="images") as update:
        right = classified_right(network, images, labels)
        points = adversarial_images(network, images, labels, attack, only=right, seed=settings.seed, progress=update)
    static = _batches(points, labels, settings.batch)
    with progress_bar(f"warming {model} up", unit="steps") as update:
        ways = _ways(model, network, adaptations, settings, work, update)
    for name, way in ways.items():
        yield {
            "model": model,
            "adaptation": name,
            "clean": stream_accuracy(way, clean),
            "corrupted": stream_accuracy(way, corrupted),
            "robust_static": stream_accuracy(way, static),
            "robust_adaptive": attacked_accuracy(way, clean, static, attack, settings.seed),
        }


def stream_accuracy(way: Adapted, batches: Batches) -> float:
    """Share (0 to 1) of a stream that is classified right, from the method's start."""
    way.start()
    right = sum(int((way.step(images).argmax(1) == labels).sum()) for images, labels in batches)
    return right / sum(len(labels) for _, labels in batches)


def attacked_accuracy(way: Adapted, clean: Batches, static: Batches, attack: PGD, seed: int) -> float:
    """The same where each batch is attacked through the network as it is when the batch comes."""
    from edgetta.bench.batch_attack import batch_attack

    def attacked() -> Iterator[tuple[Tensor, Tensor]]:
        for number, ((images, labels), (points, _)) in enumerate(zip(clean, static, strict=True)):
            network = way.differentiable()
            if network is not None:
                points = batch_attack(network, images, labels, attack, starts=[points], seed=seed * 1_000_003 + number)
            yield points, labels

    way.start()
    right = count = 0
    for points, labels in attacked():
        right += int((way.step(points).argmax(1) == labels).sum())
        count += len(labels)
    return right / count


def _network(model: str, settings: Settings, work: Path) -> nn.Module:
    """One of the three networks, in evaluation mode."""
    from edgetta.bench import rift, robust_networks
    from edgetta.cli.progress import progress_bar

    sizes = settings.sizes
    if model == "rift":
        return rift.run(settings.network, settings.seed, work, sizes)[0].eval()
    train, validation = robust_networks.training_images(sizes["training_images"], sizes["validation_images"])
    make = robust_networks.standard_network if model == "standard" else robust_networks.robust_network
    with progress_bar(f"training {model}", unit="steps") as update:
        folder = work / f"{sizes['training_images']}"
        return make(settings.network, settings.seed, train, validation, folder, update)


def _ways(
    model: str,
    network: nn.Module,
    adaptations: Sequence[str],
    settings: Settings,
    work: Path,
    update: Callable[[int, int, str], None],
) -> dict[str, Adapted]:
    ways: dict[str, Adapted] = {}
    for name in adaptations:
        if name in ("source", "bn"):
            ways[name] = Fixed(copy.deepcopy(network), batch_statistics=name == "bn")
    if {"warm_up", "edgetta"} & set(adaptations):
        derived, warmed = _warmed_up(model, network, settings, work, update)
        for name in ("warm_up", "edgetta"):
            if name in adaptations:
                ways[name] = Meta(derived, warmed, adapts=name == "edgetta")
    return ways


def _warmed_up(
    model: str, network: nn.Module, settings: Settings, work: Path, update: Callable[[int, int, str], None]
) -> tuple[Derived, Network]:
    from edgetta.bench import robust_networks
    from edgetta.export.preparation import prepare
    from edgetta.export.recipe import Recipe, derive_recipe
    from edgetta.models import load_model
    from edgetta.offline.stage_files import StageFiles
    from edgetta.offline.warm_up import WarmUpConfig
    from edgetta.sources.labelled import Labelled

    own = robust_networks.described(settings.network)
    loaded = load_model(own.model, width=own.width)
    loaded.module.load_state_dict(network.state_dict())
    derived = derive_recipe(Recipe(own.model, width=own.width, adapt="meta"), loaded)
    train, validation = robust_networks.training_images(settings.warm_up_images, settings.sizes["validation_images"])
    source, held_out = (Labelled(*pair, None, settings.data) for pair in (train, validation))
    config = WarmUpConfig(settings.warm_up_epochs, seed=settings.seed)
    files = StageFiles(work / f"warm-up-{settings.network}-{settings.seed}-{model}", asdict(settings))
    warmed, _ = prepare(
        derived, source, held_out, config, files, lambda done, total, loss: update(done, total, f"loss {loss:.3f}")
    )
    return derived, warmed


def _batches(images: Tensor, labels: Tensor, batch: int) -> Batches:
    from edgetta.offline.pixels import as_floats

    if len(labels) % batch == 1:
        raise UsageError(f"{len(labels)} images leave one alone in batches of {batch}, and statistics need more")
    return list(zip(as_floats(images).split(batch), labels.split(batch), strict=True))


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    from edgetta.cli.tables import print_table

    names = ("clean", "corrupted", "robust_static", "robust_adaptive")
    print_table(
        ("network", "adaptation", "clean %", "corrupted %", "robust %: static", "adaptive"),
        [(row["model"], row["adaptation"], *(f"{100 * row[name]:.1f}" for name in names)) for row in rows],
        left=("network", "adaptation"),
    )
