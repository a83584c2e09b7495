"""Bundles on the device: what was written comes back, and runs, on every engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetta.segmented.adapter import AdaptConfig, Adapter
from edgetta.bench.exactness.reference import randomise
from edgetta.bundle import build_network, read_bundle, self_test, source_program
from edgetta.errors import BundleError, MissingDependencyError, UsageError
from edgetta.export.derive import derive
from edgetta.segments.onnxruntime_engine import OnnxRuntimeSegment
from edgetta.segments.torch_engine import Program, TorchSegment
from tests.adaptation.backbones import small_model
from tests.export.small_networks import SMALL
from tests.small_bundle import ENGINES, NAMES, small_network, write_small

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("options", [{}, {"initialisation": "published", "adapt": "bias"}, {"form": "source"}])
def test_round_trip_of_the_model(tmp_path: Path, options: dict[str, Any]) -> None:
    model = small_model(**options)
    bundle = read_bundle(write_small(tmp_path / "small", model))
    for name, graphs in model.segments().items():
        found = bundle.model.segments()[name]
        assert found.residuals == graphs.residuals
        assert list(found.state.items()) == list(graphs.state.items()), "the order of the outputs depends on it"
        for direction in ("forward", "backward", "recompute"):
            graph, again = getattr(graphs, direction), getattr(found, direction)
            if graph is None:
                assert again is None
                continue
            assert json.loads(json.dumps(graph.to_json())) == json.loads(json.dumps(again.to_json()))
            assert all(torch.equal(again.constants[k], t.float()) for k, t in graph.constants.items())
        for kind in ("initial_state", "initial_affine"):
            tensors, others = getattr(graphs, kind), getattr(found, kind)
            assert list(tensors) == list(others) and all(torch.equal(others[k], t) for k, t in tensors.items())
    assert bundle.model.source.to_json()["inputs"] == ["x"]
    for field in ("metas", "cuts", "input_shape", "classes", "batch_norm"):
        assert getattr(bundle.model, field) == getattr(model, field)


def test_round_trip_of_the_rest(whole: Path) -> None:
    bundle = read_bundle(whole)
    assert bundle.path == whole and bundle.name == "small" and bundle.classes == NAMES
    assert bundle.config == AdaptConfig(learning_rate=3e-3, when="every 2")
    assert bundle.provenance == {"weights": "seeded"} and bundle.rate_law is None
    assert (bundle.batch_norm, bundle.ema_images, bundle.unlisted) == ("auto", 64, ())
    assert bundle.preprocessing["range"] == [0, 1] and bundle.preprocessing["channels"] == "RGB"
    assert bundle.manifest["schema"] == 2 and len(bundle.identity) == 64
    assert read_bundle(str(whole)).identity == bundle.identity


@pytest.mark.parametrize("gradient", ["exact", "recompute", "local"])
@pytest.mark.parametrize("engine", ENGINES)
def test_networks_are_those_that_were_written(whole: Path, engine: str, gradient: str) -> None:
    bundle = read_bundle(whole)
    network = build_network(bundle, engine, gradient, "batch")  # type: ignore[arg-type]
    kind = TorchSegment if engine == "torch" else OnnxRuntimeSegment
    assert all(isinstance(segment, kind) for segment in (network.stem, *network.parts, network.classifier))
    original = small_network(small_model(), "batch")
    for name, tensor in original.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
    expected, _ = original.forward(IMAGES, keep=False)
    found, _ = network.forward(IMAGES, keep=False)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    source = Program(small_model().source).run({"x": IMAGES})[0]
    torch.testing.assert_close(source_program(bundle, engine)(IMAGES), source, rtol=1e-4, atol=1e-4)


def test_both_engines_adapt_alike(whole: Path) -> None:
    bundle = read_bundle(whole)
    start = bundle.meta_tensors()
    ends = []
    for engine in ENGINES:
        network = build_network(bundle, engine)
        adapter = Adapter(network, AdaptConfig(learning_rate=1e-2, entropy_margin=1.0))
        for step in range(5):
            images = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(step))
            assert adapter.step(images).adapted
        ends.append(torch.cat([t.flatten() for k, t in network.state_dict().items() if k.startswith("metas.")]))
    begin = torch.cat([start[k].flatten() for k in network.state_dict() if k.startswith("metas.")])
    assert (ends[0] - ends[1]).norm() < 1e-3 * (ends[0] - begin).norm()


def test_policy_and_options(whole: Path, tmp_path: Path) -> None:
    network = small_network(small_model(), "ema")
    network.ema_images = 200
    bundle = read_bundle(write_small(tmp_path / "ema", network=network))
    built = build_network(bundle, "torch")
    assert (built.batch_norm, built.ema_images) == ("ema", 200)
    assert build_network(bundle, "torch", batch_norm="batch").batch_norm == "batch"
    for wrong in ({"engine": "tensorflow"}, {"gradient": "none"}, {"batch_norm": "never"}, {"threads": -1}):
        with pytest.raises(UsageError, match=str(next(iter(wrong.values())))):
            build_network(bundle, **wrong)  # type: ignore[arg-type]
    folded = read_bundle(write_small(tmp_path / "folded", small_model(form="source")))
    with pytest.raises(UsageError, match="BatchNorms folded"):
        build_network(folded, "torch", batch_norm="batch")


def test_engine_when_onnxruntime_is_not_here(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = read_bundle(whole)
    assert isinstance(build_network(bundle).stem, OnnxRuntimeSegment)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert isinstance(build_network(bundle).stem, TorchSegment)
    with pytest.raises(MissingDependencyError, match="pip install"):
        build_network(bundle, "onnxruntime")


def test_onnx_files(whole: Path) -> None:
    bundle = read_bundle(whole)
    assert bundle.onnx("part2", "backward") == (whole / "segments" / "02.backward.onnx").read_bytes()
    assert bundle.onnx("source")
    for segment, direction in (("part9", "forward"), ("stem", "backward"), ("source", "recompute")):
        with pytest.raises(UsageError, match="it has"):
            bundle.onnx(segment, direction)


@pytest.mark.parametrize("engine", ENGINES)
def test_files_that_change_under_a_running_process_do_not_reach_it(engine: str, folder: Path) -> None:
    """Emptied, cut short and overwritten in place: what runs is what was checked, and what was not yet is refused."""
    bundle = read_bundle(folder)
    images = bundle.reference()["images"]
    network = build_network(bundle, engine)
    before = network.forward(images, keep=False, track=False)[0]
    for file in sorted((folder / "segments").iterdir()):
        os.truncate(file, 0 if file.suffix == ".onnx" else 100)
    assert torch.equal(network.forward(images, keep=False, track=False)[0], before)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in network.parameters())
    if engine == "onnxruntime":
        with pytest.raises(BundleError, match="changed while it was read"):
            build_network(bundle, engine)


@pytest.mark.parametrize("name", sorted(set(SMALL) - {"vgg", "grouped", "odds"}))  # no meta-network fits those
def test_every_operator_travels(name: str, tmp_path: Path) -> None:
    """Attention, gates, pools: written, read, self-tested on each engine, and run."""
    small = SMALL[name]
    model = derive(randomise(small.build()).eval(), small.input_shape, small.cuts)
    bundle = read_bundle(write_small(tmp_path / "small", model, classes=None))
    images = torch.rand(3, *small.input_shape, generator=torch.Generator().manual_seed(0))
    logits = []
    for engine in ENGINES:
        network = build_network(bundle, engine)
        assert self_test(bundle, network).logits_error < 1e-4
        result = Adapter(network, AdaptConfig(entropy_margin=1.0, small_batch=1)).step(images)
        assert result.adapted
        logits.append(result.logits)
    assert torch.allclose(*logits, rtol=1e-3, atol=1e-4)


def test_the_device_imports_no_exporter(whole: Path) -> None:
    program = (
        "import sys\n"
        "from edgetta.bundle import build_network, read_bundle, self_test\n"
        "bundle = read_bundle(sys.argv[1])\n"
        "self_test(bundle, build_network(bundle, 'torch'))\n"
        "heavy = ('onnx', 'onnxruntime', 'scipy', 'timm', 'torchvision', 'edgetta.export', 'edgetta.offline')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", program, str(whole)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root, env=environment)
    assert done.stdout.strip() == "[]"
