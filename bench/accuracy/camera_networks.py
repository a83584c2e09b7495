"""The networks that meet the orders of frames, with the images that they meet, and the methods by name.

| network | images |
|---|---|
| `resnet20_jpegft` and other CIFAR networks for the JPEG copy | CIFAR-10 (JPEG-75 copy), test |
| `akamaster_resnet56`, ... | the 737 lossless test images of CIFAR-10 under frozen corruptions of severity 5 |
| `mobilenet_*` | photographs with 1,000 classes |

Images are drawn by a seed; those of a smaller count are the first of a larger one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from edgetta.bench.accuracy.deployed import Deployed, export
from edgetta.bench.accuracy.images import CLEAN, ImageCache
from edgetta.bench.accuracy.streams import as_tensor
from edgetta.bench.baselines import BatchNormStatistics, Delta, Method, Note, Rotta, Source, UnmixTns
from edgetta.corruption import corrupt
from edgetta.errors import UsageError
from edgetta.models import load_model
from edgetta.sources.datasets import Images, cifar10_lossless, cifar10c_lossless, data_folder, imagenet1000
from edgetta.storage import atomic_write_bytes

METHODS = ("source", "batch_norm_statistics", "note", "rotta", "unmix_tns", "delta", "edgetta_off", "edgetta")
OURS = ("edgetta_off", "edgetta")
BASELINES = tuple(name for name in METHODS if name not in ("source", *OURS))
LOSSLESS, PHOTOGRAPHS = 737, 1000
CALIBRATION = 2000  # lossless training images; photographs: all that are not in the stream


class Pool(Protocol):
    """Labelled images under any corruption."""

    def images(self, corruption: str, severity: int) -> np.ndarray:
        """uint8 (N, H, W, 3)"""

    @property
    def labels(self) -> np.ndarray:
        """int64 (N,)"""

    def clean(self) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels without corruption, for degenerate frames; others than the pool's where there are any."""

    def calibration(self, folder: Path) -> str:
        """Source images as DATA of `edgetta export`; files that it needs go into the folder."""


@dataclass(frozen=True)
class JpegCopy:
    """CIFAR-10 (JPEG-75 copy)."""

    cache: ImageCache
    count: int
    seed: int

    def images(self, corruption: str, severity: int) -> np.ndarray:
        return self.cache.images("test", corruption, severity, self.count, self.seed).images

    @cached_property
    def labels(self) -> np.ndarray:
        return self.cache.images("test", CLEAN, 1, self.count, self.seed).labels

    def clean(self) -> tuple[np.ndarray, np.ndarray]:
        found = self.cache.images("test", CLEAN, 1, 10_000, self.seed)
        rest = found.subset(slice(self.count if self.count < len(found) else 0, None))
        return rest.images, rest.labels

    def calibration(self, folder: Path) -> str:
        return "cifar10-jpeg"


@dataclass(frozen=True)
class Lossless:
    """The lossless subset of CIFAR-10's test images, under corruptions of severity 5 alone."""

    count: int
    seed: int

    def images(self, corruption: str, severity: int) -> np.ndarray:
        if corruption != CLEAN and severity != 5:
            raise UsageError(f"the lossless test images are there at severity 5 alone, not {severity}")
        return cifar10c_lossless(corruption).images[self._rows]

    @cached_property
    def labels(self) -> np.ndarray:
        return cifar10c_lossless(CLEAN).labels[self._rows]

    def clean(self) -> tuple[np.ndarray, np.ndarray]:
        return self.images(CLEAN, 1), self.labels

    def calibration(self, folder: Path) -> str:
        source = cifar10_lossless("train")
        rows = np.random.default_rng(self.seed).permutation(len(source))[:CALIBRATION]
        return _as_npz(source.subset(rows), folder)

    @cached_property
    def _rows(self) -> np.ndarray:
        return np.random.default_rng(self.seed).permutation(LOSSLESS)[: self.count]


