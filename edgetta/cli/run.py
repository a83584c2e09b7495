"""`edgetta run`: predict on a stream of frames, adapt to it, write predictions and state, and say what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetta.cli.adaptation_options import adapt_config, adaptation_options
from edgetta.cli.help_tiers import two_tiers
from edgetta.cli.settings import config_option
from edgetta.errors import EdgettaError, UsageError
from edgetta.printable import printable
from edgetta.segments.engine_names import ENGINES

if TYPE_CHECKING:
    from edgetta.adaptation.step_plan import StepPlan
    from edgetta.cli.run_report import RunReport
    from edgetta.patient_rows import PatientWriter
    from edgetta.predictions import PredictionWriter
    from edgetta.runtime import Runtime
    from edgetta.sources import Frame, Source
    from edgetta.state_files import StateFile
    from edgetta.stream import BatchReport, Summary

STORED_BATCH = 64
"""Frames per step where all frames are there already; frames of a live source are predicted one by one."""

EXAMPLES = """\b
Examples:
  edgetta run bundle/ photos/ -o predictions.csv
  edgetta run bundle/ camera:0 --state learnt.safetensors --append -o rows.jsonl
  edgetta run bundle/ frames.npz --state learnt.safetensors --resume -o rows.jsonl
  edgetta run bundle/ frames.npz --batch 32 --learning-rate 0.0005
  edgetta run bundle/ clip.mp4 -o - | head
  edgetta run bundle/ camera:0 --budget 256MiB      (planned, measured and kept)
  edgetta run bundle/ photos/ --when off            (only predict)
