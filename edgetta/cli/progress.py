"""A bar with the time that is left, on standard error, while something long runs; a line now and then where that is
no terminal."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

EVERY = 30.0
"""Seconds between two lines where there is no terminal: what is done before says nothing."""


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
    if not show:
        yield lambda done, total=None, note="": None
        return
    if not console.is_terminal:
        with lines(title, total, unit, console.print) as told:
            yield told
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


@contextmanager
def lines(
    title: str, total: int | None, unit: str, write: Callable[[str], object], every: float = EVERY
) -> Iterator[Update]:
    """A line every so many seconds, from a thread of its own: what takes long may say nothing for as long."""
    begun, ended = time.monotonic(), threading.Event()
    far: dict[str, object] = {"done": None, "total": total, "note": ""}

    def update(done: int, total: int | None = None, note: str = "") -> None:
        far.update(done=done, note=note)
        if total is not None:
            far["total"] = total

    def tell() -> None:
        while not ended.wait(every):
            known = far["done"] is not None
            count = f"{far['done']}" + (f"/{far['total']}" if far["total"] is not None else "")
            numbers = " ".join(word for word in (count, unit, str(far["note"])) if word) if known else ""
            seconds = time.monotonic() - begun
            write(f"{title}: {numbers + ', ' if numbers else ''}{seconds:.0f} s so far")

    teller = threading.Thread(target=tell, name="progress", daemon=True)
    teller.start()
    try:
        yield update
    finally:
        ended.set()
        teller.join()
