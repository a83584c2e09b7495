"""Images in memory with their classes: from a folder with one sub-folder per class, or an array with labels.

Frames are read exactly as on the device (the same decoding, the same resizing), so that what is trained and measured
offline is what the stream will deliver. Frames that cannot be used are skipped and named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgetta.errors import UsageError
from edgetta.sources.images import ImageFiles
from edgetta.sources.opening import open_source
from edgetta.sources.resize import Resize
from edgetta.sources.source import Frame, FrameSource, Skipped, SourceError
from edgetta.sources.tensors import images_of

_CHUNK = 256  # frames that are turned into one tensor at a time
Progress = Callable[[int, int], None]  # images read, images in all


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images of one size in memory, and which frames they were."""

    images: Tensor  # (N, C, H, W): uint8, or float32 in [0, 1] where the source holds floats
    names: tuple[str, ...]  # of the frames
    indices: tuple[int, ...]  # place of each in the source
    skipped: tuple[Skipped, ...]
    skipped_count: int
    original: tuple[int, int] | None = None  # (H, W) of every frame before it was resized; None where they differ
    labels: Tensor | None = None  # (N,) int64, where the source itself has them; folders say classes by their names

    def __len__(self) -> int:
        return len(self.names)

    def floats(self, count: int | None = None) -> Tensor:
        """The first `count` images as float32 in [0, 1]."""
        images = self.images[:count]
        return images.float() / 255 if images.dtype == torch.uint8 else images


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images with their classes."""

    images: Tensor  # as in `Pictures`
    labels: Tensor  # (N,) int64
    classes: tuple[str, ...] | None  # names in the order of the labels, where they are known
    name: str
    skipped: tuple[Skipped, ...] = ()  # when the data was read
    skipped_count: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, chosen: Sequence[int] | Tensor | np.ndarray) -> Labelled:
        """The images with these numbers, in this order."""
        rows = torch.as_tensor(chosen, dtype=torch.int64)
        return replace(self, images=self.images[rows], labels=self.labels[rows])

    def shuffled(self, seed: int, limit: int | None = None) -> Labelled:
        """The images in an order drawn from `seed`, at most `limit` of them."""
        return self.subset(torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:limit])


def read_pictures(
    spec: str,
    input_shape: tuple[int, int, int],
    limit: int | None = None,
    progress: Progress | None = None,
    resize: Resize | None = None,
) -> Pictures:
    """Images of any source that ends, at most `limit` of them, spread evenly over it.

    They are brought to the size by `resize`, or stretched where it is None.

    Raises:
        SourceError: the source cannot be opened, or no frame of it can be used.
        UsageError: a live source, or a model that takes neither 3 channels nor 1.
    """
    with open_source(spec, size=resize or input_shape[1:]) as source:
        return _read(source, spec, input_shape, limit, progress)


def read_labelled(
    spec: str,
    input_shape: tuple[int, int, int],
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
    resize: Resize | None = None,
) -> Labelled:
    """Images with classes: sub-folders named after them, or an `.npz` with `images` and `labels`.

    Classes are numbered by the sub-folders that there are, before any picture is read: an empty folder, one whose
    pictures are all damaged, or one that a sample leaves out has its number all the same.

    Args:
        spec: the folder or the file.
        input_shape: (C, H, W) that the model takes; frames are brought to it.
        classes: names in the order of the model's outputs; by default the sub-folders in alphabetical order.
        limit: at most so many images, spread evenly over the source.
        progress: told how many images are read.
        resize: how frames are brought to the size; None stretches them.

    Raises:
        SourceError: the source cannot be opened, no frame can be used, or it has no labels.
        UsageError: a sub-folder that `classes` does not name.
    """
    with open_source(spec, size=resize or input_shape[1:]) as source:
        if source.labels is None and not Path(spec).expanduser().is_dir():
            raise SourceError(
                f"{spec} has no labels; give a folder with one sub-folder per class, or an .npz with images and labels"
            )
        if source.labels is None and classes is None:
            classes = folder_classes(Path(spec).expanduser())
        pictures = _read(source, spec, input_shape, limit, progress)
        labels = source.labels
    if labels is not None:
        chosen = torch.from_numpy(np.asarray(labels)[list(pictures.indices)])
        return _labelled(pictures, chosen, None if classes is None else tuple(classes), spec)
    return _by_folder(pictures, classes or (), spec)


def folder_classes(folder: Path) -> tuple[str, ...]:
    """The names of a folder's sub-folders in alphabetical order, as torchvision and timm number classes.

    Raises:
        SourceError: there are none.
        UsageError: they are numbers whose order that is not, so that nobody knows which class is meant.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise SourceError(f"{folder} holds images but no sub-folders; give one sub-folder per class, named after it")
    if all(name.isascii() and name.isdigit() for name in names) and names != sorted(names, key=int):
        raise UsageError(
            f"{folder} has sub-folders that are numbers, and in alphabetical order {names[2]!r} would be class 2; "
            "rename them to numbers of one length (00, 01, ...), or give the names in the model's order"
        )
    return tuple(names)


