"""What each way to keep a step's tensors costs on a real stream: `edgetta bench storage`.

ResNet-20 meets CIFAR-10 (JPEG-75 copy) under fifteen corruptions, one after another, without a reset. The same stream
is run once per storage; `full` is what the others are compared with. Beside the error stand the bytes kept for one
backward, and how far the gradients are from those of `full`, from the same weights, on each corruption's first batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetta.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from edgetta.adaptation.adapter import AdaptConfig
    from edgetta.adaptation.model import AdaptableModel
    from edgetta.adaptation.network import AdaptiveNetwork
    from edgetta.adaptation.step_memory import StepMemory

BASE = "full"
SOURCE_IMAGES = 512  # training images for the source statistics of the meta-networks


@dataclass(frozen=True)
class Settings:
    """What decides the figures; the result file holds it."""

    weights: str = "resnet20_jpegft"
    parts: int = 4
    count: int = 256  # images under each corruption
    batch: int = 64
    slice: int = 8
    severity: int = 5


@click.command(epilog="Example: edgetta bench storage --count 256 --seeds 0,1,2 --json storage.json")
@click.option("--storage", "storages", help="Storages beside full, comma-separated; default all.")
@click.option("--count", default=256, show_default=True, type=click.IntRange(1), help="Images under each corruption.")
@click.option("--batch", default=64, show_default=True, type=click.IntRange(2), help="Images per step.")
@click.option("--slice", default=8, show_default=True, type=click.IntRange(0), help="Images per slice of a backward.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Which images, in which order; comma-separated.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the result file here; continues one.")
def command(storages: str | None, count: int, batch: int, slice: int, seeds: str, path: Path | None) -> None:
    """Error of an adapting stream, gradient error and kept bytes, per storage.

    Needs the images and weights that EDGETTA_DATA names. With --json, what was written is not measured again.
    """
    from dataclasses import asdict

    from edgetta.bench.result_file import rows_to_continue, write_results
    from edgetta.cli.progress import progress_bar

    chosen, numbers = _storages(storages), _seeds(seeds)
    settings = Settings(count=count, batch=batch, slice=slice)
    rows = rows_to_continue(path, asdict(settings)) if path is not None else []
    done = {(row["seed"], row["storage"]) for row in rows}
    with progress_bar("streams", len(numbers) * len(chosen), unit="runs") as update:
        for position, seed in enumerate(numbers):
            missing = [name for name in chosen if (seed, name) not in done]
            stream = Stream.of(settings, seed) if missing else None
            for name in missing:
                assert stream is not None
                update(position * len(chosen) + chosen.index(name), note=f"seed {seed}, {name}")
                base = next((row for row in rows if row["seed"] == seed and row["storage"] == BASE), None)
                rows.append(measure(stream, settings, seed, name, base))
                if path is not None:
                    write_results(path, rows, asdict(settings))
    _print([row for row in rows if row["seed"] in numbers and row["storage"] in chosen])
    if path is not None:
        click.echo(f"wrote {path}")


@dataclass(frozen=True, eq=False)
class Stream:
    """A network to adapt, and what it meets."""

    model: AdaptableModel
    start: dict[str, Tensor]  # state of the network that adaptation begins with
    batches: list[tuple[Tensor, Tensor]]  # images in [0, 1] and labels, corruption after corruption
    per_corruption: int  # batches

    @staticmethod
    def of(settings: Settings, seed: int) -> Stream:
        """`settings.count` test images drawn by `seed`, under each corruption in turn."""
        import numpy as np
        import torch

        from edgetta.bench.demo_backbone import as_tensor
        from edgetta.corruption import CORRUPTIONS, corrupt
        from edgetta.export.derive import derive
        from edgetta.models import cuts, load_model
        from edgetta.offline.source_statistics import batches_of, set_source_statistics
        from edgetta.sources.datasets import cifar10_jpeg, cifar10_lossless, data_folder

        loaded = load_model("resnet20", weights=data_folder() / "weights" / f"{settings.weights}.npz")
        model = derive(loaded.module, loaded.input_shape, cuts("resnet20", settings.parts), adapt="meta", kernel=3)
        network = _network(model)
        source = cifar10_lossless("train").subset(np.random.default_rng(seed).permutation(6_000)[:SOURCE_IMAGES])
        set_source_statistics(network, batches_of(as_tensor(source.images), settings.batch), loaded.input_shape)
        rows = np.random.default_rng(seed).permutation(10_000)[: settings.count]
        clean = cifar10_jpeg("test", rows)
        batches: list[tuple[Tensor, Tensor]] = []
        for name in CORRUPTIONS:
            images = as_tensor(corrupt(clean.images, name, settings.severity, seed=seed, indices=rows))
            labels = torch.from_numpy(clean.labels)
            batches += zip(images.split(settings.batch), labels.split(settings.batch), strict=True)
        start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        return Stream(model, start, batches, len(batches) // len(CORRUPTIONS))


def measure(
    stream: Stream, settings: Settings, seed: int, storage: str, base: dict[str, Any] | None
) -> dict[str, Any]:
    """The row of one storage; `base` is that of `full` on the same stream, None for `full` itself."""
    from edgetta.adaptation.adapter import AdaptConfig, Adapter
    from edgetta.adaptation.step_memory import StepMemory
    from edgetta.memory.meter import measure_kept

    memory = StepMemory(storage, 0 if storage == BASE else settings.slice)  # type: ignore[arg-type]
    network = _network(stream.model, memory)
    network.load_state_dict(stream.start)
    kept = measure_kept(network, stream.batches[0][0])
    adapter = Adapter(network, AdaptConfig())
    wrong = seen = 0
    gradient_errors = []
    for number, (images, labels) in enumerate(stream.batches):
        if storage != BASE and number % stream.per_corruption == 0:
            gradient_errors.append(gradient_error(network, images, memory, adapter.config))
        predicted = adapter.step(images).logits.argmax(1)
        wrong += int((predicted != labels).sum())
        seen += len(labels)
    error = 100 * wrong / seen
    error_full = error if base is None else base["error"]
    return {
        "storage": storage,
        "slice": memory.slice,
        "seed": seed,
        "gradient_error": max(gradient_errors, default=0.0),
        "kept_bytes": kept.contract,
        "alive_bytes": kept.alive,
        "error": error,
        "error_full": error_full,
        "difference": error - error_full,
        "updates": adapter.updates,
        "images": seen,
    }


def gradient_error(network: AdaptiveNetwork, images: Tensor, memory: StepMemory, config: AdaptConfig) -> float:
    """Relative L2 distance of all gradients from those of `full`, from the network's weights; leaves it as it was."""
    import torch

    from edgetta.adaptation.objective import filtered_entropy
    from edgetta.adaptation.step_memory import FULL

    parameters = list(network.parameters())
    statistics = network.statistics_snapshot()
    found = []
    for choice in (FULL, memory):
        network.memory = choice
        logits, tape = network.forward(images)
        network.backward(tape, filtered_entropy(logits, config.entropy_margin).gradient, config.regulariser)
        network.restore_statistics(statistics)
        found.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
        for parameter in parameters:
            parameter.grad = None
    return float((found[1] - found[0]).norm() / found[0].norm())


