"""`edgetta bench learning-rate`: is the law right, and does it pay? Four parts, each with a result file."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

Until = Callable[[], bool]


@click.command(
    epilog="\b\nExamples:\n  edgetta bench learning-rate --part stream --json learning_rate_stream.json\n"
    "  edgetta bench learning-rate --part stream --minutes 8 --json stream.json   (again and again, until done)"
)
@click.option("--part", type=click.Choice(["stream"]), required=True, help="What is measured; see above.")
@click.option(
    "--json", "path", type=click.Path(path_type=Path), help="Write the result file here; what is in it is not redone."
)
@click.option(
    "--minutes",
    metavar="N",
    type=click.FloatRange(0, min_open=True),
    help="Stop after about N minutes; the same command continues (with --json).",
)
def command(part: str, path: Path | None, minutes: float | None) -> None:
    """Measure what curvature predicts, and what its rates are worth.

    \b
    stream  the error of an adapting stream with the law, against one rate for all batch sizes, linear and
            square-root scaling, the rule of SAR's code, the best of a grid, and no adaptation

    Needs the images and weights of EDGETTA_DATA.
    """
    end = None if minutes is None else time.monotonic() + 60 * minutes
    {"stream": _stream}[part](path, lambda: end is not None and time.monotonic() > end)
    if path is not None:
        click.echo(f"wrote {path}")


def _stream(path: Path | None, over: Until) -> None:
    from edgetta.bench.learning_rate.stream import RULES, Stream, StreamConfig, settings
    from edgetta.bench.result_file import results_to_continue, write_results
    from edgetta.cli.progress import progress_bar

    config = StreamConfig()
    facts = settings(config)
    stream = Stream(config, None if path is None else results_to_continue(path, facts))

    def save() -> None:
        if path is not None:
            write_results(path, stream.rows(), facts, stream.facts())

    with progress_bar("rate law") as update:
        stream.make_law(lambda text: update(0, note=text))
    save()
    with progress_bar("streams", unit="runs") as update:
        for done, total, run in stream.advance():
            update(done, total, f"batch {run['batch_size']}, rate {run['rate']:.2g}")
            save()
            if over():
                break
    _table(
        "Error in percent, mean over seeds",
        ("batch", "window", *RULES, "oracle", "off"),
        [
            (
                f"{batch}",
                f"{window or '-'}",
                *(f"{_mean(own, f'{name}_error'):.2f}" for name in (*RULES, "oracle", "no_adaptation")),
            )
            for (batch, window), own in _grouped(stream.rows(), ("batch_size", "window"))
        ],
    )


def _grouped(
    rows: Sequence[dict[str, Any]], keys: Sequence[str]
) -> list[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(groups.items())


def _mean(rows: Sequence[dict[str, Any]], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.width = max(console.width, 110)
    console.print(table)
