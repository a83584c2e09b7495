"""The bundle of these tests, whole and to be damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.small_bundle import copy_of_it, whole_bundle


@pytest.fixture(scope="module")
def whole() -> Path:
    """A bundle that no test changes."""
    return whole_bundle()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle to damage."""
    return copy_of_it(tmp_path / "copy")