def check_classes(data: Labelled, count: int) -> Labelled:
    """The data, if its labels are those of a model with so many classes.

    Raises:
        UsageError: as many sub-folders as the model does not have classes, or a label beyond them.
    """
    if data.classes is not None and len(data.classes) != count:
        raise UsageError(
            f"{data.name} has {len(data.classes)} classes and the model {count}, so that nobody knows which is which; "
            "give one sub-folder for each class of the model (it may be empty), or weights for these classes"
        )
    if int(data.labels.max()) >= count:
        raise UsageError(
            f"{data.name} has the label {int(data.labels.max())}, and the model has {count} classes, from 0; give "
            "data of its classes, or weights for these"
        )
    return data


def split(data: Labelled, share: float, seed: int = 0) -> tuple[Labelled, Labelled]:
    """Keep a share of every class apart, drawn at random from `seed`: (the rest, what was kept apart).

    Raises:
        UsageError: a share that is not between 0 and 1, or that leaves either side empty.
    """
    if not 0 < share < 1:
        raise UsageError(f"the share to keep apart must be above 0 and below 1, not {share:g}")
    generator = torch.Generator().manual_seed(seed)
    apart = torch.zeros(len(data), dtype=torch.bool)
    for label in data.labels.unique():
        members = (data.labels == label).nonzero()[:, 0]
        shuffled = members[torch.randperm(len(members), generator=generator)]
        apart[shuffled[: round(share * len(members))]] = True
    if not apart.any() or apart.all():
        raise UsageError(f"{len(data)} images cannot be split with {share:g} kept apart; give more images")
    return data.subset((~apart).nonzero()[:, 0]), data.subset(apart.nonzero()[:, 0])


def _read(
    source: FrameSource,
    spec: str,
    input_shape: tuple[int, int, int],
    limit: int | None,
    progress: Progress | None,
) -> Pictures:
    channels = input_shape[0]
    if channels not in (1, 3):
        raise UsageError(f"the model takes {channels} channels; sources deliver 3, and 1 can be made of them")
    if source.length is None:
        raise UsageError(f"{spec} has no end that is known; give a folder, a file or an array")
    wanted: Sequence[int] = range(source.length)
    if limit is not None and limit < source.length:
        wanted = [number * source.length // limit for number in range(limit)]
        if isinstance(source, ImageFiles):
            source, wanted = source.subset(wanted), range(limit)
    chosen = wanted if isinstance(wanted, range) else frozenset(wanted)
    tensors: list[Tensor] = []
    waiting: list[Frame] = []
    names: list[str] = []
    indices: list[int] = []
    originals: set[tuple[int, int] | None] = set()
    for frame in source:
        if frame.index not in chosen:
            continue
        waiting.append(frame)
        names.append(frame.name)
        indices.append(frame.index)
        originals.add(frame.original)
        if len(waiting) == _CHUNK:
            tensors.append(_channels_first(images_of(waiting, channels)))
            waiting = []
        if progress is not None:
            progress(len(names), len(wanted))
    if waiting:
        tensors.append(_channels_first(images_of(waiting, channels)))
    if not names:
        first = f"; the first, {source.skipped[0].name}: {source.skipped[0].reason}" if source.skipped else ""
        raise SourceError(f"no frame of {spec} can be used ({source.skipped_count:,} skipped{first})")
    if len({tensor.dtype for tensor in tensors}) > 1:
        tensors = [t.float() / 255 if t.dtype == torch.uint8 else t for t in tensors]
    images = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
    original = originals.pop() if len(originals) == 1 else None
    labels = None if source.labels is None else torch.from_numpy(np.asarray(source.labels)[indices])
    return Pictures(
        images, tuple(names), tuple(indices), tuple(source.skipped), source.skipped_count, original, labels
    )


def _channels_first(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).contiguous() if images.dtype == torch.uint8 else images


def _by_folder(pictures: Pictures, classes: Sequence[str], spec: str) -> Labelled:
    folders = [name.partition("/")[0] if "/" in name else "" for name in pictures.names]
    loose = [pictures.names[i] for i, folder in enumerate(folders) if not folder]
    names = tuple(classes)
    if set(folders) == {""}:
        raise SourceError(f"{spec} holds images but no sub-folders; give one sub-folder per class, named after it")
    numbers = {name: number for number, name in enumerate(names)}
    unknown = next((folder for folder in folders if folder and folder not in numbers), None)
    if unknown is not None:
        raise UsageError(f"{spec} has the sub-folder {unknown!r}, which is none of the {len(names)} classes given")
    kept = [i for i, folder in enumerate(folders) if folder]
    labels = torch.tensor([numbers[folders[i]] for i in kept], dtype=torch.int64)
    skipped = pictures.skipped + tuple(Skipped(name, "not in the sub-folder of a class") for name in loose)
    images = pictures.images if len(kept) == len(folders) else pictures.images[kept]
    return Labelled(images, labels, names, spec, skipped, pictures.skipped_count + len(loose))


def _labelled(pictures: Pictures, labels: Tensor, classes: tuple[str, ...] | None, spec: str) -> Labelled:
    if classes is not None and int(labels.max()) >= len(classes):
        raise UsageError(f"{spec} has the label {int(labels.max())}, beyond the {len(classes)} classes given")
    if int(labels.min()) < 0:
        raise SourceError(f"{spec} has the label {int(labels.min())}; labels count from 0: correct them")
    return Labelled(pictures.images, labels, classes, spec, pictures.skipped, pictures.skipped_count)
