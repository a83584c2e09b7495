"""Which networks the orders of frames know, and the images that each meets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgetta.bench.accuracy.camera_networks import METHODS, JpegCopy, Lossless, Photographs, architecture, network
from edgetta.bench.accuracy.images import ImageCache
from edgetta.bench.baselines import Source
from edgetta.errors import UsageError


def test_architectures() -> None:
    assert architecture("resnet20_jpegft") == "resnet20" and architecture("akamaster_resnet56") == "resnet56"
    assert architecture("mobilenet_v1_0.5_160_quant_dequant") == "mobilenet_v1_0.5_160"
    with pytest.raises(UsageError, match="vgg16"):
        architecture("vgg16")


def test_each_network_has_its_images(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path)
    assert isinstance(network("resnet20_jpegft", cache, 300, 0).pool, JpegCopy)
    assert isinstance(network("akamaster_resnet56", cache, 1000, 0).pool, Lossless)
    photographs = network("mobilenet_v1_0.5_160_quant_dequant", cache, 300, 0)
    assert isinstance(photographs.pool, Photographs) and photographs.pool.size == 160
    assert photographs.severities == (3, 4)


def test_the_copy_and_its_rest_share_no_image(tmp_path: Path, data_folder: Path) -> None:
    pool = network("resnet20_jpegft", ImageCache(tmp_path), 40, 1).pool
    rest, labels = pool.clean()
    assert len(rest) == len(labels) == 10_000 - 40
    assert pool.images("clean", 1).shape == (40, 32, 32, 3) and pool.images("fog", 5).shape == (40, 32, 32, 3)


def test_lossless_images_are_there_at_one_severity(data_folder: Path, tmp_path: Path) -> None:
    held = network("akamaster_resnet56", ImageCache(tmp_path), 50, 0)
    assert held.pool.images("fog", 5).shape == (50, 32, 32, 3) and len(held.pool.labels) == 50
    assert np.mean(held.source_predictions("clean", 0) != held.pool.labels) < 0.2
    with pytest.raises(UsageError, match="severity 5"):
        held.pool.images("fog", 3)
    with np.load(held.pool.calibration(tmp_path), allow_pickle=False) as written:
        assert written["images"].shape == (2000, 32, 32, 3)


def test_photographs_count_the_background(data_folder: Path, tmp_path: Path) -> None:
    held = network("mobilenet_v1_0.5_160_quant_dequant", ImageCache(tmp_path), 24, 0)
    assert held.pool.images("clean", 1).shape == (24, 160, 160, 3)
    assert np.mean(held.source_predictions("clean", 0) != held.pool.labels) < 0.6
    assert isinstance(held.method("source"), Source)
    with pytest.raises(UsageError, match="magic"):
        held.method("magic")
    assert set(METHODS) >= {"source", "edgetta"}
