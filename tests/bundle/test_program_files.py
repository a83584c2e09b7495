"""The whole-network programs of a bundle: what was derived comes back, on every engine; what is forged is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from edgetta.bundle import open_engine, read_bundle
from edgetta.engines.contract import Mixing, Moments
from edgetta.engines.torch import TorchEngine
from tests.adaptation.backbones import small_programs
from tests.small_bundle import ENGINES, edit_graphs, edit_manifest, refused, replace_file, whole_bundle

WEIGHTS = "programs/weights.safetensors"


def images(count: int = 5) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).random((count, 3, 16, 16), np.float32)


@pytest.mark.parametrize("engine", ENGINES)
def test_programs_are_those_that_were_written(engine: str) -> None:
    """With the statistics of training, on both sides: so weights, statistics and their order are the shipped ones."""
    bundle, written = read_bundle(whole_bundle()), small_programs()
    programs = bundle.programs
    assert programs.parameters.shapes == written.parameters.shapes
    assert programs.statistics.shapes == written.statistics.shapes
    np.testing.assert_array_equal(programs.shipped, written.shipped)
    found = open_engine(bundle, engine).predict(images(), programs.shipped, programs.source)
    wanted = TorchEngine(written).predict(images(), written.shipped, written.source)
    assert np.abs(found - wanted).max() < 1e-5


@pytest.mark.parametrize("engine", ENGINES)
def test_every_program_runs(engine: str) -> None:
    bundle = read_bundle(whole_bundle())
    programs, opened = bundle.programs, open_engine(bundle, engine)
    before = Moments(programs.source.mean, programs.source.variance)
    logits, moments = opened.measure(images(), programs.shipped, Mixing.plain(before, 0.5))
    assert logits.shape == (5, 5) and moments.mean.shape == (programs.statistics.size,)
    passed = opened.forward(images(), programs.shipped, programs.source)
    found = opened.backward(passed.residuals, passed.logits, 0.5, programs.shipped)
    again = opened.recompute(images(), passed.logits, 0.5, programs.shipped, programs.source)
    assert found.shape == (programs.parameters.size,) and np.allclose(found, again, atol=1e-4)


def test_weights_are_stored_once() -> None:
    """Of five programs that read them: as large as the kernels of one network, and their turned forms."""
    bundle = read_bundle(whole_bundle())
    kernels = sum(c.nbytes for c in bundle.programs.predict.constants.values())
    shipped = bundle.programs.shipped.nbytes + 2 * bundle.programs.source.mean.nbytes
    assert (bundle.files.folder / WEIGHTS).stat().st_size < 2 * kernels + shipped + 6000  # names, and small constants


FORGERIES: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "an operator": ("predict", lambda g: g["nodes"][0].__setitem__(0, "System"), "System"),
    "outputs": ("forward", lambda g: g["outputs"].reverse(), "malformed"),
    "gradients": ("backward", lambda g: g["outputs"].pop(), "malformed"),
    "an input": ("measure", lambda g: g["inputs"].remove("share"), "malformed"),
    "a parameter's shape": ("layout", lambda g: g["parameters"][0].__setitem__(1, [1, 2, 3, 4]), "malformed"),
    "a parameter twice": ("layout", lambda g: g["parameters"].append(g["parameters"][0]), "malformed"),
    "a layer's name": ("layout", lambda g: g["statistics"][0].__setitem__(0, "another"), "malformed"),
    "a huge layout": ("layout", lambda g: g["parameters"][0].__setitem__(1, [1 << 40]), "malformed"),
    "a residual's kind": ("layout", lambda g: g["residuals"][0].update(kind="pickle"), "malformed"),
    "a residual is missing": ("layout", lambda g: g["residuals"].pop(), "malformed"),
}


@pytest.mark.parametrize("case", FORGERIES)
def test_forged_structure_is_refused(case: str, folder: Path) -> None:
    name, edit, word = FORGERIES[case]
    edit_graphs(folder, f"programs/{name}.json", edit)
    refused(folder, "programs/", word)


def test_a_program_that_is_missing_is_refused(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest["programs"]["graphs"].pop("measure"))
    refused(folder, "programs", "measure")


def test_forged_weights_are_refused(folder: Path) -> None:
    raw = (folder / WEIGHTS).read_bytes()
    arrays = load(raw)
    for name, array in (
        ("shipped", np.full_like(arrays["shipped"], np.nan)),
        ("source.mean", arrays["source.mean"][1:].copy()),
        ("source.variance", np.full_like(arrays["source.variance"], np.inf)),
    ):
        replace_file(folder, WEIGHTS, save({**arrays, name: array}))
        refused(folder, "programs/")
    for data in (b"", b"\xff" * 8, raw[:-4], (1 << 60).to_bytes(8, "little") + raw[8:]):
        replace_file(folder, WEIGHTS, data)
        refused(folder, "programs/")


def test_the_onnxruntime_engine_needs_no_torch() -> None:
    code = "import sys, edgetta.engines.onnxruntime, edgetta.engines.feeding; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
