"""Data sets in the layouts that their authors publish, as training and test images.

CIFAR-10 and CIFAR-100 in the binary version (the Python version is pickled, and nothing is unpickled here), and
Tiny-ImageNet with either layout of its validation images: as published, with `val_annotations.txt`, or sorted into
one folder per class, as many scripts leave it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgetta.errors import UsageError
from edgetta.sources.labelled import Labelled, read_labelled, read_pictures
from edgetta.sources.resize import Resize
from edgetta.sources.source import SourceError

Progress = Callable[[int, int], None]  # images read, images in all

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Cifar:
    """A binary version: its files, bytes before the pixels, which of them is the label, and the number of classes."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    head: int
    label: int
    classes: int


CIFAR = (
    _Cifar("CIFAR-10", tuple(f"data_batch_{i}.bin" for i in range(1, 6)), ("test_batch.bin",), 1, 0, 10),
    _Cifar("CIFAR-100", ("train.bin",), ("test.bin",), 2, 1, 100),
)


def is_published(folder: Path) -> bool:
    """Whether the folder holds one of the sets."""
    return any((folder / layout.test[0]).is_file() for layout in CIFAR) or _is_tiny_imagenet(folder)


def read_published(
    folder: Path,
    input_shape: tuple[int, int, int],
    limit: int | None = None,
    progress: Progress | None = None,
    resize: Resize | None = None,
) -> tuple[Labelled, Labelled]:
    """Training and test images (of Tiny-ImageNet the validation images, whose labels are known).

    Args:
        folder: for which `is_published` says yes.
        input_shape: (C, H, W) that the model takes.
        limit: at most so many images of each, spread over them.
        progress: told how many images are read.
        resize: how images are brought to the size; None stretches them. CIFAR's are never resized.

    Raises:
        SourceError: a file is missing, or not as long as it must be.
        UsageError: a model that takes another size than CIFAR has.
    """
    for layout in CIFAR:
        if (folder / layout.test[0]).is_file():
            if tuple(input_shape) != (3, 32, 32):
                raise UsageError(f"{layout.name} has images of 3x32x32, and the model takes {input_shape}")
            train, test = (_cifar(folder, layout, files, limit) for files in (layout.train, layout.test))
            return train, test
    train = read_labelled(str(folder / "train"), input_shape, None, limit, progress, resize)
    assert train.classes is not None
    return train, _validation(folder / "val", input_shape, train.classes, limit, progress, resize)


def _cifar(folder: Path, layout: _Cifar, files: tuple[str, ...], limit: int | None) -> Labelled:
    length = layout.head + _PIXELS
    parts = []
    for name in files:
        try:
            content = np.fromfile(folder / name, np.uint8)
        except OSError as error:
            raise SourceError(f"{folder / name} cannot be read ({error.strerror}); put all files there") from error
        if not len(content) or len(content) % length:
            raise SourceError(f"{folder / name} has {len(content):,} bytes, no multiple of {length:,}; get it anew")
        parts.append(content.reshape(-1, length))
    records = np.concatenate(parts)
    if limit is not None and limit < len(records):
        records = records[np.arange(limit) * len(records) // limit]
    labels = torch.from_numpy(records[:, layout.label].astype(np.int64))
    if int(labels.max()) >= layout.classes:
        raise SourceError(f"{folder} has the label {int(labels.max())}, and {layout.name} {layout.classes} classes")
    images = torch.from_numpy(records[:, layout.head :].reshape(-1, 3, 32, 32).copy())
    return Labelled(images, labels, None, layout.name)


def _is_tiny_imagenet(folder: Path) -> bool:
    return (folder / "train").is_dir() and (folder / "val").is_dir()


def _validation(
    folder: Path,
    input_shape: tuple[int, int, int],
    classes: tuple[str, ...],
    limit: int | None,
    progress: Progress | None,
    resize: Resize | None,
) -> Labelled:
    annotations = folder / "val_annotations.txt"
    if not (annotations.is_file() and (folder / "images").is_dir()):
        return read_labelled(str(folder), input_shape, classes, limit, progress, resize)
    numbers = {name: number for number, name in enumerate(classes)}
    lines = [line.split("\t") for line in annotations.read_text(encoding="utf-8").splitlines() if line]
    named = {line[0]: line[1] for line in lines if len(line) > 1}
    pictures = read_pictures(str(folder / "images"), input_shape, limit, progress, resize)
    unknown = next((name for name in pictures.names if named.get(name) not in numbers), None)
    if unknown is not None:
        raise SourceError(f"{annotations} names no known class for {unknown}; get the set anew")
    labels: Tensor = torch.tensor([numbers[named[name]] for name in pictures.names], dtype=torch.int64)
    return Labelled(pictures.images, labels, classes, str(folder), pictures.skipped, pictures.skipped_count)
