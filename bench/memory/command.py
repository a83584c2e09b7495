"""The verb: measure what the result file lacks, print the table, draw the plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from edgetta.bench.memory.cases import ENGINES, METHODS, OWN, Case, cases, chosen
from edgetta.bench.work_folder import work_folder

BATCHES = {"resnet50_imagenet": 8, "mobilenet_v2_1.0_224": 16}
"""Images per step of networks for which 64 are many."""

EXAMPLES = """\b
Examples:
  edgetta bench memory --model resnet20 --batch 16 --methods inference,tent,edgetta
  edgetta bench memory --work bundles/ --json memory.json      (continues after Ctrl-C)
"""


@click.command(epilog=EXAMPLES)
@click.option("--model", "models", default="wrn40_2,resnet50_imagenet", show_default=True, help="Comma-separated.")
@click.option("--batch", metavar="N", type=click.IntRange(2), help="Images per step; default 64, and 8 at 224x224.")
@click.option("--methods", default=",".join(METHODS), show_default=True, help="What is compared; comma-separated.")
@click.option("--engine", "engines", default=",".join(ENGINES), show_default=True, help="Of inference and edgetta.")
@click.option("--threads", default=0, type=click.IntRange(0), help="Threads per engine; 0: as many as torch takes.")
@click.option(
    "--work",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the bundles here, and use those that are here.",
)
@click.option(
    "--json",
    "path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the result file here, row by row, and a plot beside it; rows that are there are not measured again.",
)
def command(
    models: str,
    batch: int | None,
    methods: str,
    engines: str,
    threads: int,
    work: Path | None,
    path: Path | None,
) -> None:
    """Peak memory, kept bytes and time of a step, method by method, a fresh process for every row.

    Peaks are those of the process above its level with the model loaded and warmed up, as the kernel counts them; the
    C library gives freed memory back at once, for every method. Beside them stands the most that a whole process has
    resident, from the bare interpreter to 50 steps. Weights are random: memory does not depend on them. Baselines run
    on stock torch; edgetta in the ways that a plan chooses from. Needs Linux.
    """
    names = [name.strip() for name in models.split(",")]
    sizes = {name: batch or BATCHES.get(name, 64) for name in names}
    wanted = cases(
        sizes,
        chosen(methods, METHODS, "--methods"),
        chosen(engines, ENGINES, "--engine"),
    )
    rows = run(wanted, threads, work, path)
    shown = [row for row in rows if Case.of(row) in wanted]
    _print(shown)
    if path is None:
        return
    from edgetta.bench.memory.section import write_plot

    plot = write_plot(path.with_suffix(".svg"), rows)
    click.echo(f"wrote {path} and {plot}")


def run(wanted: Sequence[Case], threads: int = 0, work: Path | None = None, path: Path | None = None) -> list[Any]:
    """Rows of the result file; with `path` they are written one by one, and those that are there are not redone."""
    from edgetta.bench.memory.measurement import measure
    from edgetta.bench.plan import exported
    from edgetta.bench.result_file import rows_to_continue, write_results
    from edgetta.cli.progress import progress_bar

    settings = {"threads": threads, "entropy_margin": 1.0, "weights": "random"}
    earlier = [] if path is None else rows_to_continue(path, settings)
    rows: dict[Case, dict[str, Any]] = {Case.of(row): row for row in earlier}
    with progress_bar("measuring", total=len(wanted), unit="rows") as update, work_folder(work, "memory") as folder:
        for number, case in enumerate(wanted):
            update(number, note=f"{case.model}, {case.method}")
            if case in rows:
                continue
            bundle = exported(case.model, folder).path
            rows[case] = measure(case, str(bundle), rows.get(case.inference), threads)
            if path is not None:
                write_results(path, _in_order(rows, wanted), settings)
    return _in_order(rows, wanted)


def _in_order(rows: Mapping[Case, dict[str, Any]], wanted: Sequence[Case]) -> list[dict[str, Any]]:
    """What was asked for in its order, then what else is there."""
    return [rows[case] for case in dict.fromkeys((*wanted, *rows)) if case in rows]


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    from edgetta.bench.memory.summary import goals, ratio_text, tent_of, way
    from edgetta.cli.tables import print_line, print_table

    columns = (
        *("model", "batch", "method", "engine", "way", "kept", "alive", "peak", "process"),
        *("inference", "TENT", "analytic", "seconds", "inference "),
    )
    cells = []
    for row in rows:
        tent = tent_of(rows, row)
        cells.append(
            (
                *(row[name] for name in ("model", "batch", "method", "engine")),
                way(row) if row["method"] == OWN else "-",
                *(_megabytes(row[name]) for name in ("kept_bytes", "alive_bytes", "peak_bytes", "process_bytes")),
                ratio_text(row["peak_bytes"], row["inference_peak_bytes"]),
                ratio_text(row["peak_bytes"], None if tent is None else tent["peak_bytes"]),
                "-" if row["analytic_bytes"] is None else _megabytes(row["analytic_bytes"]),
                f"{row['step_seconds']:.2f}",
                ratio_text(row["step_seconds"], row["inference_seconds"]),
            )
        )
    print_table(columns, cells, left=("model", "method", "engine", "way"))
    for goal in goals(rows):
        print_line(goal.told(), style="" if goal.held else "yellow")


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
