"""Real images for tests and benches: the project's own small files, the bundled digits, and the published layouts.

Nothing here downloads. Files are looked for in `data_folder()`; where one is absent the error says which and how to
point to it. Arrays are read with `allow_pickle=False`, and JPEG copies decode only the rows that are asked for.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgetta.errors import EdgettaError, MissingDependencyError, UsageError

if TYPE_CHECKING:
    from PIL import Image as Pillow

Rows = Sequence[int] | np.ndarray | slice | None
"""Which images of a data set, by number, in the order wanted; None for all."""

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

# Where the forms of the bundled digits begin, and their end. All writers copied the same text (0123456789 three
# times, then 0955650989841...), so the labels show it. More than half of all scans have their nearest neighbour on
# their own form: a split that divides forms leaks.
_FORMS = (0, 130, 256, 386, 516, 646, 776, 906, 1029, 1157, 1287, 1415, 1545, 1667, 1797)
_HELD_OUT_FORMS = 5


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images that fit in memory."""

    images: np.ndarray  # uint8 (N, H, W, 3), RGB
    labels: np.ndarray  # int64 (N,)
    name: str  # what a table calls them, including what is lossy or partial about them
    classes: tuple[str, ...] = ()  # names by label, where they are known

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[3] != 3:
            raise EdgettaError(
                f"{self.name}: images are {self.images.dtype} {self.images.shape}, not uint8 (N, H, W, 3); "
                "replace the file"
            )
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise EdgettaError(
                f"{self.name}: labels are {self.labels.dtype} {self.labels.shape}, not int64 ({len(self.images)},); "
                "replace the file"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Sequence[int] | np.ndarray | slice) -> Images:
        """The images with these numbers, in this order; same name and classes."""
        chosen = _chosen(indices, len(self), self.name)
        return Images(self.images[chosen], self.labels[chosen], self.name, self.classes)


def data_folder() -> Path:
    """Where measuring data lies: the environment variable EDGETTA_DATA, or `data` in the working directory."""
    return Path(os.environ.get("EDGETTA_DATA") or "data")


def cifar10_jpeg(split: str, rows: Rows = None) -> Images:
    """All of CIFAR-10 as a JPEG copy (quality 75, 4:2:0, so lossy): 50,000 "train" or 10,000 "test" images.

    Training images are in the original order; test images are SORTED BY CLASS: shuffle them. Raises `EdgettaError` if
    the file is absent or damaged, `UsageError` for another split or rows that do not exist.
    """
    name = f"CIFAR-10 (JPEG-75 copy), {_split(split)}"
    arrays = _read(f"cifar10_{split}_jpeg.npz", ("header", "data", "offsets", "labels"))
    return _decode(arrays, arrays["labels"], arrays["header"].tobytes(), rows, name)


def cifar10_lossless(split: str) -> Images:
    """Bit-exact images of CIFAR-10: 6,259 of "train" or 737 of "test".

    Those of "train" were training data of the networks: source and calibration use only. Those of "test" were chosen
    by authors of verification benchmarks and are about 1.5 points easier than the whole. Raises as `cifar10_jpeg`.
    """
    arrays = _read(f"cifar10_{_split(split)}_lossless_subset.npz", ("images", "labels"))
    return _images(arrays["images"], arrays["labels"], f"CIFAR-10 (lossless subset), {split}")


def cifar10c_lossless(corruption: str) -> Images:
    """The 737 lossless test images under one of the 15 corruptions at severity 5, frozen; or "clean".

    They come from another implementation of the corruptions, kept as a reference. Raises as `cifar10_jpeg`.
    """
    arrays = _read("cifar10c_sev5_lossless737.npz", ("labels", corruption))
    return _images(
        arrays[corruption], arrays["labels"], f"CIFAR-10-C, own copy ({corruption}, severity 5, 737 images)"
    )


def imagenet1000(rows: Rows = None) -> Images:
    """1,000 photographs of 224 pixels with ImageNet labels 0 to 999, as JPEG of quality 92.

    They are those of the NIPS 2017 adversarial competition, CC BY 2.0. Raises as `cifar10_jpeg`.
    """
    arrays = _read("nips17_imagenet1000_224_jpeg.npz", ("data", "offsets", "labels_1000"))
    return _decode(arrays, arrays["labels_1000"], b"", rows, "NIPS 2017 ImageNet photographs (JPEG-92)")


