"""Real weights on real images reach the accuracy that was measured for them elsewhere."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from edgetta.models import Model, load_model


def _lossless(folder: Path) -> tuple[Tensor, Tensor]:
    """737 bit-exact CIFAR-10 test images in [0, 1]."""
    with np.load(folder / "cifar10_test_lossless_subset.npz", allow_pickle=False) as file:
        return _images(file["images"]), torch.from_numpy(file["labels"].astype(np.int64))


def _images(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def _jpeg(folder: Path, file: str, rows: list[int], side: int | None = None) -> Tensor:
    from PIL import Image

    with np.load(folder / file, allow_pickle=False) as archive:
        header = archive["header"].tobytes() if "header" in archive else b""
        data, offsets = archive["data"], archive["offsets"]
    pictures = []
    for row in rows:
        picture = Image.open(io.BytesIO(header + data[offsets[row] : offsets[row + 1]].tobytes())).convert("RGB")
        pictures.append(np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR) if side else picture))
    return _images(np.stack(pictures))


def _accuracy(model: Model, images: Tensor, labels: Tensor) -> float:
    """Per cent."""
    with torch.no_grad():
        answers = torch.cat([model.module(batch).argmax(1) for batch in images.split(64)])
    return 100 * float((answers == labels).float().mean())


@pytest.mark.parametrize(
    ("name", "file", "percent"),
    [
        ("resnet20", "akamaster_resnet20", 93.1),
        ("resnet8_mlperf", "mlperf_tiny_resnet8", 91.3),
        ("adv_resnet2b", "adv_resnet2b", 80.2),
        pytest.param("adv_resnet4b", "adv_resnet4b", 87.0, marks=pytest.mark.full),
        pytest.param("resnet44", "akamaster_resnet44", 94.3, marks=pytest.mark.full),
        pytest.param("resnet56", "akamaster_resnet56", 95.0, marks=pytest.mark.full),
    ],
)
def test_cifar10_lossless(data_folder: Path, name: str, file: str, percent: float) -> None:
    model = load_model(name, weights=data_folder / "weights" / f"{file}.npz")
    assert _accuracy(model, *_lossless(data_folder)) == pytest.approx(percent, abs=0.1)


def test_cifar10_jpeg_copy(data_folder: Path) -> None:
    """CIFAR-10 (JPEG-75 copy), 400 of the 10,000: the whole gives 88.8, four standard errors are 6.3."""
    rows = list(range(0, 10_000, 25))
    with np.load(data_folder / "cifar10_test_jpeg.npz", allow_pickle=False) as file:
        labels = torch.from_numpy(file["labels"].astype(np.int64))[rows]
    model = load_model("resnet20", weights=data_folder / "weights" / "resnet20_jpegft.npz")
    assert _accuracy(model, _jpeg(data_folder, "cifar10_test_jpeg.npz", rows), labels) == pytest.approx(88.8, abs=6.3)


@pytest.mark.parametrize(
    ("name", "percent"),
    [
        pytest.param("mobilenet_v2_1.0_224", 86.6, marks=pytest.mark.full),
        pytest.param("mobilenet_v1_0.75_192", 76.1, marks=pytest.mark.full),
        ("mobilenet_v1_0.5_160", 66.5),
    ],
)
def test_imagenet_photographs(data_folder: Path, name: str, percent: float) -> None:
    """60 of the 1,000 photographs: three standard errors are 13 to 18 points."""
    rows = list(range(0, 1000, 17))[:60]
    weights = data_folder / "weights" / f"{name}_quant_dequant.npz"
    model = load_model(name, weights=weights)
    assert model.num_classes == 1001
    images = _jpeg(data_folder, "nips17_imagenet1000_224_jpeg.npz", rows, model.input_shape[1])
    with np.load(data_folder / "nips17_imagenet1000_224_jpeg.npz", allow_pickle=False) as file:
        labels = torch.from_numpy(file["labels_1001"].astype(np.int64))[rows]
    tolerance = 300 * (percent / 100 * (1 - percent / 100) / len(rows)) ** 0.5
    assert _accuracy(model, images, labels) == pytest.approx(percent, abs=tolerance)
    with torch.no_grad():
        answers = model.module.get_submodule("stem.conv")(model.module.get_submodule("normalise")(images))
    norm = model.module.get_submodule("stem.bn")
    away = (answers.mean((0, 2, 3)) - norm.running_mean).abs() / (norm.running_var + norm.eps).sqrt()
    assert float(away.max()) < 0.2  # the statistics put back are those of such pictures
