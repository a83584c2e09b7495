"""`edgetta run` on the small bundle, and what it printed and wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetta.cli import main
from tests.adaptation.pictures import pictures
from tests.small_bundle import whole_bundle

Captured = pytest.CaptureFixture[str]


def picture(seed: int, shape: tuple[int, ...] = (16, 16, 3)) -> np.ndarray:
    """A made-up picture, or several of them, as uint8 (..., H, W, 3); noise of any other shape."""
    if len(shape) < 3 or shape[-1] > 3:
        return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    count, size = (1 if len(shape) == 3 else shape[0]), -(-max(shape[-3:-1]) // 4) * 4
    found = pictures(min(count, 64), seed, size=size).transpose(0, 2, 3, 1)[:, : shape[-3], : shape[-2], : shape[-1]]
    whole = np.resize((found * 255).astype(np.uint8), (count, *shape[-3:]))
    return whole if len(shape) == 4 else whole[0]


def run(*arguments: object, bundle: Path | None = None) -> int:
    return main(["run", str(bundle or whole_bundle()), *map(str, arguments), "--engine", "torch"])


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def error_of(capsys: Captured) -> str:
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("edgetta: error: ")
    return line
