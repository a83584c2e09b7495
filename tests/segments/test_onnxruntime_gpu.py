"""ONNX Runtime on a GPU, with a stand-in for it: providers, stream, bindings, and the numbers that come of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import edgetta
from edgetta.bundle import read_bundle
from edgetta.bundle.engines import engine_name, engine_of
from edgetta.errors import BundleError, MissingDependencyError
from edgetta.segmented.adapter import AdaptConfig
from edgetta.segments.gpu_segment import GpuSegment
from edgetta.segments.onnxruntime_gpu import PROVIDERS, OnnxGpuProgram, provider_trouble
from edgetta.segments.torch_engine import TorchSegment
from tests.segments.onnxruntime_double import STREAM, Double, install
from tests.segments.tensorrt.test_build import model_of
from tests.segments.tensorrt.test_engine import CPU, inputs, part
from tests.small_bundle import whole_bundle

ENGINES = tuple(PROVIDERS)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Double:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return install(monkeypatch)


@pytest.mark.parametrize("gradient", ["exact", "recompute"])
@pytest.mark.parametrize("engine", ENGINES)
def test_step_by_step_as_torch(gpu: Double, engine: str, gradient: str) -> None:
    graphs = part("wide_resnet", "ema")
    directions = {"exact": ("forward", "backward"), "recompute": ("forward", "recompute")}[gradient]
    programs = {
        d: OnnxGpuProgram(model_of(getattr(graphs, d)), getattr(graphs, d), d, engine, CPU) for d in directions
    }
    one = TorchSegment(graphs, gradient)  # type: ignore[arg-type]
    other = GpuSegment(engine, graphs, programs, gradient, CPU)  # type: ignore[arg-type]
    for batch in (4, 1, 7):
        x, grad_y = inputs(graphs, batch)
        (y, kept), (y_other, kept_other) = one.forward(x, momentum=0.2), other.forward(x, momentum=0.2)
        assert torch.allclose(y, y_other, rtol=1e-4, atol=1e-5)
        assert kept.kept_bytes() == kept_other.kept_bytes()
        (found, biases), (found_other, biases_other) = (
            one.input_gradient(kept, grad_y),
            other.input_gradient(kept_other, grad_y),
        )
        assert torch.allclose(found, found_other, rtol=1e-3, atol=1e-4)
        assert all(torch.allclose(biases[k], biases_other[k], rtol=1e-3, atol=1e-3) for k in biases)
        assert all(torch.allclose(one.state[k], other.state[k], rtol=1e-4, atol=1e-6) for k in one.state)
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
    config = AdaptConfig(learning_rate=1e-2, entropy_margin=1.0)
    found = []
    for name in ("torch", engine):
        runtime = edgetta.load(whole_bundle(), name, config=config)
        assert engine_of(runtime.network) == runtime.engine.name == name
        for seed in range(3):
            images = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
            result = runtime.step(images)
            assert result.adapted
        found.append((result.logits, runtime.source(images)))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-3, atol=1e-4)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-3, atol=1e-4)


def test_engines_of_different_segments_lie_apart(gpu: Double, tmp_path: Path) -> None:
    """The provider names its files by the graph; two segments may have graphs that look alike."""
    edgetta.load(whole_bundle(), "onnxruntime-tensorrt", check=False)
    paths = [session[0][1]["trt_engine_cache_path"] for session in gpu.sessions]
    assert len(set(paths)) == len(paths) == 8
    assert all(path.startswith(str(tmp_path / "cache" / "edgetta" / "engines" / "small-")) for path in paths)


def test_auto_takes_a_gpu(gpu: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = read_bundle(whole_bundle())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert engine_name("auto", bundle) == "onnxruntime-cuda"
    gpu.available.remove("CUDAExecutionProvider")
    assert engine_name("auto", bundle) == "torch-cuda"


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
    config = AdaptConfig(learning_rate=1e-2, entropy_margin=1.0)
    one = edgetta.load(whole_bundle(), "torch", config=config)
    other = edgetta.load(whole_bundle(), engine, config=config, engine_cache=tmp_path)
    for seed in range(3):
        images = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        expected, found = one.step(images), other.step(images)
        assert found.adapted and found.logits.is_cuda
        assert torch.allclose(found.logits.cpu(), expected.logits, rtol=2e-2, atol=2e-2)
