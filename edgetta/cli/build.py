"""`edgetta build`: make a bundle's TensorRT engines on the device that will run them, and test each."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetta.cli.settings import config_option
from edgetta.errors import UsageError

if TYPE_CHECKING:
    from edgetta.adaptation.model import Gradient
    from edgetta.bundle import SelfTest
    from edgetta.bundle.tensorrt_engines import BundleEngines, Prepared, TensorRTConfig

EXAMPLES = """\b
Examples:
  edgetta build bundle/ --precision fp16
  edgetta build bundle/ --batch 1,32,64 --workspace 256MiB     (a board with little memory)
  edgetta build bundle/ --level 1                              (quicker to build, slower to run)
  edgetta run bundle/ camera:0 --engine tensorrt               (afterwards)
"""


@click.command(epilog=EXAMPLES)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="fp16 computes convolutions in float16: faster, half the weights. An engine that then computes wrongly is "
    "made in float32 instead.",
)
@click.option(
    "--batch",
    metavar="MIN,OPT,MAX",
    help="Images per step: smallest, the number to be fastest at, largest. Default from 1 to the bundle's window.",
)
@click.option(
    "--gradient",
    type=click.Choice(["auto", "exact", "recompute"]),
    default="auto",
    show_default=True,
    help="Gradient mode whose engines are made; others are made when they are first used.",
)
@click.option(
    "--workspace",
    metavar="SIZE",
    help="Memory that TensorRT may use to try kernels, e.g. 256MiB. Default a quarter of what is free, 1 GiB at most.",
)
@click.option(
    "--level",
    metavar="0..5",
    type=click.IntRange(0, 5),
    default=3,
    show_default=True,
    help="How long TensorRT searches for fast kernels; below 3 it builds much faster.",
)
@click.option(
    "--aux-streams",
    metavar="N",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="CUDA streams beside the main one, within an engine: more memory, sometimes faster.",
)
@click.option("--tf32", is_flag=True, help="Let float32 run on tensor cores, with 10 bits of mantissa (from Orin on).")
@click.option("--cuda-graphs", is_flag=True, help="Replay engines as CUDA graphs: fewer launches, more memory.")
@click.option(
    "--cache",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where engines are kept; default edgetta/engines in the user's cache folder.",
)
@click.option("--json", "json_file", metavar="FILE", type=click.Path(path_type=Path), help="Write the table as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no table; errors and warnings are still shown.")
@config_option
def command(**values: Any) -> None:
    """Make BUNDLE's TensorRT engines on this machine, and test each against the golden images.

    Engines run with the TensorRT and on the GPU that they were built with, so they are not part of the bundle: they
    are kept in a cache and found again by everything that they depend on. `edgetta run` then uses them, with the
    settings given here; with --cache, give it the same folder.

    The exit code is 3 where TensorRT or a GPU is missing.
    """
    from edgetta.bundle import read_bundle, self_test
    from edgetta.bundle.tensorrt_engines import BundleEngines
    from edgetta.cli.tables import print_line
    from edgetta.storage import atomic_write_json

    config = config_from(values)
    opened = read_bundle(values["bundle"])
    tell = partial(print_line, style="yellow", stderr=True)
    engines = BundleEngines(opened, config, values["cache"], tell)
    prepared = _prepare(engines, values["gradient"], not values["quiet"])
    tested = self_test(opened, engines.engine(), gradients=values["gradient"] != "recompute")
    engines.remember(values["gradient"])
    if values["json_file"] is not None:
        atomic_write_json(values["json_file"], {"engines": [row(p) for p in prepared]})
    if not values["quiet"]:
        _show(values["bundle"], engines, prepared, tested)


def config_from(values: dict[str, Any]) -> TensorRTConfig:
    """The settings that the options say. Raises `UsageError` for numbers that cannot be."""
    from edgetta.bundle.tensorrt_engines import TensorRTConfig
    from edgetta.memory.sizes import parse_size

    batch = None
    if values["batch"] is not None:
        words = str(values["batch"]).split(",")
        if len(words) != 3 or not all(word.strip().isdecimal() for word in words):
            raise UsageError(f"--batch takes three numbers MIN,OPT,MAX, such as 1,32,64, not {values['batch']!r}")
        batch = (int(words[0]), int(words[1]), int(words[2]))
    return TensorRTConfig(
        precision=values["precision"],
        batch=batch,
        workspace=None if values["workspace"] is None else parse_size(values["workspace"]),
        level=values["level"],
        aux_streams=values["aux_streams"],
        tf32=values["tf32"],
        cuda_graphs=values["cuda_graphs"],
    )


def row(prepared: Prepared) -> dict[str, Any]:
    """One engine as JSON-compatible data."""
    return {
        "engine": prepared.job.title,
        "precision": prepared.options.precision,
        "cached": prepared.cached,
        "seconds": prepared.seconds,
        "engine_bytes": prepared.bytes,
        "peak_bytes": prepared.peak,
        "errors": dict(prepared.errors),
        "note": prepared.note,
    }


def _prepare(engines: BundleEngines, gradient: Gradient, show: bool) -> list[Prepared]:
    """Each engine in turn, and no more than one in memory; the bar counts operators, which is what takes time."""
    from edgetta.cli.progress import progress_bar

    jobs = engines.jobs(gradient)
    sizes = [len(job.graph.nodes) for job in jobs]
    prepared = []
    with progress_bar("building", sum(sizes), unit="operators", show=show) as update:
        for i, job in enumerate(jobs):
            before, note = sum(sizes[:i]), f"{job.title} ({i + 1} of {len(jobs)})"
            update(before, note=note)
            found = engines.prepare(
                job,
                lambda share, b=before, n=note, s=sizes[i]: update(b + int(share * s), note=n),  # type: ignore[misc]
            )
            prepared.append(found.without_program())
    return prepared


def _show(path: Path, engines: BundleEngines, prepared: list[Prepared], tested: SelfTest) -> None:
    import shlex

    from edgetta.cli.tables import print_facts, print_line, print_table, seconds_text
    from edgetta.memory.sizes import size_text

    target, options = engines.target, engines.options
    capability = ".".join(map(str, target.capability))
    name = "TensorRT" if target.package == "tensorrt" else "TensorRT-RTX"
    print_facts(
        [
            ("for", f"{name} {target.version} on {target.gpu} (compute capability {capability})"),
            ("batches", f"{options.batch[0]} to {options.batch[2]} images, fastest at {options.batch[1]}"),
            ("cache", str(engines.cache.folder)),
        ]
    )
    print_table(
        ("engine", "precision", "", "built in", "size", "peak memory", "largest error"),
        [
            (
                p.job.title,
                p.options.precision,
                "from the cache" if p.cached else "built",
                seconds_text(p.seconds),
                size_text(p.bytes),
                size_text(p.peak) if p.peak else "unknown",
                f"{max(p.errors.values(), default=0.0):.1e}",
            )
            for p in prepared
        ],
        left=("engine", "precision", ""),
    )
    hits = sum(p.cached for p in prepared)
    seconds = seconds_text(sum(p.seconds for p in prepared if not p.cached))
    total = size_text(sum(p.bytes for p in prepared))
    print_line(f"{len(prepared)} engines, {total}: {hits} from the cache, {len(prepared) - hits} built in {seconds}.")
    for p in prepared:
        if p.options.precision != options.precision:
            print_line(f"{p.job.title} runs in {p.options.precision}: {p.note}", style="yellow")
    errors = f"logits within {max(tested.logits_error, tested.mixed_error):.1e}"
    if tested.gradient_errors:
        errors += f", gradients within {tested.gradient_error:.1e}"
    print_line(f"self-test of the whole network: passed ({errors}).", style="green")
    print_line(f"next: edgetta run {shlex.quote(str(path))} SOURCE --engine tensorrt", style="green")