def _network(model: AdaptableModel, memory: StepMemory | None = None) -> AdaptiveNetwork:
    from edgetta.adaptation.model import build
    from edgetta.adaptation.step_memory import FULL
    from edgetta.segments.torch_engine import TorchSegment

    return build(model, lambda _, graphs, mode: TorchSegment(graphs, mode), "exact", "batch", memory=memory or FULL)


def _storages(text: str | None) -> list[str]:
    from edgetta.adaptation.step_memory import STORAGES

    names = [name.strip() for name in text.split(",")] if text is not None else list(STORAGES)
    for name in names:
        if name not in STORAGES:
            raise UsageError(f"--storage {name!r} is unknown; choose from {', '.join(STORAGES)}")
    return list(dict.fromkeys([BASE, *names]))


def _seeds(text: str) -> list[int]:
    numbers = [seed.strip() for seed in text.split(",")]
    if not all(seed.isdecimal() for seed in numbers):
        raise UsageError(f"--seeds {text!r}: give whole numbers from 0, separated by commas")
    return list(dict.fromkeys(map(int, numbers)))


def _print(rows: Sequence[dict[str, Any]]) -> None:
    from edgetta.cli.tables import bytes_text, print_table

    columns = ("storage", "seed", "kept", "alive", "gradient error", "error %", "against full")
    cells = [
        (
            *(row["storage"], row["seed"], bytes_text(row["kept_bytes"]), bytes_text(row["alive_bytes"])),
            *(f"{row['gradient_error']:.1e}", f"{row['error']:.2f}", f"{row['difference']:+.2f}"),
        )
        for row in rows
    ]
    print_table(columns, cells, left=("storage",))
