"""`edgetta demo`: all of edgetta on real digits, from training to an adapting stream."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgetta.bench.demo_result import DemoConfig, DemoResult


@click.command()
@click.option(
    "--out",
    default="demo",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for bundle, stream, predictions, demo.json and report.html.",
)
@click.option(
    "--engine",
    default="onnxruntime",
    show_default=True,
    type=click.Choice(["onnxruntime", "torch"]),
    help="What runs the frozen parts.",
)
@click.option("--quick", is_flag=True, help="The same way in seconds; its figures mean nothing.")
def command(out: Path, engine: str, quick: bool) -> None:
    """Train a small network on handwritten digits, warm up, export, and adapt to a stream of corrupted ones.

    The digits are scikit-learn's, so nothing is downloaded. The table compares the network as trained (source),
    BatchNorm statistics of each batch, TENT, edgetta with adaptation off (warm_up_only) and edgetta. The exit code is
    1 where edgetta does not earn what it claims.

    Afterwards the bundle can be run again:

      edgetta run demo/bundle demo/stream.npz
    """
    from edgetta.bench.demo import run_demo
    from edgetta.bench.demo_result import DemoConfig
    from edgetta.cli.tables import print_line

    config = DemoConfig.quick() if quick else DemoConfig()
    run_demo(out, engine, config, say=print_line, finish=lambda result: show(result, out, config))


def show(result: DemoResult, out: Path, config: DemoConfig) -> None:
    """Print the table of errors, what a step costs, and where the files are."""
    from edgetta.bench.demo_report import COST_COLUMNS, ERROR_COLUMNS, cost_rows, error_rows
    from edgetta.cli.tables import print_line, print_table

    print_table(ERROR_COLUMNS, error_rows(result), left=ERROR_COLUMNS[:1])
    print_table(COST_COLUMNS, cost_rows(result, config.batch), left=COST_COLUMNS[:1])
    if config.judge:
        for claim in result.claims():
            print_line(
                f"{'holds' if claim.holds else 'FAILS'}: {claim.text}", style="green" if claim.holds else "bold red"
            )
    else:
        print_line("a quick run: it shows that everything works, and its figures mean nothing")
    print_line(f"wrote {out / 'report.html'} and {out / 'demo.json'}")
