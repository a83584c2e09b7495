"""The bundle of these tests, whole and to be damaged, and the same random numbers in whatever order they run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.small_bundle import copy_of_it, whole_bundle


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Networks are built from torch's generator: without this their weights depend on the tests that ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def whole() -> Path:
    """A bundle that no test changes."""
    return whole_bundle()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle to damage."""
    return copy_of_it(tmp_path / "copy")
