"""Corrupted images on the command line: made here at a severity, or read from a published set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgetta.errors import UsageError

SEVERITIES = ("1", "2", "3", "4", "5")

if TYPE_CHECKING:
    from edgetta.offline.attack.evaluation import Images
    from edgetta.sources.labelled import Labelled
    from edgetta.sources.resize import Resize

Progress = Callable[[int, int], None]  # corruptions done, corruptions in all


def corrupted_images(
    spec: str,
    data: Labelled,
    input_shape: tuple[int, int, int],
    limit: int | None,
    progress: Progress | None = None,
    resize: Resize | None = None,
) -> dict[str, Images]:
    """Images under corruptions, with labels, by name.

    Args:
        spec: a severity from 1 to 5, at which the 15 corruptions of Hendrycks and Dietterich are made of `data`; or a
            folder of the published layouts: CIFAR-10-C (`labels.npy` and one .npy per corruption), or one sub-folder
            per corruption, per severity and per class (Tiny-ImageNet-C). All severities of a folder are read.
        data: the clean images.
        input_shape: (C, H, W) that the model takes.
        limit: at most so many images per corruption and severity.
        progress: told how many corruptions are done.
        resize: how images of a folder are brought to the size; None stretches them.

    Raises:
        EdgettaError: a severity or folder that is none.
    """
    if spec.isdigit():
        if spec not in SEVERITIES:
            raise UsageError(f"--corrupted {spec}: severities go from 1 to 5")
        return _made(int(spec), data, progress)
    folder = Path(spec)
    if not folder.is_dir():
        raise UsageError(f"--corrupted {spec}: write a severity from 1 to 5, or the folder of a published -C set")
    if (folder / "labels.npy").is_file():
        return _published(folder, limit, progress)
    return _folders(folder, input_shape, limit, progress, resize)


def kept_apart(data: Labelled, severity: int = 5, progress: Progress | None = None) -> dict[str, Images]:
    """Images under the four corruptions that benchmarks keep for validation and no stream of them has, by name.

    Raises:
        UsageError: images that are no bytes of 3 channels.
    """
    import torch

    from edgetta.corruption import EXTRA_CORRUPTIONS

    if data.images.dtype != torch.uint8 or data.images.shape[1] != 3:
        raise UsageError(f"{data.name}: corruptions are made of images of 3 channels as bytes; leave --curvature out")
    return _corrupted(data, EXTRA_CORRUPTIONS, severity, progress)


def _made(severity: int, data: Labelled, progress: Progress | None) -> dict[str, Images]:
    import torch

    from edgetta.corruption import CORRUPTIONS

    if data.images.dtype != torch.uint8 or data.images.shape[1] != 3:
        raise UsageError("--corrupted with a severity needs images of 3 channels as bytes; name a folder instead")
    return _corrupted(data, CORRUPTIONS, severity, progress)


def _corrupted(data: Labelled, names: Sequence[str], severity: int, progress: Progress | None) -> dict[str, Images]:
    import torch

    from edgetta.corruption import corrupt

    pixels = data.images.permute(0, 2, 3, 1).contiguous().numpy()
    found = {}
    for number, name in enumerate(names):
        changed = torch.from_numpy(corrupt(pixels, name, severity))
        found[name] = (changed.permute(0, 3, 1, 2).contiguous(), data.labels)
        if progress is not None:
            progress(number + 1, len(names))
    return found


def _published(folder: Path, limit: int | None, progress: Progress | None) -> dict[str, Images]:
    import numpy as np
    import torch

    from edgetta.sources.datasets import cifar10_c

    names = sorted(path.stem for path in folder.glob("*.npy") if path.stem != "labels")
    if not names:
        raise UsageError(f"{folder} holds labels.npy and no corruption beside it; give the whole set")
    found = {}
    for number, name in enumerate(names):
        parts = [cifar10_c(name, severity, folder=folder) for severity in range(1, 6)]
        rows = np.arange(len(parts[0]))
        if limit is not None and limit < len(rows):
            rows = np.arange(limit) * len(rows) // limit
        images = np.concatenate([part.images[rows] for part in parts])
        labels = np.concatenate([part.labels[rows] for part in parts])
        found[name] = (torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels))
        if progress is not None:
            progress(number + 1, len(names))
    return found


def _folders(
    folder: Path,
    input_shape: tuple[int, int, int],
    limit: int | None,
    progress: Progress | None,
    resize: Resize | None,
) -> dict[str, Images]:
    import torch

    from edgetta.sources.labelled import read_labelled

    corruptions = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found = {}
    for number, corruption in enumerate(corruptions):
        severities = sorted(
            entry for entry in corruption.iterdir() if entry.is_dir() and entry.name in ("1", "2", "3", "4", "5")
        )
        if not severities:
            raise UsageError(f"{corruption} has no sub-folders 1 to 5; --corrupted wants CORRUPTION/SEVERITY/CLASS")
        parts = [read_labelled(str(entry), input_shape, None, limit, None, resize) for entry in severities]
        found[corruption.name] = (torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))
        if progress is not None:
            progress(number + 1, len(corruptions))
    if not found:
        raise UsageError(f"--corrupted {folder}: the folder is empty; give the whole set")
    return found
