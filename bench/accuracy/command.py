"""`edgetta bench accuracy`: the error of every method on streams of corrupted images, side by side."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetta.errors import UsageError

if TYPE_CHECKING:
    from edgetta.bench.accuracy.methods import SourceModel

JPEG_MODEL = "akamaster_resnet20"  # of lossless images; meets their JPEG copies in `jpeg-shift`


@click.command(
    epilog="\b\nExamples:\n"
    "  edgetta bench accuracy --tune --images 500 --json bench/results/tuning.json\n"
    "  edgetta bench accuracy --ablate --images 500 --json bench/results/ablation.json\n"
    "  edgetta bench accuracy --images 500 --tuning bench/results/tuning.json --json bench/results/accuracy.json\n"
    "  edgetta bench accuracy --streams correlated --batches 1,64 --methods source,rotta,edgetta --images 500\n"
    "  edgetta bench accuracy --stream all --images 1000 --batches 64 --json bench/results/camera.json\n"
    "  edgetta bench accuracy --stream still,one-class --methods source,edgetta --images 320 --batches 1 --seeds 0"
)
@click.option("--streams", default="continual", show_default=True, help="By name, comma-separated; or all.")
@click.option("--stream", "orders", metavar="ORDER", help="Orders of frames as a camera shows them, instead; or all.")
@click.option("--methods", default="all", show_default=True, help="By name, comma-separated; or all.")
@click.option("--batches", default="64", show_default=True, help="Images that come at a time, comma-separated.")
@click.option("--images", default=2000, show_default=True, type=click.IntRange(1, 10_000), help="Per corruption.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Which images, in which order; comma-separated.")
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(1), help="Of the stream `recurring`.")
@click.option("--model", default="resnet20_jpegft", show_default=True, help="Weights in the data folder.")
@click.option("--clean", default=500, show_default=True, type=click.IntRange(0), help="Images of the clean error.")
@click.option("--tune", is_flag=True, help="Try every method's settings on the tuning corruptions instead.")
@click.option("--ablate", is_flag=True, help="Change edgetta one thing at a time, on the tuning corruptions.")
@click.option("--estimate", is_flag=True, help="How far edgetta's estimate of its error without labels is from it.")
@click.option("--tuning", type=click.Path(path_type=Path, exists=True), help="What --tune wrote: settings to use.")
@click.option("--corruptions", default="all", show_default=True, help="Of --stream: by name, comma-separated; or all.")
@click.option(
    "--severities", help="Of --stream: comma-separated; default 5 and for some orders 3, photographs 3 and 4."
)
@click.option("--again", is_flag=True, help="Of --stream: measure the chosen methods anew where the file has them.")
@click.option("--cache", type=click.Path(path_type=Path), help="Keeps corrupted images; default: the cache folder.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the result file here; continues one.")
@click.option("--markdown", "markdown_path", type=click.Path(path_type=Path), help="Write the table here, too.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="Write a picture here (.png, .svg).")
@click.option(
    "--minutes",
    metavar="N",
    type=click.FloatRange(0, min_open=True),
    help="Stop after about N minutes, to go on later.",
)
def command(
    streams: str,
    orders: str | None,
    methods: str,
    batches: str,
    images: int,
    seeds: str,
    rounds: int,
    model: str,
    clean: int,
    tune: bool,
    ablate: bool,
    estimate: bool,
    tuning: Path | None,
    corruptions: str,
    severities: str | None,
    again: bool,
    cache: Path | None,
    path: Path | None,
    markdown_path: Path | None,
    plot_path: Path | None,
    minutes: float | None,
) -> None:
    """Error per corruption, clean error afterwards, kept bytes and time, per stream, method, batch size and seed.

    Settings come from --tuning; without it every method has its published ones. Rows that the result file holds are
    not run again, so the same command continues, and another one adds to them. Needs the images and weights that
    EDGETTA_DATA names.

    With --stream every corruption is a stream of its own, whose frames come in that order: iid, runs, sorted,
    one-class, two-classes, still, after-black, after-still, after-one-class, after-noise. edgetta is then the exported
    bundle on the default engine, with default settings. --model takes several, comma-separated.
    """
    from edgetta.bench.accuracy.images import ImageCache, default_cache
    from edgetta.bench.accuracy.methods import METHODS, SourceModel
    from edgetta.bench.accuracy.streams import STREAMS

    sizes, numbers = _numbers("--batches", batches, 1), _numbers("--seeds", seeds, 0)
    store = ImageCache(cache or default_cache())
    end = None if minutes is None else time.monotonic() + 60 * minutes
    if orders is not None:
        _camera(orders, methods, model, sizes, numbers, images, corruptions, severities, store, path, end, again)
        return
    names = _chosen("--methods", methods, tuple(METHODS))

    @functools.cache
    def source(weights: str, **how: Any) -> SourceModel:
        return SourceModel.load(weights, store, **how)

    job: dict[str, Any] = {
        "source": source,
        "cache": store,
        "path": path,
        "end": end,
        "images": images,
        "model": model,
    }
    if tune or ablate:
        if tune:
            _tune(names, sizes, **job)
        if ablate:
            _ablate(sizes, **job)
        return
    if estimate:
        _estimate(_chosen("--streams", streams, STREAMS), sizes, numbers, tuning, **job)
        return
    _run(_chosen("--streams", streams, STREAMS), names, sizes, numbers, rounds, clean, tuning, **job)
    if markdown_path is not None or plot_path is not None:
        _write(path, markdown_path, plot_path)


def _camera(
    orders: str,
    methods: str,
    model: str,
    sizes: list[int],
    seeds: list[int],
    images: int,
    corruptions: str,
    severities: str | None,
    store: Any,
    path: Path | None,
    end: float | None,
    again: bool,
) -> None:
    from edgetta.bench.accuracy.camera_command import run_camera
    from edgetta.bench.accuracy.camera_networks import METHODS
    from edgetta.bench.accuracy.orders import ORDERS
    from edgetta.corruption import CORRUPTIONS

    chosen = _chosen("--stream", orders, ORDERS), _chosen("--methods", methods, METHODS)
    kinds = _chosen("--corruptions", corruptions, CORRUPTIONS)
    levels = [] if severities is None else _numbers("--severities", severities, 1)
    models = model.split(",")
    run_camera(*chosen, models, sizes, seeds, images, kinds, store, path, end, again, severities=levels)


def _tune(
    names: list[str], sizes: list[int], *, source: Any, cache: Any, path: Any, end: Any, images: int, model: str
) -> None:
    from edgetta.bench.accuracy.tuning import trials
    from edgetta.bench.result_file import rows_to_continue, write_results
    from edgetta.cli.progress import progress_bar
    from edgetta.cli.tables import print_table

    settings = {"severity": 5, "split": "train"}
    rows = [] if path is None else rows_to_continue(path, settings)
    with progress_bar("trials", unit="trials") as update:
        for done, total, note in trials(lambda: source(model), cache, rows, names, sizes, images, model):
            update(done, total, note)
            if path is not None:
                write_results(path, rows, settings)
            if end is not None and time.monotonic() > end:
                break
    cells = [(row["method"], row["batch"], f"{row['settings']}", f"{row['error']:.2f}") for row in rows]
    print_table(("method", "batch", "settings", "error %"), cells, left=("method", "settings"))


def _ablate(sizes: list[int], *, source: Any, cache: Any, path: Any, end: Any, images: int, model: str) -> None:
    from edgetta.bench.accuracy.ablation import ablate
    from edgetta.bench.result_file import rows_to_continue, write_results
    from edgetta.cli.progress import progress_bar
    from edgetta.cli.tables import bytes_text, print_table

    settings = {"severity": 5, "split": "train", "ablation": True}
    rows = [] if path is None else rows_to_continue(path, settings)
    with progress_bar("ablation", unit="runs") as update:
        for batch in sizes:
            for done, total, note in ablate(source, cache, rows, images, batch, model):
                update(done, total, note)
                if path is not None:
                    write_results(path, rows, settings)
                if end is not None and time.monotonic() > end:
                    break
    cells = [(row["variant"], row["batch"], f"{row['error']:.2f}", bytes_text(row["kept_bytes"])) for row in rows]
    print_table(("variant", "batch", "error %", "kept"), cells, left=("variant",))


def _estimate(
    streams: list[str],
    sizes: list[int],
    seeds: list[int],
    tuning: Path | None,
    *,
    source: Any,
    cache: Any,
    path: Path | None,
    end: float | None,
    images: int,
    model: str,
) -> None:
    from edgetta.bench.accuracy.estimate import estimate
    from edgetta.bench.accuracy.streams import StreamSpec
    from edgetta.bench.accuracy.tuning import chosen
    from edgetta.bench.result_file import rows_to_continue, write_results
    from edgetta.cli.progress import progress_bar
    from edgetta.cli.tables import print_table

    tried = _trials(tuning) if tuning is not None else []
    settings = {"severity": 5, "tuned": tuning is not None}
    rows = [] if path is None else rows_to_continue(path, settings)
    planned = [(stream, size, seed) for stream in streams for size in sizes for seed in seeds]
    with progress_bar("estimates", len(planned), unit="runs") as update:
        for position, (stream, size, seed) in enumerate(planned):
            weights = _weights(stream, model)
            update(position, note=f"{stream}, batch {size}, seed {seed}")
            key = {"stream": stream, "model": weights, "batch": size, "images": images, "seed": seed}
            if any(all(row[field] == value for field, value in key.items()) for row in rows):
                continue
            if end is not None and time.monotonic() > end:
                break
            picked = dict(chosen(tried, "edgetta", size, weights))
            rows.append(estimate(source(weights), StreamSpec(stream, images, size, seed), cache, picked))
            if path is not None:
                write_results(path, rows, settings)
    names = ("stream", "model", "batch", "images", "seed", "error", "estimated_error", "mean_absolute_error")
    cells = [tuple(str(row[name]) for name in names) for row in rows]
    print_table(tuple(name.replace("_", " ") for name in names), cells, left=("stream", "model"))


def _run(
    streams: list[str],
    names: list[str],
    sizes: list[int],
    seeds: list[int],
    rounds: int,
    clean: int,
    tuning: Path | None,
    *,
    source: Any,
    cache: Any,
    path: Path | None,
    end: float | None,
    images: int,
    model: str,
) -> None:
    from edgetta.bench.accuracy.methods import make
    from edgetta.bench.accuracy.score import score
    from edgetta.bench.accuracy.streams import StreamSpec
    from edgetta.bench.accuracy.summary import table, with_gaps
    from edgetta.bench.accuracy.tuning import chosen
    from edgetta.bench.result_file import rows_to_continue, write_results
    from edgetta.cli.progress import progress_bar
    from edgetta.cli.tables import print_table

    tried = _trials(tuning) if tuning is not None else []
    settings = {"severity": 5, "clean": clean, "tuned": tuning is not None}
    rows = [] if path is None else rows_to_continue(path, settings)
    planned = [(s, b, seed, n) for seed in seeds for s in streams for b in sizes for n in names]
    with progress_bar("streams", len(planned), unit="runs") as update:
        for position, (stream, batch, seed, name) in enumerate(planned):
            weights = _weights(stream, model)
            update(position, note=f"{stream}, batch {batch}, seed {seed}, {name}")
            picked = dict(chosen(tried, name, batch, weights))
            key = {"stream": stream, "method": name, "model": weights, "batch": batch, "images": images, "seed": seed}
            key |= {"settings": picked}
            if any(all(row.get(field) == value for field, value in key.items()) for row in rows):
                continue
            if end is not None and time.monotonic() > end:
                break
            spec = StreamSpec(stream, images, batch, seed, rounds=rounds)
            found = score(make(name, source(weights), picked, seed), spec, cache, clean)
            rows = with_gaps([*rows, key | found.row()])
            if path is not None:
                write_results(path, rows, settings)
    wanted = [row for row in rows if row["stream"] in streams and row["batch"] in sizes and row["images"] == images]
    print_table(*table(wanted), left=("stream", "method"))


def _weights(stream: str, model: str) -> str:
    """The network that meets a stream."""
    return JPEG_MODEL if stream == "jpeg-shift" else model


def _write(path: Path | None, markdown_path: Path | None, plot_path: Path | None) -> None:
    import json

    from edgetta.bench.accuracy.plot import plot
    from edgetta.bench.accuracy.summary import markdown
    from edgetta.storage import atomic_write_text

    if path is None:
        raise UsageError("--markdown and --plot show what --json wrote; name that file, too")
    rows = json.loads(path.read_text())["rows"]
    if markdown_path is not None:
        atomic_write_text(markdown_path, markdown(rows))
    if plot_path is not None:
        plot(rows, plot_path)


def _chosen(option: str, text: str, known: tuple[str, ...]) -> list[str]:
    names = list(known) if text == "all" else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise UsageError(f"{option} {name!r} is unknown; choose from {', '.join(known)}")
    return list(dict.fromkeys(names))


def _numbers(option: str, text: str, least: int) -> list[int]:
    numbers = [number.strip() for number in text.split(",")]
    if not all(number.isdecimal() and int(number) >= least for number in numbers):
        raise UsageError(f"{option} {text!r}: give whole numbers from {least}, separated by commas")
    return list(dict.fromkeys(map(int, numbers)))


def _trials(path: Path) -> list[dict[str, Any]]:
    """The rows that --tune wrote. Raises `UsageError` for a file that is none of its."""
    try:
        rows = json.loads(path.read_text())["rows"]
        return [dict(row) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--tuning {path} is not what `--tune` wrote; give its file, or write it anew") from error