def digits(split: str, size: int = 32, seed: int = 0) -> Images:
    """scikit-learn's handwritten digits, 1,797 scans of 8 x 8 pixels: nine forms are "train", five are "test".

    Every form was filled in by one hand with about 13 of each digit, so whole forms are drawn (from `seed`): a hand
    that was trained on is never tested on, and the classes stay balanced. Enlarged to `size` pixels by bicubic
    interpolation, three equal channels. Raises `MissingDependencyError` without scikit-learn, `UsageError` for a size
    under 8, a negative seed or another split.
    """
    from PIL import Image as Pillow

    _split(split)
    if size < 8 or seed < 0:
        raise UsageError(f"digits: size={size} and seed={seed}; use a size of at least 8 and a seed of at least 0")
    scans, labels = _digit_scans()  # 0 to 16
    held_out = _held_out(np.random.default_rng(seed))
    chosen = np.flatnonzero(held_out if split == "test" else ~held_out)
    enlarged = [
        np.asarray(Pillow.fromarray(scan).resize((size, size), Pillow.Resampling.BICUBIC)) for scan in scans[chosen]
    ]
    grey = (np.stack(enlarged) * (255 / 16)).clip(0, 255).round().astype(np.uint8)
    name = f"digits (scikit-learn, {size} pixels), {split}"
    return Images(np.repeat(grey[..., None], 3, axis=3), labels[chosen], name, tuple("0123456789"))