"""


@click.command(
    cls=two_tiers(
        *(
            "output",
            "batch",
            "engine",
            "budget",
            "when",
            "state",
            "limit",
            "threads",
            "json_file",
            "overwrite",
            "quiet",
        )
    ),
    epilog=EXAMPLES,
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("source")
@click.option(
    "-o", "--output", metavar="FILE", help="Write predictions to FILE.jsonl or FILE.csv, or to standard output (-)."
)
@click.option(
    "--batch",
    metavar="N",
    type=click.IntRange(1),
    help=f"Frames per step; default {STORED_BATCH} for stored frames, 1 for a camera or another live source.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", *ENGINES]),
    default="auto",
    show_default=True,
    help="What runs the frozen parts. auto: TensorRT after `edgetta build`, a GPU, ONNX Runtime, torch.",
)
@click.option(
    "--cache",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where `edgetta build --cache` put the TensorRT engines.",
)
@click.option(
    "--recompute",
    is_flag=True,
    help="Keep nothing for the backward, which then runs the forward again: least memory, the same gradients.",
)
@click.option(
    "--slice",
    metavar="IMAGES",
    type=click.IntRange(0),
    help="Images that forward and backward of an update take at a time: a lower peak. 0, the default: all.",
)
@click.option(
    "--budget",
    metavar="SIZE",
    help="Memory that steps may take above the loaded model: 256MiB, 1.5GB, ... What is left open is planned for it, "
    "as by `edgetta plan`, and kept while the stream runs: larger batches are split, and where another program takes "
    "the memory, steps get smaller until there is room again.",
)
@adaptation_options
@click.option(
    "--state",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Continue from what was learnt, where FILE exists; save there while the stream runs and whatever ends it. "
    "FILE.1 and FILE.2 are the two saves before.",
)
@click.option(
    "--save-seconds",
    metavar="SECONDS",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    help="Save the state so often, where something was learnt.",
)
@click.option("--save-every", metavar="N", type=click.IntRange(1), help="Save the state every N batches, too.")
@click.option(
    "--give-up",
    metavar="SECONDS",
    type=click.FloatRange(0, min_open=True),
    default=300.0,
    show_default=True,
    help="End with exit code 75 where a live source delivers nothing for so long; it is connected to again meanwhile.",
)
@click.option("--limit", metavar="N", type=click.IntRange(1), help="End after N frames.")
@click.option(
    "--resize/--no-resize",
    default=True,
    help="Resize frames as the bundle says (the default), or refuse those of another size.",
)
@click.option(
    "--threads", metavar="N", type=click.IntRange(0), default=0, help="Processor threads; 0 leaves it as is."
)
@click.option(
    "--json", "json_file", metavar="FILE", type=click.Path(path_type=Path), help="Write the summary as JSON."
)
@click.option(
    "--require-signature",
    metavar="KEY",
    type=click.Path(path_type=Path),
    help="Run the bundle only where the owner of this public key signed it (`edgetta sign`).",
)
@click.option("--overwrite", is_flag=True, help="Replace a file of predictions that exists.")
@click.option("--append", is_flag=True, help="Go on behind the rows of a file of predictions that exists.")
@click.option(
    "--resume",
    is_flag=True,
    help="As --append, and take stored frames up again behind the last one that has a row.",
)
@click.option("-q", "--quiet", is_flag=True, help="No live line and no summary; errors are still shown.")
@config_option
def command(**values: Any) -> None:
    """Predict on a stream and adapt to it.

    BUNDLE is what `edgetta export` wrote. SOURCE is a folder of images, a pattern ("frames/*.png"), an image, an .npy
    or .npz array (FILE.npz:KEY picks one), a video file, camera:0, a network stream (rtsp://...) or a GStreamer
    pipeline that ends in appsink. @FILE is the first line of a file that only you read, for a password.

    Every frame is predicted first and learnt from afterwards. Frames that cannot be used are skipped, counted and
    named. Adaptation settings that are not given come from the bundle.

    The exit code is 0 at the end of the source, which a live one never comes to: 75 where it stays away. It is 130
    after Ctrl-C and 143 after SIGTERM. Rows and state are whole then, as after every end that a program can see.
    """
    # What can fail cheaply comes first, what replaces a file last.
    from edgetta.bundle import read_bundle
    from edgetta.cli.tables import print_facts, print_line
    from edgetta.cli.verify import verifier
    from edgetta.memory.allocator import keep_freed_memory
    from edgetta.patient_rows import PatientWriter
    from edgetta.predictions import open_writer
    from edgetta.process_lock import process_lock
    from edgetta.runtime import Runtime
    from edgetta.sources import open_source
    from edgetta.sources.secret import public_name, read_source
    from edgetta.state_files import StateFile

    _check_paths(values)
    bundle = read_bundle(values["bundle"], verifier(values["require_signature"]))
    config = adapt_config(bundle.config, values)
    size = bundle.resize
    state = None if values["state"] is None else StateFile(values["state"])
    with ExitStack() as stack:
        if state is not None:
            stack.enter_context(state.lock())
            state.tidy()
        if values["output"] not in (None, "-"):
            output = Path(values["output"]).absolute()
            if output.is_file() or not output.exists():  # a device or a pipe has no place for a lock beside it
                stack.enter_context(process_lock(output, "the file of predictions"))
        spec = read_source(values["source"])
        if "://" in spec and " ! " not in spec and not values["quiet"]:
            print_line(f"connecting to {public_name(spec)}", stderr=True)
        source = stack.enter_context(open_source(spec, size=size, resize=values["resize"]))
        batch = values["batch"] or (1 if source.length is None else STORED_BATCH)
        if values["budget"] is None:
            keep_freed_memory()
        runtime = Runtime(
            bundle,
            values["engine"],
            config,
            threads=values["threads"],
            memory=_memory(values),
            engine_cache=values["cache"],
            budget=values["budget"],
            batch=batch,
        )
        if runtime.plan is not None and not values["quiet"]:
            print_facts([("planned", runtime.plan.told())], stderr=True)
        if state is not None:
            found = state.load(runtime.restore)
            for line in found.told:
                _say(line)
            if found.path is not None and not values["quiet"]:
                print_line(f"continuing from {found.path}, after {runtime.adapter.state.steps:,} batches", stderr=True)
        writer: PredictionWriter | PatientWriter | None = None
        if values["output"] is not None:
            going_on = values["append"] or values["resume"]
            writer = open_writer(values["output"], overwrite=values["overwrite"], append=going_on)
            if source.length is None and values["output"] != "-":
                writer = PatientWriter(writer, _say)
            stack.enter_context(writer)
        if not values["quiet"]:
            print_line(f"{bundle.name} <- {source.description}", stderr=True)
        _stream(runtime, source, writer, batch, state, values)


def _memory(values: dict[str, Any]) -> StepPlan | None:
    """What a step uses of memory, as asked; None where nothing was."""
    from edgetta.adaptation.step_plan import StepPlan

    if values["slice"] is None and not values["recompute"]:
        return None
    return StepPlan(keep=not values["recompute"], slice=values["slice"] or 0)


def _stream(
    runtime: Runtime,
    source: Source,
    writer: PredictionWriter | PatientWriter | None,
    batch: int,
    state: StateFile | None,
    values: dict[str, Any],
) -> None:
    """Run the stream; whatever ends it, save the state and report. What ended it is raised again afterwards.

    This is the one place where a run ends: signals, errors of ours and of others, a reader that has gone.
    """
    from edgetta.cli.run_report import RunReport
    from edgetta.interruption import held
    from edgetta.service_notice import ServiceNotice
    from edgetta.sources.live import LiveFrames
    from edgetta.state_files import Saver
    from edgetta.stream import Summary, run_stream

    summary = Summary()
    ended: BaseException | None = None
    notice = ServiceNotice()
    saver = None
    if state is not None:
        saver = Saver(
            state, runtime.contents, learnt=lambda: runtime.learnt, seconds=values["save_seconds"], tell=_say
        )
    try:
        with _watching(source, values) as watch:
            if isinstance(source, LiveFrames):
                source.waiting, source.connection.tell = notice.alive, _say
                source.connection.give_up = values["give_up"]
            notice.ready()

            def on_batch(report: BatchReport) -> None:
                notice.alive()
                watch(report)
                if saver is not None:
                    every = values["save_every"]
                    saver.when_due(early=bool(every) and report.summary.steps % every == 0)

            check_labels(source.labels, runtime.bundle.class_count, values["source"])
            run_stream(
                runtime,
                source,
                batch=batch,
                writer=writer,
                on_batch=on_batch,
                limit=values["limit"],
                label_of=folder_labels(values["source"], runtime.bundle.classes),
                summary=summary,
                resume=values["resume"],
            )
    except BaseException as error:
        ended = error
    with held():
        if saver is not None and summary.steps:
            ended = _after(ended, lambda: saver.save(always=True))
        report = RunReport(runtime, source, summary, batch, ended, not values["batch"], saver)
        ended = _after(ended, lambda: _show(report, values))
    if ended is not None:
        raise ended
    if summary.frames == 0 and not summary.resumed:
        # Its name, not what was typed: that may hold a password.
        raise _nothing_usable(getattr(source, "name", source.description), summary)


def _after(ended: BaseException | None, finish: Callable[[], None]) -> BaseException | None:
    """Do what must be done however the stream ended; returns what the command ends with."""
    try:
        finish()
    except Exception as error:
        if ended is None or isinstance(ended, KeyboardInterrupt):
            return error
        _say(f"also: {error or type(error).__name__}")
    return ended


def _say(line: str) -> None:
    """One line that somebody should know, on standard error, also where the rest is quiet."""
    with suppress(OSError, ValueError):  # closed: then nobody listens
        click.echo(f"edgetta: {printable(' '.join(line.split()))}", err=True)


@contextmanager
def _watching(source: Source, values: dict[str, Any]) -> Iterator[Callable[[BatchReport], None]]:
    """The live line."""
    from edgetta.cli.progress import progress_bar

    lengths = [length for length in (source.length, values["limit"]) if length is not None]
    with progress_bar("running", min(lengths, default=None), unit="frames", show=not values["quiet"]) as update:

        def watch(report: BatchReport) -> None:
            s = report.summary
            speed = s.frames / s.seconds if s.seconds else 0.0
            note = f"{speed:,.1f}/s  entropy {s.mean_entropy:.3f}  adapted {s.adapted:,}  skipped {s.skipped:,}"
            if s.estimated_error is not None:
                note += f"  error ~{100 * s.estimated_error:.0f} %"
            update(s.frames + s.skipped, note=note)

        yield watch


def _show(report: RunReport, values: dict[str, Any]) -> None:
    from edgetta.cli.tables import print_facts
    from edgetta.storage import atomic_write_json

    if not values["quiet"]:
        outputs = (("predictions", values["output"]), ("state", values["state"]), ("summary", values["json_file"]))
        places = [(what, str(place)) for what, place in outputs if place is not None and str(place) != "-"]
        print_facts([*report.facts(), *places], stderr=values["output"] == "-")
    if values["json_file"] is not None:
        atomic_write_json(values["json_file"], report.as_json())


def check_labels(labels: Any, classes: int, source: str) -> None:
    """Refuse labels of an array that the bundle has no class for: each would count as an error.

    Raises:
        UsageError: there are such.
    """
    import numpy as np

    if labels is None or not len(labels):
        return
    values = np.asarray(labels)
    if int(values.min()) < 0 or int(values.max()) >= classes:
        raise UsageError(
            f"{source} has labels from {int(values.min())} to {int(values.max())}, and the bundle {classes} classes, "
            "numbered from 0; correct the labels, or leave them out of the file"
        )


def folder_labels(source: str, classes: tuple[str, ...] | None) -> Callable[[Frame], int | None] | None:
    """Labels from a folder whose sub-folders are named like classes; None where the source is no folder."""
    if classes is None or not Path(source).expanduser().is_dir():
        return None
    numbers = {name: number for number, name in enumerate(classes)}
    return lambda frame: numbers.get(frame.name.partition("/")[0]) if "/" in frame.name else None


def _check_paths(values: dict[str, Any]) -> None:
    """Refuse, before anything long begins, files that could not be written at its end.

    Raises:
        UsageError: a folder that is missing, one file for two things, or `--save-every` without `--state`.
    """
    if values["save_every"] and values["state"] is None:
        raise UsageError("--save-every needs a file: add --state FILE")
    going_on = values["append"] or values["resume"]
    if going_on and values["output"] in (None, "-"):
        raise UsageError("--append and --resume go on behind the rows of a file: add -o FILE")
    if going_on and values["overwrite"]:
        raise UsageError("--overwrite replaces the rows that --append and --resume go on behind; leave one out")
    taken: dict[Path, str] = {}
    for option, name in (("--output", "output"), ("--state", "state"), ("--json", "json_file")):
        if values[name] is None or str(values[name]) == "-":
            continue
        path = Path(values[name])
        if not path.parent.is_dir():
            raise UsageError(f"{option} {path}: there is no folder {path.parent}; create it or choose another one")
        if taken.setdefault(path.resolve(), option) != option:
            raise UsageError(f"{option} and {taken[path.resolve()]} name the same file {path}; choose another one")


def _nothing_usable(source: str, summary: Summary) -> EdgettaError:
    first = next(iter(summary.skipped_frames), None)
    why = "" if first is None else f"; the first, {first.name}: {first.reason}"
    return EdgettaError(f"no frame of {source} could be used ({summary.skipped:,} skipped{why})")
