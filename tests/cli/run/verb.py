"""`edgetta run` on the small bundle, and what it printed and wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetta.cli import main
from tests.small_bundle import whole_bundle

Captured = pytest.CaptureFixture[str]


def picture(seed: int, shape: tuple[int, ...] = (16, 16, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def run(*arguments: object, bundle: Path | None = None) -> int:
    return main(["run", str(bundle or whole_bundle()), *map(str, arguments), "--engine", "torch"])


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def error_of(capsys: Captured) -> str:
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("edgetta: error: ")
    return line
