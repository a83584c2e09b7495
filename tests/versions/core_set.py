"""The core set: what must hold with every version that edgetta declares, run beside an installed wheel.

The file needs nothing of the other tests, so that a copy of it runs anywhere. `EDGETTA_CORE` names a folder that
`reference.py` wrote elsewhere: a bundle, images, and what was predicted for them there.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CORE = Path(os.environ["EDGETTA_CORE"])
TOLERANCE = 1e-4
BATCH = 32


def values(array: Any) -> np.ndarray:
    """numpy's view of a prediction, which is torch's where torch computes."""
    return np.asarray(array.detach() if hasattr(array, "detach") else array)


def run(*arguments: object) -> int:
    from edgetta.cli import main

    return main([str(argument) for argument in arguments])


def test_importing_loads_nothing_heavy() -> None:
    """First in the file, before anything else is loaded."""
    before = set(sys.modules)
    import edgetta
    import edgetta.cli

    assert edgetta.__version__
    heavy = {"torch", "onnx", "onnxruntime", "matplotlib", "scipy"} - before
    assert not heavy & set(sys.modules)


def test_the_bundle_passes_its_self_test() -> None:
    assert run("inspect", "--test", CORE / "bundle") == 0


def test_predictions_are_those_where_the_bundle_was_made() -> None:
    """Unadapted, and over three batches of which the later ones follow what the earlier ones taught."""
    import edgetta

    images = np.load(CORE / "images.npy")
    with np.load(CORE / "expected.npz") as expected:
        runtime = edgetta.load(CORE / "bundle", engine="onnxruntime", threads=1)
        np.testing.assert_allclose(values(runtime.source(images[:BATCH])), expected["source"], atol=TOLERANCE)
        for number in range(3):
            got = values(runtime(images[number * BATCH : (number + 1) * BATCH]))
            np.testing.assert_allclose(got, expected[f"batch{number}"], atol=TOLERANCE)
        assert np.abs(expected["adapted"] - expected["batch0"]).max() > 10 * TOLERANCE, "it adapted to something"
        np.testing.assert_allclose(values(runtime(images[:BATCH])), expected["adapted"], atol=TOLERANCE)


def test_a_stream_runs_and_continues(tmp_path: Path) -> None:
    rows, state, report = tmp_path / "rows.jsonl", tmp_path / "state.safetensors", tmp_path / "report.json"
    given = ("run", CORE / "bundle", CORE / "images.npy", "--batch", BATCH, "--engine", "onnxruntime")
    given += ("-o", rows, "--state", state, "--json", report, "--overwrite")
    assert run(*given) == 0
    assert len(rows.read_text().splitlines()) == len(np.load(CORE / "images.npy")) and state.is_file()
    assert run(*given) == 0
    assert json.loads(report.read_text())["frames"] == len(np.load(CORE / "images.npy"))


def test_the_examination_of_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    run("doctor", "--json")
    assert json.loads(capsys.readouterr().out)


def test_a_model_is_exported_and_runs(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="no torch here, which exports")
    pytest.importorskip("onnx", reason="no onnx here, which exports")
    if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 6):
        pytest.skip(f"torch {torch.__version__} is too old to export: 2.6 is the first")
    import edgetta

    model = f"{CORE / 'net.py'}:build"
    assert run("export", model, "-o", tmp_path / "bundle", *json.loads((CORE / "export.json").read_text())) == 0
    logits = values(edgetta.load(tmp_path / "bundle", engine="onnxruntime")(np.load(CORE / "images.npy")[:BATCH]))
    assert logits.shape == (BATCH, 3) and np.isfinite(logits).all()
