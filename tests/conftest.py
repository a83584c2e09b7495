"""Set-up for all tests: torchvision and timm importable beside a CPU-only torch, and the folder of measured data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgetta.models.torchvision_operators import define_missing_operators

define_missing_operators()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real images and trained weights that EDGETTA_DATA names; skips where there is none."""
    folder = Path(os.environ.get("EDGETTA_DATA") or "data")
    if not (folder / "weights").is_dir():
        pytest.skip(f"{folder} holds no measuring data: set EDGETTA_DATA to the folder with images and weights")
    return folder
