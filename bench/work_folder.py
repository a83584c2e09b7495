"""A folder that a bench writes its bundles to: the user's, which is kept, or one that goes when the bench is done."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def work_folder(work: Path | None, bench: str) -> Iterator[Path]:
    """`work`, made where it is missing; a temporary one named after the `bench` where it is None."""
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        yield work
        return
    with tempfile.TemporaryDirectory(prefix=f"edgetta-{bench}-") as folder:
        yield Path(folder)
