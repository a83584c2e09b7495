"""The folder that the core set reads: a small bundle, images, and what this machine predicts for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import edgetta
from edgetta.cli import main
from tests.tiny_model import CUTS, pictures, write_model

BATCH = 32
OPTIONS = ("--cuts", CUTS, "--input-size", "8", "--no-measure", "--quiet")


def write_reference(folder: Path) -> Path:
    """Export the tiny network, adapt it to a few batches, and note the logits."""
    model = write_model(folder)
    (folder / "export.json").write_text(json.dumps(OPTIONS))
    if code := main(["export", model, "-o", str(folder / "bundle"), *OPTIONS]):
        raise RuntimeError(f"the reference bundle cannot be written: edgetta export ended with {code}")
    images, _ = pictures(3 * BATCH)
    np.save(folder / "images.npy", images)
    runtime = edgetta.load(folder / "bundle", engine="onnxruntime", threads=1)
    found = {"source": runtime.source(images[:BATCH])}
    found |= {f"batch{number}": runtime(images[number * BATCH : (number + 1) * BATCH]) for number in range(3)}
    found["adapted"] = runtime(images[:BATCH])
    np.savez(folder / "expected.npz", **{name: _values(logits) for name, logits in found.items()})
    return folder


def _values(logits: Any) -> np.ndarray:
    return np.asarray(logits.detach() if hasattr(logits, "detach") else logits)
