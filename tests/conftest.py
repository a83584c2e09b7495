"""Set-up for all tests: seeded randomness, timm importable beside a CPU-only torch, the folder of measured data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from edgetta.models.torchvision_operators import define_missing_operators

define_missing_operators()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Networks are built from torch's generator: without this their weights depend on the tests that ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real images and trained weights that EDGETTA_DATA names; skips where there is none."""
    folder = Path(os.environ.get("EDGETTA_DATA") or "data")
    if not (folder / "weights").is_dir():
        pytest.skip(f"{folder} holds no measuring data: set EDGETTA_DATA to the folder with images and weights")
    return folder
