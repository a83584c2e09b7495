"""DATA on the command line: a folder, an array, or a built-in set of images by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgetta.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from edgetta.sources.datasets import Images
    from edgetta.sources.labelled import Labelled, Pictures
    from edgetta.sources.resize import Resize

BUILT_IN = ("digits", "cifar10-jpeg")
"""Sets that need no path: scikit-learn's handwritten digits, and CIFAR-10 as JPEG in the folder EDGETTA_DATA."""

Progress = Callable[[int, int], None]  # images read, images in all


def labelled_data(
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
    """Source images to train on, and others to measure on.

    Args:
        spec: DATA as the user wrote it.
        input_shape: (C, H, W) that the model takes.
        held_out: share of each class that is kept apart; built-in sets have test images of their own.
        seed: of the split.
        classes: names in the order of the model's outputs.
        limit: at most so many images are read.
        progress: told how many images are read.
        resize: how images are brought to the size; None stretches them.

    Raises:
        EdgettaError: whatever is wrong with the data.
    """
    from edgetta.sources.labelled import read_labelled, split

    if _built_in(spec) is None:
        return split(read_labelled(spec, input_shape, classes, limit, progress, resize), held_out, seed)
    train, test = (built_in_data(spec, part, input_shape, limit, resize) for part in ("train", "test"))
    return train, test


def source_images(
    spec: str,
    input_shape: tuple[int, int, int],
    limit: int,
    progress: Progress | None = None,
    resize: Resize | None = None,
) -> Pictures:
    """At most `limit` images, spread over DATA; labels are not needed.

    Raises:
        EdgettaError: whatever is wrong with the data.
    """
    from edgetta.sources.labelled import Pictures, read_pictures

    if _built_in(spec) is None:
        return read_pictures(spec, input_shape, limit, progress, resize)
    data = built_in_data(spec, "train", input_shape, limit, resize)
    rows = range(len(data))
    names = tuple(f"{spec}[{row}]" for row in rows)
    return Pictures(data.images, names, tuple(rows), (), 0, labels=data.labels)


def class_labels(
    spec: str, pictures: Pictures, classes: int, names: Sequence[str] | None
) -> tuple[Tensor | None, tuple[str, ...] | None, str]:
    """Classes of source images, and the names of the classes, where they can be told.

    Args:
        spec: DATA as the user wrote it.
        pictures: what was read of it.
        classes: of the model.
        names: of the classes as the user gave them; by default the sub-folders in alphabetical order, where they are
            as many.

    Returns:
        (N,) labels, -1 where an image has none, or None; the names; and why there are no labels, where folders
        look as if they were classes.
    """
    import torch

    folder = Path(spec).expanduser()
    if pictures.labels is not None or not folder.is_dir():
        return pictures.labels, None if names is None else tuple(names), ""
    folders = sorted(entry.name for entry in folder.iterdir() if _is_class(entry))
    held = tuple(names or folders)
    if len(held) != classes:
        also = "name all classes with --classes to have the accuracy checked"
        note = f"{spec} has {len(folders)} sub-folders and the model {classes} classes: {also}" if folders else ""
        return None, None, note
    numbers = {name: number for number, name in enumerate(held)}
    places = (name.partition("/")[0] if "/" in name else "" for name in pictures.names)
    labels = torch.tensor([numbers.get(place, -1) for place in places], dtype=torch.int64)
    if bool((labels >= 0).any()):
        return labels, held, ""
    note = f"no sub-folder of {spec} is one of --classes: the accuracy is not checked" if folders else ""
    return None, None, note


def _is_class(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _built_in(spec: str) -> str | None:
    """The built-in set of that name. A file or folder of the same name wins.

    Raises:
        UsageError: neither a set nor anything that a source could be.
    """
    if spec in BUILT_IN and not Path(spec).exists():
        return spec
    if Path(spec).suffix or Path(spec).expanduser().exists() or any(sign in spec for sign in "/\\*?[:"):
        return None
    raise UsageError(f"there is no {spec}; DATA is a folder, an .npz, or one of {', '.join(BUILT_IN)}")


def built_in_data(
    spec: str, part: str, input_shape: tuple[int, int, int], limit: int | None, resize: Resize | None = None
) -> Labelled:
    """The part `train` or `test` of a built-in set."""
    import numpy as np
    import torch

    from edgetta.sources import Frame
    from edgetta.sources.labelled import Labelled
    from edgetta.sources.resize import Resize
    from edgetta.sources.tensors import images_of

    channels, *size = input_shape
    if channels not in (1, 3):
        raise UsageError(f"the model takes {channels} channels; {spec} has 3")
    data = _images(spec, part, size, limit)
    names = data.classes or None
    to = resize or Resize((size[0], size[1]))
    frames = [Frame(f"{spec}[{row}]", to.array(image, spec), row) for row, image in enumerate(data.images)]
    images = images_of(frames, channels)
    if images.dtype == torch.uint8:
        images = images.permute(0, 3, 1, 2).contiguous()
    return Labelled(images, torch.from_numpy(data.labels.astype(np.int64)), names, data.name)


def _images(spec: str, part: str, size: Sequence[int], limit: int | None) -> Images:
    import numpy as np

    from edgetta.sources import datasets

    if spec == "digits":
        data = datasets.digits(part, max(8, size[0]))
        if limit is None or limit >= len(data):
            return data
        return data.subset(np.arange(limit) * len(data) // limit)
    count = 50_000 if part == "train" else 10_000
    rows = None if limit is None or limit >= count else np.arange(limit) * count // limit
    return datasets.cifar10_jpeg(part, rows)
