"""Streams for `edgetta run`, and the engine that its tests use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.run.verb import picture


@pytest.fixture(autouse=True)
def torch_engine_without_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested here is the verb; engines and self-test have tests of their own."""
    monkeypatch.setattr("edgetta.runtime.self_test", lambda bundle, engine, gradients: None)
    monkeypatch.delenv("EDGETTA_DEBUG", raising=False)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of ten pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(10):
        Image.fromarray(picture(number)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def array(tmp_path: Path) -> Path:
    """Forty frames with labels."""
    path = tmp_path / "frames.npz"
    np.savez(path, images=picture(0, (40, 16, 16, 3)), labels=np.arange(40) % 5)
    return path
