"""Bundles on the device: what was written comes back, and runs, on every engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetta.adaptation.adapter import Adapter
from edgetta.adaptation.config import AdaptConfig
from edgetta.bench.exactness.reference import randomise
from edgetta.bundle import engine_name, open_engine, processor_engines, read_bundle, self_test
from edgetta.bundle import engines as bundle_engines
from edgetta.errors import BundleError, MissingDependencyError, UsageError
from edgetta.export.derive import derive
from tests.adaptation.backbones import SmallNet, small_programs
from tests.adaptation.pictures import pictures
from tests.export.small_networks import SMALL
from tests.small_bundle import ENGINES, NAMES, small_content, whole_bundle, write_small


def test_round_trip_of_everything(whole: Path) -> None:
    bundle = read_bundle(whole)
    assert bundle.path == whole and bundle.name == "small" and bundle.classes == NAMES
    assert bundle.config == AdaptConfig(learning_rate=3e-3, when="every 2", hold_back=False)
    assert bundle.provenance == {"weights": "seeded"} and bundle.rate_law is None
    assert (bundle.batch_norm, bundle.cuts, bundle.unlisted) == ("adaptive", SmallNet.cuts, ())
    assert (bundle.input_shape, bundle.class_count, bundle.precision) == ((3, 16, 16), 5, "fp32")
    assert bundle.preprocessing["range"] == [0, 1] and bundle.preprocessing["channels"] == "RGB"
    assert bundle.manifest["schema"] == 2 and len(bundle.identity) == 64
    assert read_bundle(str(whole)).identity == bundle.identity
    assert bundle.content is not None
    written, usual = small_content(small_programs()), bundle.content.usual
    np.testing.assert_allclose(bundle.content.explained(usual)[0], written.explained(usual)[0], rtol=1e-3, atol=1e-3)
    assert 12 * bundle.kept_bytes(1) < bundle.kept_bytes(16) <= 16 * bundle.kept_bytes(1)


@pytest.mark.parametrize("options", [{"initialisation": "published", "adapt": "bias"}, {"form": "source"}])
def test_other_forms_of_the_network_come_back(tmp_path: Path, options: dict[str, Any]) -> None:
    programs = small_programs(**options)
    bundle = read_bundle(write_small(tmp_path / "small", programs, content=None))
    assert bundle.content is None
    for engine in ENGINES:
        assert self_test(bundle, open_engine(bundle, engine)).gradient_error < 1e-3


def test_both_engines_adapt_alike(whole: Path) -> None:
    bundle = read_bundle(whole)
    ends = []
    for engine in ENGINES:
        config = AdaptConfig(learning_rate=1e-2, entropy_margin=1.0, hold_back=False)
        adapter = Adapter(open_engine(bundle, engine), config, bundle.content)
        for step in range(5):
            assert adapter.step(pictures(16, step)).adapted
        ends.append(adapter.state.parameters)
    begin = bundle.programs.shipped
    assert np.linalg.norm(ends[0] - ends[1]) < 1e-3 * np.linalg.norm(ends[0] - begin)


def test_engines_by_name(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = read_bundle(whole)
    assert [open_engine(bundle, name).name for name in ENGINES] == list(ENGINES)
    for wrong in ({"engine": "tensorflow"}, {"threads": -1}):
        with pytest.raises(UsageError, match=str(next(iter(wrong.values())))):
            open_engine(bundle, **wrong)  # type: ignore[arg-type]
    monkeypatch.setattr(bundle_engines, "GPU_DEVICES", ("/nowhere",))
    assert engine_name("auto", bundle) == "onnxruntime" and processor_engines() == ("onnxruntime", "torch")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert engine_name("auto", bundle) == "torch" and open_engine(bundle).name == "torch"
    with pytest.raises(MissingDependencyError, match="pip install"):
        open_engine(bundle, "onnxruntime")


@pytest.mark.parametrize("engine", ENGINES)
def test_files_that_change_under_a_running_process_do_not_reach_it(engine: str, folder: Path) -> None:
    """Emptied, cut short and overwritten in place: what runs is what was checked, and what was not yet is refused."""
    bundle = read_bundle(folder)
    opened, programs = open_engine(bundle, engine), bundle.programs
    frames = bundle.reference()["images"]
    before = opened.predict(frames, programs.shipped, programs.source)
    for file in sorted((folder / "programs").iterdir()):
        os.truncate(file, 0 if file.suffix == ".json" else 100)
    np.testing.assert_array_equal(opened.predict(frames, programs.shipped, programs.source), before)
    assert np.isfinite(opened.forward(frames, programs.shipped, programs.source).logits).all()
    with pytest.raises(BundleError):
        read_bundle(folder)


@pytest.mark.parametrize("name", sorted(set(SMALL) - {"vgg", "grouped", "odds"}))  # no meta-network fits those
def test_every_operator_travels(name: str, tmp_path: Path) -> None:
    """Attention, gates, pools: written, read, self-tested on each engine, and run."""
    small = SMALL[name]
    programs = derive(randomise(small.build()).eval(), small.input_shape, small.cuts).programs
    bundle = read_bundle(write_small(tmp_path / "small", programs, classes=None, content=None))
    images = np.random.default_rng(0).random((3, *small.input_shape), np.float32)
    logits = []
    for engine in ENGINES:
        opened = open_engine(bundle, engine)
        assert self_test(bundle, opened).logits_error < 1e-4
        result = Adapter(opened, AdaptConfig(entropy_margin=1.0, small_batch=1, hold_back=False)).step(images)
        assert result.adapted
        logits.append(result.logits)
    np.testing.assert_allclose(*logits, rtol=1e-3, atol=1e-4)


def _imported(program: str, *arguments: str) -> str:
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, env=environment)
    return done.stdout.strip()


def test_the_device_imports_no_exporter_and_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "import numpy as np\n"
        "import edgetta\n"
        "runtime = edgetta.load(sys.argv[1], 'onnxruntime')\n"
        "runtime(np.random.default_rng(0).random((32, 3, 16, 16), np.float32))\n"
        "runtime.save_state(sys.argv[2])\n"
        "runtime.load_state(sys.argv[2])\n"
        "heavy = ('torch', 'onnx', 'scipy', 'timm', 'torchvision', 'edgetta.export', 'edgetta.offline')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    assert _imported(program, str(whole_bundle()), str(tmp_path / "state")) == "[]"
