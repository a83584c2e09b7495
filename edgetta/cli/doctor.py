"""`edgetta doctor`: what this machine has, what is missing, and what to do; the text to put into a bug report."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgetta.devices.report import Report

_STYLES = {"ok": "green", "absent": "dim", "warning": "yellow", "problem": "bold red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, for bug reports and programs.")
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Examine this machine: versions, processor, memory, GPU, engines, and what to do about what is missing.

    The exit code is 0 where edgetta can run, and 1 where something that it needs is missing.
    """
    from edgetta.devices.doctor import examine

    report = examine()
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        show(report)
    context.exit(0 if report.usable else 1)


def show(report: Report) -> None:
    """Print the report as a table, and a sentence that sums it up."""
    from rich.table import Table
    from rich.text import Text

    from edgetta.cli.tables import console as stdout_console
    from edgetta.devices.report import problems

    console = stdout_console()
    table = Table.grid(padding=(0, 2))
    for check in report.checks:
        found = Text(check.value)
        if check.remedy:
            found.append(
                f"\n-> {check.remedy}", style="dim" if check.status in ("ok", "absent") else _STYLES[check.status]
            )
        table.add_row(
            Text("-" if check.status == "absent" else check.status, style=_STYLES[check.status]),
            Text(check.name),
            found,
        )
    console.print(table)
    console.print()
    traps: list[str] = next((check.facts.get("traps", []) for check in report.checks if check.name == "profile"), [])
    if traps:
        console.print(Text("What others stumbled over on this device:", style="bold"))
        for trap in traps:
            console.print(Text(f"- {trap}"))
        console.print()
    if report.usable:
        console.print(Text("edgetta can run here.", style="green"))
    else:
        console.print(Text(f"edgetta cannot run here: see {', '.join(problems(report.checks))}.", style="bold red"))
