"""The images of the streams: drawn by a seed, corrupted once, and kept in a folder outside the repository."""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edgetta.corruption import corrupt
from edgetta.sources.datasets import Images, cifar10_jpeg
from edgetta.storage import atomic_write_bytes

Split = Literal["train", "test"]
CLEAN = "clean"
COUNTS = {"train": 50_000, "test": 10_000}


def default_cache() -> Path:
    """`edgetta/corrupted` in the user's cache folder (XDG_CACHE_HOME, or ~/.cache)."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if Path(home).is_absolute() else Path.home() / ".cache"
    return base / "edgetta" / "corrupted"


@dataclass(frozen=True)
class ImageCache:
    """CIFAR-10 (JPEG-75 copy) under any corruption; what was made once is read the next time.

    folder   may be deleted at any time
    workers  processes that corrupt
    """

    folder: Path
    workers: int = 1

    def images(self, split: Split, corruption: str, severity: int, count: int, seed: int) -> Images:
        """The first `count` images of the order that `seed` draws, under a corruption at a severity of 1 to 5.

        `corruption` may be "clean". The images of a smaller count are the first of a larger one. Raises `UsageError`
        for an unknown corruption, `EdgettaError` where the data is absent.
        """
        if corruption == CLEAN:
            return self._clean(split, count, seed)
        path = self.folder / f"cifar10-jpeg-{split}-{corruption}-{severity}-{count}-seed{seed}.npz"
        found = self._first_of_larger(f"cifar10-jpeg-{split}-{corruption}-{severity}", count, seed)
        if found is not None:
            return found
        clean = self._clean(split, count, seed)
        rows = _rows(split, count, seed)
        images = corrupt(clean.images, corruption, severity, seed=seed, indices=rows, workers=self.workers)
        _write(path, images, clean.labels)
        return Images(images, clean.labels, f"{clean.name} ({corruption}, severity {severity})")

    def _first_of_larger(self, name: str, count: int, seed: int) -> Images | None:
        """The first `count` images of the smallest file of that name, seed and at least so many images."""
        sizes = [int(path.stem.split("-")[-2]) for path in self.folder.glob(f"{name}-*-seed{seed}.npz")]
        for size in sorted(size for size in sizes if size >= count):
            found = _read(self.folder / f"{name}-{size}-seed{seed}.npz", size)
            if found is not None:
                return found.subset(slice(count))
        return None

    def _clean(self, split: Split, count: int, seed: int) -> Images:
        path = self.folder / f"cifar10-jpeg-{split}-{CLEAN}-{count}-seed{seed}.npz"
        found = self._first_of_larger(f"cifar10-jpeg-{split}-{CLEAN}", count, seed)
        if found is None:
            found = cifar10_jpeg(split, _rows(split, count, seed))
            _write(path, found.images, found.labels)
        return found


def _rows(split: Split, count: int, seed: int) -> np.ndarray:
    """Numbers of images, in the order of the stream."""
    return np.random.default_rng(seed).permutation(COUNTS[split])[:count]


def _read(path: Path, count: int) -> Images | None:
    """What lies at `path`, where it is whole."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return Images(images, labels, path.stem) if len(images) == len(labels) == count else None


def _write(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    np.savez(stream, images=images, labels=labels)
    atomic_write_bytes(path, stream.getvalue())
