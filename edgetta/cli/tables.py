"""How verbs print what they found: names beside values, and tables, the same everywhere.

What is printed may come from a bundle, a file or another machine: nothing in it steers the terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from edgetta.printable import printable

if TYPE_CHECKING:
    from rich.console import Console


def console(*, stderr: bool = False) -> Console:
    """Standard output or standard error. Lines in a file or a pipe are not folded at rich's 80 columns."""
    from rich.console import Console

    class PipedConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would end the process with exit code 1; a reader that has gone is no failure

    stream = sys.stderr if stderr else sys.stdout
    return PipedConsole(stderr=stderr, highlight=False, width=None if stream.isatty() else 200)


def print_facts(facts: Iterable[tuple[str, Any]], *, stderr: bool = False) -> None:
    """One fact per line: its name, and its value (a text may hold line ends)."""
    from rich.text import Text

    facts = list(facts)
    width = max((len(name) for name, _ in facts), default=0) + 2
    out = console(stderr=stderr)
    for name, value in facts:
        for number, line in enumerate(str(value).splitlines() or [""]):
            text = Text((printable(name) if number == 0 else "").ljust(width), style="bold")
            out.print(text.append(printable(line), style="not bold"), soft_wrap=True)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, left: Sequence[str] = (), stderr: bool = False
) -> None:
    """A table; the columns named in `left` hold words, the others numbers, set to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(Text(printable(column)), justify="left" if column in left else "right")
    for row in rows:
        table.add_row(*(Text("\n".join(map(printable, str(cell).split("\n")))) for cell in row))
    console(stderr=stderr).print(table)


def print_line(text: str, *, style: str = "", stderr: bool = False) -> None:
    """One line of plain words; nothing in it is taken for markup."""
    from rich.text import Text

    console(stderr=stderr).print(Text(printable(text), style=style), soft_wrap=True)


def bytes_text(count: float) -> str:
    """A number of bytes as people read it: 812 B, 3.4 kB, 80.1 MB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def seconds_text(seconds: float) -> str:
    """A duration as people read it: 3.2 ms, 1.7 s, 12 min 5 s."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