@dataclass(frozen=True)
class Photographs:
    """Photographs with ImageNet labels, scaled to a network's input; class 0 is the background of 1,001."""

    cache: ImageCache
    count: int
    seed: int
    size: int
    first: int = 1  # label of the first class

    def images(self, corruption: str, severity: int) -> np.ndarray:
        if corruption == CLEAN:
            return self._scaled.images[: self.count]
        path = self.cache.folder / f"photographs-{self.size}-{corruption}-{severity}-{self.count}-seed{self.seed}.npy"
        if not path.exists():
            rows = self._rows[: self.count]
            made = corrupt(self._scaled.images[: self.count], corruption, severity, seed=self.seed, indices=rows)
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(path, _bytes(made))
        found: np.ndarray = np.load(path, allow_pickle=False)
        return found

    @cached_property
    def labels(self) -> np.ndarray:
        return self._scaled.labels[: self.count] + self.first

    def clean(self) -> tuple[np.ndarray, np.ndarray]:
        return self._scaled.images[: self.count], self.labels

    def calibration(self, folder: Path) -> str:
        return _as_npz(self._scaled.subset(slice(self.count, None)), folder)

    @cached_property
    def _rows(self) -> np.ndarray:
        return np.random.default_rng(self.seed).permutation(PHOTOGRAPHS)

    @cached_property
    def _scaled(self) -> Images:
        found = imagenet1000(self._rows)
        size = (self.size, self.size)
        scaled = [np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BICUBIC)) for x in found.images]
        return Images(np.stack(scaled), found.labels, found.name)


@dataclass(eq=False)
class Network:
    """A trained network, what it meets, and every method on it."""

    name: str  # weights in the data folder
    pool: Pool
    seed: int
    severities: tuple[int, ...]
    _folder: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="edgetta-bundle-")
    )

    def method(self, name: str) -> Method:
        """A fresh method of that name. Raises `UsageError` for an unknown one."""
        makers: dict[str, Callable[[], Method]] = {
            "source": lambda: Source(self._module),
            "batch_norm_statistics": lambda: BatchNormStatistics(self._module),
            "note": lambda: Note(self._module, seed=self.seed),
            "rotta": lambda: Rotta(self._module, seed=self.seed),
            "unmix_tns": lambda: UnmixTns(self._module, seed=self.seed),
            "delta": lambda: Delta(self._module),
            "edgetta_off": lambda: Deployed(self._bundle, "off"),
            "edgetta": lambda: Deployed(self._bundle),
        }
        if name not in makers:
            raise UsageError(f"unknown method {name!r}; use any of {', '.join(METHODS)}")
        torch.manual_seed(self.seed)
        return makers[name]()

    def source_predictions(self, corruption: str, severity: int) -> np.ndarray:
        """The class that the shipped network predicts for each image of the pool, (N,); computed once."""
        key = corruption, severity
        if key not in self._predicted:
            source = Source(self._module)
            images = self.pool.images(corruption, severity)
            parts = [images[i : i + 50] for i in range(0, len(images), 50)]
            self._predicted[key] = np.concatenate([predicted(source, as_tensor(part)) for part in parts])
        return self._predicted[key]

    @cached_property
    def _predicted(self) -> dict[tuple[str, int], np.ndarray]:
        return {}

    @cached_property
    def _module(self) -> nn.Module:
        return load_model(architecture(self.name), weights=_weights(self.name)).module

    @cached_property
    def _bundle(self) -> Path:
        folder = Path(self._folder.name)
        calibration = self.pool.calibration(folder)
        return export(architecture(self.name), _weights(self.name), calibration, folder / "bundle")


@cache
def network(name: str, images: ImageCache, count: int, seed: int, severities: tuple[int, ...] = ()) -> Network:
    """A network of the data folder and `count` images that it meets, at its own severities where none is given.

    Raises `UsageError` for an unknown one.
    """
    known = architecture(name)
    if known.startswith("mobilenet"):
        return Network(
            name, Photographs(images, min(count, PHOTOGRAPHS), seed, int(known[-3:])), seed, severities or (3, 4)
        )
    if name.startswith("akamaster"):
        return Network(name, Lossless(min(count, LOSSLESS), seed), seed, severities or (5,))
    return Network(name, JpegCopy(images, count, seed), seed, severities or (5, 3))


def architecture(name: str) -> str:
    """What `edgetta export` calls the network of these weights. Raises `UsageError` where it is unknown."""
    if name.startswith("mobilenet") and name.endswith("_quant_dequant"):
        return name.removesuffix("_quant_dequant")
    found = next((known for known in ("resnet20", "resnet44", "resnet56") if known in name), None)
    if found is None:
        raise UsageError(f"--model {name!r}: the orders of frames know ResNets of CIFAR-10 and MobileNets")
    return found


def predicted(method: Method, images: Tensor) -> np.ndarray:
    """The class that a method says of each image, (N,)."""
    found: np.ndarray = method(images).argmax(1).cpu().numpy()
    return found


def _weights(name: str) -> Path:
    return data_folder() / "weights" / f"{name}.npz"


def _as_npz(images: Images, folder: Path) -> str:
    path = folder / "calibration.npz"
    np.savez(path, images=images.images, labels=images.labels)
    return str(path)


def _bytes(array: np.ndarray) -> bytes:
    import io

    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()
