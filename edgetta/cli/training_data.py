"""DATA of verbs that train: what `labelled_data` reads, and published sets with test images of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgetta.sources.labelled import Labelled
    from edgetta.sources.resize import Resize

Progress = Callable[[int, int], None]  # images read, images in all


def training_data(
    spec: str,
    input_shape: tuple[int, int, int],
    *,
    held_out: float,
    seed: int,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
    resize: Resize | None = None,
) -> tuple[Labelled, Labelled]:
    """Training and test images. Arguments and errors as those of `labelled_data`."""
    from edgetta.cli.data import labelled_data
    from edgetta.sources.published import is_published, read_published

    if is_published(Path(spec).expanduser()):
        return read_published(Path(spec).expanduser(), input_shape, limit, progress, resize)
    return labelled_data(
        spec,
        input_shape,
        held_out=held_out,
        seed=seed,
        classes=classes,
        limit=limit,
        progress=progress,
        resize=resize,
    )
