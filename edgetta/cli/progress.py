"""A bar with the time that is left, on standard error, while something long runs; none where that is no terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Update(Protocol):
    """Tells the bar how far things are."""

    def __call__(self, done: int, total: int | None = None, note: str = "") -> None: ...


@contextmanager
def progress_bar(title: str, total: int | None = None, *, unit: str = "", show: bool = True) -> Iterator[Update]:
    """A bar that is gone when the block ends.

    Args:
        title: what is being done.
        total: steps in all; None where nobody knows, or where the first update says it.
        unit: shown behind the numbers, e.g. "frames".
        show: False for `--quiet`.

    Yields:
        A function for the number of steps done so far, their number in all, and a short note.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not show or not console.is_terminal:
        yield lambda done, total=None, note="": None
        return
    from rich import progress as bars
    from rich.table import Column

    # The bar has the room that numbers and note leave. On a narrow terminal the note wraps; no number is cut short.
    bar = bars.BarColumn(bar_width=None, table_column=Column(ratio=1))
    note = bars.TextColumn("{task.fields[note]}", table_column=Column(no_wrap=False))
    columns = [bars.TextColumn("{task.description}"), bar, bars.MofNCompleteColumn(), bars.TextColumn(unit)]
    columns += [note, bars.TimeRemainingColumn(compact=True), bars.TextColumn("left")]
    with bars.Progress(*columns, console=console, transient=True, expand=True) as progress:
        task = progress.add_task(title, total=total, note="")

        def update(done: int, total: int | None = None, note: str = "") -> None:
            if total is None:
                progress.update(task, completed=done, note=note)
            else:
                progress.update(task, completed=done, total=total, note=note)

        yield update
