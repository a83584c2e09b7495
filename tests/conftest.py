"""Set-up for all tests: seeded randomness, timm importable beside a CPU-only torch, the folder of measured data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from edgetta.models.torchvision_operators import define_missing_operators
from tests.slow_tests import is_slow, listed

define_missing_operators()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `slow_tests.txt` names."""
    names = listed()
    for item in items:
        if is_slow(item.nodeid, names):
            item.add_marker("slow")


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
