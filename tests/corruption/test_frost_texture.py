"""The ice is said to be what it is, fits every image, and a damaged file is an error rather than other ice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgetta.corruption import frost_source
from edgetta.corruption.frost_texture import frost_textures, procedural_textures
from edgetta.errors import EdgettaError

FILE = "frost_textures_0.2x.npz"


def test_synthetic_ice_is_the_same_every_time_and_looks_like_ice() -> None:
    textures = procedural_textures()
    assert all(np.array_equal(a, b) for a, b in zip(textures, procedural_textures(), strict=True))
    assert len({texture.tobytes() for texture in textures}) == len(textures) == 5
    for texture in textures:
        red, green, blue = texture.reshape(-1, 3).mean(axis=0)
        assert red <= green <= blue  # cold
        assert 15 < texture.astype(float).std(axis=(0, 1)).mean() < 60


def test_the_source_is_discoverable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGETTA_DATA", str(tmp_path))
    assert frost_source() == "procedural"
    stored = {f"frost{k}": np.full((60 + k, 100, 3), 40 * k, np.uint8) for k in range(1, 7)}
    np.savez(tmp_path / FILE, **stored)
    assert frost_source() == f"photographs ({FILE})"
    textures = frost_textures(32, 32, "cifar")
    assert [int(texture.max()) for texture in textures] == [40, 80, 120, 160, 200]  # the sixth is never drawn
    assert textures[0].shape == (61, 100, 3)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(("height", "width", "table"), [(32, 32, "cifar"), (64, 200, "cifar"), (224, 500, "imagenet")])
def test_textures_are_large_enough(
    stored: bool, height: int, width: int, table: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGETTA_DATA", str(tmp_path))
    if stored:
        np.savez(tmp_path / FILE, frost1=np.zeros((63, 112, 3), np.uint8))
    for texture in frost_textures(height, width, table):
        assert texture.shape[0] >= height and texture.shape[1] >= width


@pytest.mark.parametrize("content", [b"not a zip", None])
def test_a_damaged_file_is_named(content: bytes | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGETTA_DATA", str(tmp_path))
    if content is None:
        np.savez(tmp_path / FILE, frost1=np.zeros((63, 112), np.float32))
    else:
        (tmp_path / FILE).write_bytes(content)
    with pytest.raises(EdgettaError, match=f"{FILE}.*replace"):
        frost_textures(32, 32, "cifar")
