"""What an int8 backbone costs, and how much of it meta-networks repair: `edgetta bench int8`.

The same network in fp32 and in int8, each as a bundle on ONNX Runtime: bare (the backbone alone, BatchNorms folded),
with meta-networks that were warmed up through its own segments (adaptation off), and adapting. Clean error, and error
over a stream of all 15 corruptions; bytes of the bundle and of what a step keeps; seconds as multiples of fp32.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetta.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from edgetta.bundle import Bundle
    from edgetta.sources.labelled import Labelled

NETWORKS = ("resnet20_jpegft", "mobilenet_v1_0.5_160")
PRECISIONS = ("fp32", "int8")
ADAPTATIONS = ("bare", "warm_up_only", "adapted")
_REPETITIONS = 7
_OF_ROWS = ("count", "source", "epochs", "learning_rate")


@dataclass(frozen=True)
class Settings:
    """Everything a row depends on beside its network. The first four stand in every row."""

    count: int  # test images under each corruption
    source: int  # source images that meta-networks are warmed up on
    epochs: int
    learning_rate: float
    batch: int = 64
    severity: int = 5
    parts: int = 4
    seed: int = 0


@click.command(epilog="Example: edgetta bench int8 --model resnet20_jpegft --json int8.json")
@click.option("--model", "models", default=",".join(NETWORKS), show_default=True, help="Networks, comma-separated.")
@click.option("--count", default=500, show_default=True, type=click.IntRange(64), help="Test images per corruption.")
@click.option("--source", default=8000, show_default=True, type=click.IntRange(64), help="Images to warm up on.")
@click.option("--epochs", default=2, show_default=True, type=click.IntRange(1), help="Of the warm-up.")
@click.option("--learning-rate", default=5e-3, show_default=True, help="Of the warm-up.")
@click.option(
    "--json",
    "path",
    type=click.Path(path_type=Path),
    help="Write the results here; networks in it are not redone.",
)
def command(models: str, count: int, source: int, epochs: int, learning_rate: float, path: Path | None) -> None:
    """An int8 backbone beside its fp32 one: error bare, warmed up and adapting, bytes and time.

    Needs the images and weights in the folder that EDGETTA_DATA names. Minutes per network.
    """
    from edgetta.bench.result_file import rows_to_continue, write_results
    from edgetta.cli.progress import progress_bar

    names = [name.strip() for name in models.split(",")]
    for name in names:
        if name not in NETWORKS:
            raise UsageError(f"--model {name!r} is unknown; choose from {', '.join(NETWORKS)}")
    settings = Settings(count, source, epochs, learning_rate)
    shared = {name: value for name, value in asdict(settings).items() if name not in _OF_ROWS}
    rows = rows_to_continue(path, shared) if path is not None else []
    missing = [name for name in names if all(row["model"] != name for row in rows)]
    with progress_bar("int8", len(missing), unit="networks") as update:
        for done, name in enumerate(missing):

            def told(what: str, done: int = done, name: str = name) -> None:
                update(done, note=f"{name}, {what}")

            rows += measure(name, settings, told)
            if path is not None:
                write_results(path, rows, shared)
    _print([row for row in rows if row["model"] in names])
    if path is not None:
        click.echo(f"wrote {path}")


def measure(name: str, settings: Settings, told: Callable[[str], None] = lambda _: None) -> list[dict[str, Any]]:
    """The six rows of one network: fp32 and int8, each bare, warmed up, and adapting."""
    from edgetta.bundle import read_bundle
    from edgetta.corruption import CORRUPTIONS

    source, held_out, test = _data(name, settings)
    with tempfile.TemporaryDirectory() as folder:
        bundles = {}
        for precision in PRECISIONS:
            told(f"warming {precision} up")
            _prepare(name, precision, source, held_out, settings, Path(folder) / precision)
            bundles[precision] = read_bundle(Path(folder) / precision)
        told("timing")
        seconds = _seconds(bundles, settings)
        on_stream, on_clean = _predictors(bundles), _predictors(bundles)
        wrong = dict.fromkeys(on_stream, 0)
        for corruption in CORRUPTIONS:
            told(corruption)
            for images, labels in test.batches(corruption, settings):
                for key, predict in on_stream.items():
                    wrong[key] += int((predict(images).argmax(1) != labels).sum())
        told("clean images")
        clean = dict.fromkeys(on_stream, 0)
        for images, labels in test.batches(None, settings):
            for key, predict in on_clean.items():
                # What has adapted is asked with adaptation off, after the stream.
                answer = on_stream[key].off if key[1] == "adapted" else predict
                clean[key] += int((answer(images).argmax(1) != labels).sum())
        rows = []
        for precision, adaptation in on_stream:
            bundle, kept = bundles[precision], 0
            if adaptation == "adapted":
                kept = bundle.kept_bytes(min(settings.batch, bundle.config.learn_images))
            rows.append(
                {
                    "model": name,
                    "precision": precision,
                    "adaptation": adaptation,
                    "clean_error": 100 * clean[precision, adaptation] / len(test.labels),
                    "error": 100 * wrong[precision, adaptation] / (len(test.labels) * len(CORRUPTIONS)),
                    "kept_bytes": kept,
                    "model_bytes": sum(f.stat().st_size for f in bundle.path.rglob("*") if f.is_file()),
                    "inference_seconds": seconds[precision, "bare"],
                    "step_seconds": seconds[precision, adaptation],
                    **{field: getattr(settings, field) for field in _OF_ROWS},
                }
            )
    return rows


class _Predictor:
    """Logits for images, from one network in one of the three ways; with `every`, every image counts in updates."""

    def __init__(self, bundle: Bundle, adaptation: str, every: bool) -> None:
        from edgetta.runtime import Runtime

        config = replace(bundle.config, entropy_margin=1.0) if every else bundle.config
        when = "always" if adaptation == "adapted" else "off"
        config = replace(config, when=when, batch_norm="source" if adaptation == "bare" else "stream")
        self.runtime = Runtime(bundle, "onnxruntime", config, check=False)

    def __call__(self, images: Tensor) -> Tensor:
        return self.runtime.step(images).logits  # type: ignore[return-value]

    def off(self, images: Tensor) -> Tensor:
        """With what was learnt as it is now."""
        import torch

        result = self.runtime.adapter.predict(self.runtime.as_input(images))
        return torch.from_numpy(result.logits)


def _predictors(bundles: dict[str, Bundle], every: bool = False) -> dict[tuple[str, str], _Predictor]:
    return {(p, a): _Predictor(bundle, a, every) for p, bundle in bundles.items() for a in ADAPTATIONS}


@dataclass(frozen=True, eq=False)
class _Test:
    """Clean test images, and the numbers that they have in their data set."""

    images: np.ndarray  # uint8 (N, H, W, 3)
    labels: np.ndarray  # int64 (N,)
    indices: np.ndarray  # (N,)
    size: int  # side that the network takes

    def batches(self, corruption: str | None, settings: Settings) -> Iterator[tuple[Tensor, Tensor]]:
        import torch

        from edgetta.corruption import corrupt

        images = self.images
        if corruption is not None:
            images = corrupt(images, corruption, settings.severity, seed=settings.seed, indices=self.indices)
        floats = _floats(images, self.size)
        labels = torch.from_numpy(self.labels)
        yield from zip(floats.split(settings.batch), labels.split(settings.batch), strict=True)


def _data(name: str, settings: Settings) -> tuple[Labelled, Labelled, _Test]:
    """Source images to warm up on, some held out, and test images that are neither."""
    import numpy as np
    import torch

    from edgetta.sources.datasets import cifar10_jpeg, imagenet1000
    from edgetta.sources.labelled import Labelled

    order = np.random.default_rng(settings.seed)
    if name == "resnet20_jpegft":
        rows = order.permutation(50_000)[: settings.source + 1000]
        train, first, size = cifar10_jpeg("train", rows), 0, 32
        chosen = order.permutation(10_000)[: settings.count]
        test = cifar10_jpeg("test", chosen)
    else:  # labels from 1 on: class 0 is the background
        rows = order.permutation(1000)
        chosen = np.sort(rows[: min(settings.count, 500)])
        train, test, first, size = imagenet1000(rows[500:]), imagenet1000(chosen), 1, 160
    held = len(train) // 10
    images = (255 * _floats(train.images, size)).round().to(torch.uint8)
    labels = torch.from_numpy(train.labels) + first
    return (
        Labelled(images[held:], labels[held:], None, train.name),
        Labelled(images[:held], labels[:held], None, train.name),
        _Test(test.images, test.labels + first, chosen, size),
    )


def _floats(images: np.ndarray, size: int) -> Tensor:
    """uint8 (N, H, W, 3) as float (N, 3, size, size) in [0, 1]."""
    import torch
    from torch.nn.functional import interpolate

    floats = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255)
    if floats.shape[2] == size:
        return floats.contiguous()
    return interpolate(floats, (size, size), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def _prepare(name: str, precision: str, source: Labelled, held_out: Labelled, settings: Settings, path: Path) -> None:
    """Warm the meta-networks up through the segments of this precision, and write the bundle."""
    from edgetta.adaptation.config import AdaptConfig
    from edgetta.export.bundle_writer import Shipment, write_bundle
    from edgetta.export.preparation import calibration, prepare
    from edgetta.export.recipe import Recipe, derive_recipe
    from edgetta.offline.augment import Augmentation
    from edgetta.offline.warm_up import WarmUpConfig
    from edgetta.sources.datasets import data_folder

    small = name == "resnet20_jpegft"
    weights = data_folder() / "weights" / (f"{name}.npz" if small else f"{name}_quant_dequant.npz")
    model = "resnet20" if small else name
    recipe = Recipe(model, str(weights), parts=settings.parts, adapt="meta", precision=precision)  # type: ignore[arg-type]
    derived = derive_recipe(recipe, calibration=calibration(source))
    plain = Augmentation(jitter=0.0, blur=0.0, grey=0.0, flip=0.5)
    config = WarmUpConfig(
        epochs=settings.epochs,
        batch=settings.batch,
        learning_rate=settings.learning_rate,
        augmentation=plain,
        seed=settings.seed,
    )
    network, _ = prepare(derived, source, held_out, config)
    adaptable = derived.adaptable
    shipment = Shipment(network.programs, adaptable.cuts, adaptable.batch_norm, network.content)
    write_bundle(path, shipment, name=name, config=AdaptConfig())


def _seconds(bundles: dict[str, Bundle], settings: Settings) -> dict[tuple[str, str], float]:
    """Medians of inference, of prediction with adaptation off, and of steps; all kinds in turn, round after round."""
    import torch

    shape = next(iter(bundles.values())).input_shape
    images = torch.rand(settings.batch, *shape, generator=torch.Generator().manual_seed(0))
    runs = _predictors(bundles, every=True)  # a full backward in every step
    samples: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for number in range(_REPETITIONS + 1):
        for key, run in runs.items():
            start = time.perf_counter()
            run(images)
            if number:
                samples[key].append(time.perf_counter() - start)
    return {key: statistics.median(values) for key, values in samples.items()}


def recovered(rows: Sequence[dict[str, Any]], model: str, column: str) -> float | None:
    """Share of what int8 loses that warmed-up meta-networks win back; None where it loses nothing.

    The loss is that of the bare networks; won back is what int8 with meta-networks has less error than bare int8.
    """
    error = {(r["precision"], r["adaptation"]): r[column] for r in rows if r["model"] == model}
    loss = error["int8", "bare"] - error["fp32", "bare"]
    return None if loss <= 0 else float((error["int8", "bare"] - error["int8", "warm_up_only"]) / loss)


def _print(rows: Sequence[dict[str, Any]]) -> None:
    from edgetta.cli.tables import bytes_text, print_line, print_table

    columns = ("model", "backbone", "adaptation", "clean %", "corrupted %", "kept", "bundle", "time")
    base = {row["model"]: row["inference_seconds"] for row in rows if row["precision"] == "fp32"}
    cells = [
        (
            *(row["model"], row["precision"], row["adaptation"]),
            *(f"{row['clean_error']:.2f}", f"{row['error']:.2f}"),
            *(bytes_text(row["kept_bytes"]), bytes_text(row["model_bytes"])),
            f"x{row['step_seconds'] / base[row['model']]:.2f}",
        )
        for row in rows
    ]
    print_table(columns, cells, left=columns[:3])
    for model in dict.fromkeys(row["model"] for row in rows):
        share = recovered(rows, model, "clean_error")
        told = "int8 loses nothing on clean images"
        if share is not None:
            told = f"{100 * share:.0f} % of what int8 loses on clean images is won back"
        print_line(f"{model}: {told}; time is that of a batch, 1 for plain inference in fp32")
