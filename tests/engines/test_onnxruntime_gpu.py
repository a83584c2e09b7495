"""ONNX Runtime on a GPU, with a stand-in for it: providers, stream, bindings, and the numbers that come of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import edgetta
from edgetta.adaptation.config import AdaptConfig
from edgetta.bundle import engine_name, read_bundle
from edgetta.bundle import engines as bundle_engines
from edgetta.bundle.engines import engine_troubles
from edgetta.bundle.program_jobs import job_of
from edgetta.engines.gpu import GpuEngine
from edgetta.engines.onnxruntime_gpu import PROVIDERS, OnnxGpuProgram, provider_trouble
from edgetta.engines.torch import TorchEngine
from edgetta.errors import BundleError, MissingDependencyError
from tests.adaptation.backbones import small_programs
from tests.adaptation.pictures import pictures
from tests.engines.onnxruntime_double import STREAM, Double, install
from tests.engines.programs_of_networks import assert_agree, relative
from tests.engines.tensorrt.test_build import model_of
from tests.engines.tensorrt.test_engine import CPU, part
from tests.small_bundle import whole_bundle

CONFIG = AdaptConfig(learning_rate=1e-2, entropy_margin=1.0, hold_back=False)
ENGINES = tuple(PROVIDERS)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Double:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return install(monkeypatch)


@pytest.mark.parametrize("form", ["adaptive", "source"])
@pytest.mark.parametrize("engine", ENGINES)
def test_all_programs_as_torch(gpu: Double, engine: str, form: str) -> None:
    programs = small_programs(form=form)

    def make(name: str) -> tuple[OnnxGpuProgram, bool]:
        job = job_of(programs, name)
        return OnnxGpuProgram(job.model(), job.graph, name, engine, CPU), False

    one, other = TorchEngine(programs), GpuEngine(programs, engine, make, CPU)
    for batch in (4, 1, 7):
        assert_agree(one, other, batch)
    assert set(gpu.runs) == {"1"}, "no run waits until the GPU is done"


def test_options_of_the_providers(gpu: Double, tmp_path: Path) -> None:
    graph = part("vgg", "source", "meta").backward
    assert graph is not None
    OnnxGpuProgram(model_of(graph), graph, "b", "onnxruntime-cuda", CPU)
    OnnxGpuProgram(model_of(graph), graph, "b", "onnxruntime-tensorrt", CPU, (1, 4, 8), tmp_path / "b")
    (cuda, *rest), (tensorrt, *others) = gpu.sessions
    assert cuda[0] == "CUDAExecutionProvider" and rest == ["CPUExecutionProvider"]
    assert (cuda[1]["user_compute_stream"], cuda[1]["device_id"]) == (str(STREAM), "0")
    assert tensorrt[0] == "TensorrtExecutionProvider" and others == [cuda, "CPUExecutionProvider"]
    options = tensorrt[1]
    assert options["user_compute_stream"] == str(STREAM)
    shapes = dict(word.split(":") for word in options["trt_profile_max_shapes"].split(","))
    assert set(shapes) == {name for name in graph.inputs if graph.values[name].per_sample}
    assert shapes["grad_y"] == "8x" + "x".join(map(str, graph.values["grad_y"].shape[1:]))
    assert options["trt_profile_min_shapes"].startswith(f"{graph.inputs[0]}:1x")
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(tmp_path / "b")
    assert (tmp_path / "b").is_dir()


@pytest.mark.parametrize("engine", ENGINES)
def test_the_runtime_adapts_as_on_torch(gpu: Double, engine: str) -> None:
    found = []
    for name in ("torch", engine):
        runtime = edgetta.load(whole_bundle(), name, config=CONFIG)
        assert runtime.engine.name == name
        for seed in range(3):
            result = runtime.step(pictures(16, seed))
            assert result.adapted
        found.append((result.logits, runtime.source(pictures(16, 0)), runtime.adapter.state.parameters))
    for wanted, other in zip(*found, strict=True):
        np.testing.assert_allclose(other, wanted, rtol=1e-3, atol=1e-4)


def test_engines_of_different_programs_lie_apart(gpu: Double, tmp_path: Path) -> None:
    """The provider names its files by the graph; two programs may have graphs that look alike."""
    edgetta.load(whole_bundle(), "onnxruntime-tensorrt")
    paths = [session[0][1]["trt_engine_cache_path"] for session in gpu.sessions]
    assert len(set(paths)) == len(paths) == 4
    assert all(path.startswith(str(tmp_path / "cache" / "edgetta" / "engines" / "small-")) for path in paths)
    window = read_bundle(whole_bundle()).config.window
    assert gpu.sessions[0][0][1]["trt_profile_max_shapes"] == f"x:{window}x3x16x16"


def test_auto_takes_a_gpu(gpu: Double, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle = read_bundle(whole_bundle())
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(bundle_engines, "GPU_DEVICES", (str(tmp_path / "nvidia0"),))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert engine_name("auto", bundle) == "onnxruntime"  # the GPU is there, torch cannot use it
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert engine_name("auto", bundle) == engine_name("auto") == "onnxruntime-cuda"
    gpu.available.remove("CUDAExecutionProvider")
    assert engine_name("auto", bundle) == "torch-cuda"
    monkeypatch.setattr(bundle_engines, "GPU_DEVICES", ("/nowhere",))
    assert engine_name("auto", bundle) == "onnxruntime"


def test_troubles_of_every_engine(gpu: Double) -> None:
    troubles = engine_troubles()
    assert not any(troubles[name] for name in ("torch", "torch-cuda", "onnxruntime", *ENGINES))
    gpu.available = ["CPUExecutionProvider"]
    for name in ENGINES:
        assert "is built without" in engine_troubles()[name]


def test_torch_on_a_gpu_keeps_the_contract(gpu: Double) -> None:
    runtime = edgetta.load(whole_bundle(), "torch-cuda", config=CONFIG)
    assert (runtime.engine.name, runtime.engine.precision) == ("torch-cuda", "tf32")  # type: ignore[attr-defined]
    assert runtime.step(pictures(16, 0)).adapted


def test_a_build_without_the_provider(gpu: Double) -> None:
    gpu.available = ["CPUExecutionProvider"]
    assert "1.20.1 is built without CUDAExecutionProvider; uninstall it and install onnxruntime-gpu" in (
        provider_trouble("onnxruntime-cuda")
    )
    with pytest.raises(MissingDependencyError, match=r"the engine onnxruntime-cuda cannot be used: .*use onnxruntime"):
        edgetta.load(whole_bundle(), "onnxruntime-cuda")


def test_a_provider_that_does_not_start(gpu: Double) -> None:
    """ONNX Runtime then runs on the processor without a word."""
    gpu.started.remove("CUDAExecutionProvider")
    with pytest.raises(MissingDependencyError, match=r"could not start its CUDAExecutionProvider, mostly"):
        edgetta.load(whole_bundle(), "onnxruntime-cuda")


def test_a_model_that_is_refused(gpu: Double) -> None:
    graph = part("vgg", "source", "meta").forward
    model = model_of(graph)
    strange = replace(model, nodes=(replace(model.nodes[0], op="Strange"), *model.nodes[1:]))
    with pytest.raises(BundleError, match=r"ONNX Runtime refuses part1.forward: .*Strange.*try --engine torch-cuda"):
        OnnxGpuProgram(strange, graph, "part1.forward", "onnxruntime-cuda", CPU)


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ENGINES)
def test_on_a_gpu(engine: str, tmp_path: Path) -> None:
    trouble = provider_trouble(engine)
    if trouble:
        pytest.skip(trouble)
    one = edgetta.load(whole_bundle(), "torch", config=CONFIG)
    other = edgetta.load(whole_bundle(), engine, config=CONFIG, engine_cache=tmp_path)
    for seed in range(3):
        expected, found = one.step(pictures(16, seed)), other.step(pictures(16, seed))
        assert found.adapted and isinstance(found.logits, np.ndarray)
        assert relative(found.logits, expected.logits) < 2e-2
