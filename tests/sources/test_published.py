"""CIFAR's binary version and both layouts of Tiny-ImageNet, made small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgetta.errors import UsageError
from edgetta.sources.published import is_published, read_published
from edgetta.sources.source import SourceError

SHAPE = (3, 32, 32)


def cifar(folder: Path, hundred: bool) -> np.ndarray:
    rng = np.random.default_rng(0)
    records = rng.integers(0, 10, (30, 3072 + (2 if hundred else 1)), dtype=np.uint8)
    if hundred:
        records[:, 1] += 80
        records.tofile(folder / "train.bin")
        records[:6].tofile(folder / "test.bin")
    else:
        for number in range(5):
            records[6 * number : 6 * number + 6].tofile(folder / f"data_batch_{number + 1}.bin")
        records[:6].tofile(folder / "test_batch.bin")
    return records


@pytest.mark.parametrize("hundred", [False, True])
def test_binary_cifar(tmp_path: Path, hundred: bool) -> None:
    records = cifar(tmp_path, hundred)
    head = 2 if hundred else 1
    assert is_published(tmp_path)
    train, test = read_published(tmp_path, SHAPE)
    assert train.images.shape == (30, 3, 32, 32) and test.images.shape == (6, 3, 32, 32)
    assert torch.equal(train.images.flatten(1), torch.from_numpy(records[:, head:].copy()))
    assert train.labels.tolist() == records[:, head - 1].tolist()
    few, _ = read_published(tmp_path, SHAPE, limit=10)
    assert torch.equal(few.images, train.images[::3])
    with pytest.raises(UsageError, match="3x32x32"):
        read_published(tmp_path, (3, 64, 64))
    name = "train.bin" if hundred else "data_batch_3.bin"
    (tmp_path / name).write_bytes(b"12345")
    with pytest.raises(SourceError, match="5 bytes, no multiple of"):
        read_published(tmp_path, SHAPE)
    (tmp_path / name).unlink()
    with pytest.raises(SourceError, match="cannot be read"):
        read_published(tmp_path, SHAPE)


@pytest.mark.parametrize("layout", ["as published", "sorted"])
def test_tiny_imagenet(tmp_path: Path, layout: str) -> None:
    def save(path: Path, level: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (level, level, level)).save(path, quality=95)

    lines = []
    for number, name in enumerate(("n01", "n02", "n03")):
        for copy in range(2):
            save(tmp_path / "train" / name / "images" / f"{name}_{copy}.JPEG", 40 * number + 10)
            file = f"val_{5 - 2 * number - copy}.JPEG"
            save(tmp_path / "val" / ("images" if layout == "as published" else name) / file, 40 * number + 10)
            lines.append(f"{file}\t{name}\t0\t0\t63\t63\n")
    if layout == "as published":
        (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    assert is_published(tmp_path)
    train, test = read_published(tmp_path, (3, 64, 64))
    for part in (train, test):
        assert part.classes == ("n01", "n02", "n03") and sorted(part.labels.tolist()) == [0, 0, 1, 1, 2, 2]
        levels = part.images.float().mean((1, 2, 3))
        assert torch.allclose(levels, 40.0 * part.labels + 10, atol=3)
    if layout == "as published":
        (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines[1:]))
        with pytest.raises(SourceError, match="no known class for val_5"):
            read_published(tmp_path, (3, 64, 64))


def test_other_folders_are_none(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    assert not is_published(tmp_path)