def image_folder(path: str | Path, size: int | None = None) -> Images:
    """Images in one sub-folder per class, classes in alphabetical order.

    `size` scales the shorter side to that many pixels and cuts the square middle; without it all images must have the
    same size. Grey, RGBA, palette and 16-bit images become RGB; hidden files and other file types are passed over.
    Raises `EdgettaError` for a missing or empty folder, an unreadable image or one of another size.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise EdgettaError(f"{folder} is not a folder; give one that holds a sub-folder per class")
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((folder / name).rglob("*"))
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()
    ]
    if not files:
        raise EdgettaError(f"{folder} holds no image in a sub-folder; give one sub-folder per class, named after it")
    images = [_load(file, size) for file, _ in files]
    for (file, _), image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            raise EdgettaError(
                f"{file} has {image.shape[1]} x {image.shape[0]} pixels, {files[0][0]} has {images[0].shape[1]} x "
                f"{images[0].shape[0]}; give a size to bring all to one"
            )
    labels = np.array([label for _, label in files], np.int64)
    return Images(np.stack(images), labels, folder.name or str(folder), tuple(classes))


def cifar10_c(corruption: str, severity: int, *, folder: str | Path | None = None, rows: Rows = None) -> Images:
    """The published CIFAR-10-C: `labels.npy` and one `.npy` per corruption, five severities one after another.

    `folder` is `CIFAR-10-C` in `data_folder()` by default. Only the rows asked for (of one severity) are read. Raises
    `EdgettaError` if a file is absent or damaged, `UsageError` for a severity or rows that do not exist.
    """
    return _published("CIFAR-10-C", corruption, severity, folder, rows)


def cifar100_c(corruption: str, severity: int, *, folder: str | Path | None = None, rows: Rows = None) -> Images:
    """The published CIFAR-100-C; see `cifar10_c`."""
    return _published("CIFAR-100-C", corruption, severity, folder, rows)


def _published(name: str, corruption: str, severity: int, folder: str | Path | None, rows: Rows) -> Images:
    if not 1 <= severity <= 5:
        raise UsageError(f"{name} has no severity {severity}; use 1 to 5")
    where = data_folder() / name if folder is None else Path(folder)
    images, labels = _array(where / f"{corruption}.npy"), _array(where / "labels.npy")
    if images.ndim != 4 or labels.ndim != 1 or len(labels) % 5 or len(labels) != len(images):
        raise EdgettaError(
            f"{where}: images {images.shape} and labels {labels.shape} are not 5 severities of one set; replace them"
        )
    count = len(labels) // 5
    chosen = _chosen(slice(None) if rows is None else rows, count, name) + count * (severity - 1)
    return _images(images[chosen], labels[chosen], f"{name} ({corruption}, severity {severity})")


def _array(path: Path) -> np.ndarray:
    if not path.is_file():
        raise EdgettaError(f"{path} is absent; put the published files there or name their folder")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise EdgettaError(f"{path} cannot be read ({error}); replace it") from error


def _read(file: str, names: tuple[str, ...]) -> Mapping[str, np.ndarray]:
    """The named arrays of one `.npz` of the data folder."""
    path = data_folder() / file
    if not path.is_file():
        raise EdgettaError(f"{path} is absent; set EDGETTA_DATA to the folder that holds {file}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            missing = [name for name in names if name not in arrays.files]
            if missing:
                raise EdgettaError(f"{path} holds no {missing[0]!r}; it has {', '.join(sorted(arrays.files))}")
            return {name: arrays[name] for name in names}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise EdgettaError(f"{path} cannot be read ({error}); replace it") from error


def _decode(arrays: Mapping[str, np.ndarray], labels: np.ndarray, header: bytes, rows: Rows, name: str) -> Images:
    """JPEG files that lie one after another, image i at `offsets[i]:offsets[i + 1]`, behind a shared header."""
    from PIL import Image as Pillow

    data, offsets = arrays["data"], arrays["offsets"].astype(np.int64)
    chosen = _chosen(slice(None) if rows is None else rows, len(offsets) - 1, name)
    images: np.ndarray | None = None
    for position, row in enumerate(chosen):
        stream = BytesIO(header + data[offsets[row] : offsets[row + 1]].tobytes())
        try:
            image = np.asarray(Pillow.open(stream, formats=("JPEG",)))
        except (OSError, SyntaxError) as error:
            raise EdgettaError(f"{name}: image {row} cannot be decoded ({error}); replace the file") from error
        if images is None:
            images = np.empty((len(chosen), *image.shape), np.uint8)
        if image.shape != images.shape[1:]:
            raise EdgettaError(
                f"{name}: image {row} is {image.shape}, the others {images.shape[1:]}; replace the file"
            )
        images[position] = image
    return _images(np.empty((0, 1, 1, 3), np.uint8) if images is None else images, labels[chosen], name)


def _chosen(rows: Sequence[int] | np.ndarray | slice, count: int, name: str) -> np.ndarray:
    """Rows as numbers from 0 to count - 1."""
    if isinstance(rows, slice):
        return np.arange(count)[rows]
    numbers = np.asarray(rows)
    if numbers.dtype == bool and numbers.shape == (count,):
        return np.flatnonzero(numbers)
    if numbers.size == 0:
        return np.empty(0, np.int64)
    if (
        numbers.ndim != 1
        or not np.issubdtype(numbers.dtype, np.integer)
        or numbers.min() < 0
        or numbers.max() >= count
    ):
        raise UsageError(f"{name}: rows must be whole numbers from 0 to {count - 1}")
    return numbers.astype(np.int64)


def _images(images: np.ndarray, labels: np.ndarray, name: str) -> Images:
    return Images(np.ascontiguousarray(images), labels.astype(np.int64), name)


def _split(split: str) -> str:
    if split not in ("train", "test"):
        raise UsageError(f'unknown split {split!r}; use "train" or "test"')
    return split


def _digit_scans() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependencyError("the digits come with scikit-learn; pip install 'edgetta[bench]'") from error
    bundled = load_digits()
    return bundled.images.astype(np.float32), bundled.target.astype(np.int64)


def _held_out(rng: np.random.Generator) -> np.ndarray:
    """The scans of `_HELD_OUT_FORMS` forms drawn at random, as booleans (1797,)."""
    forms = rng.permutation(len(_FORMS) - 1)[:_HELD_OUT_FORMS]
    return np.isin(np.searchsorted(_FORMS, np.arange(_FORMS[-1]), side="right") - 1, forms)


def _load(file: Path, size: int | None) -> np.ndarray:
    from PIL import Image as Pillow
    from PIL import ImageOps

    try:
        with Pillow.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bit, which a plain conversion would clip
                image = Pillow.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
            image = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Pillow.DecompressionBombError) as error:
        raise EdgettaError(f"{file} cannot be read as an image ({error}); replace or remove it") from error
    return np.asarray(image if size is None else _square(image, size))


def _square(image: Pillow.Image, size: int) -> Pillow.Image:
    from PIL import Image as Pillow

    scale = size / min(image.size)
    wide, high = (max(size, round(side * scale)) for side in image.size)
    left, top = (wide - size) // 2, (high - size) // 2
    image = image.resize((wide, high), Pillow.Resampling.BICUBIC)
    return image.crop((left, top, left + size, top + size))
