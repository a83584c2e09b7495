"""The TensorRT engine on a GPU: `pytest -m gpu`, where there is one and TensorRT; skipped with the reason elsewhere.

What the double stands in for is done in earnest here: engines are built, run and compared with the torch engine.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import edgetta
from edgetta.bundle.engines import engine_of
from edgetta.bundle.tensorrt_engines import TensorRTConfig
from edgetta.segmented.adapter import AdaptConfig
from edgetta.segments.contract import GradientMode
from edgetta.segments.gpu_segment import GpuSegment
from edgetta.segments.tensorrt.build import BuildOptions, build_engine
from edgetta.segments.tensorrt.library import tensorrt_trouble
from edgetta.segments.tensorrt.program import GraphedProgram, TensorRTProgram
from edgetta.segments.torch_engine import TorchSegment
from tests.segments.tensorrt.test_build import model_of
from tests.segments.tensorrt.test_engine import inputs, part
from tests.small_bundle import whole_bundle

pytestmark = pytest.mark.gpu
LIMIT = {"fp32": 1e-4, "fp16": 2e-2}


@pytest.fixture(autouse=True)
def gpu() -> torch.device:
    trouble = tensorrt_trouble()
    if trouble:
        pytest.skip(trouble)
    return torch.device("cuda", torch.cuda.current_device())


def segment(name: str, policy: str, gradient: GradientMode, precision: str, device: torch.device) -> GpuSegment:
    graphs = part(name, policy)
    directions = {"exact": ["forward", "backward"], "recompute": ["forward", "recompute"], "local": ["forward"]}
    programs = {}
    for direction in directions[gradient]:
        graph = getattr(graphs, direction)
        built = build_engine(model_of(graph), direction, BuildOptions(precision, (1, 4, 8)))  # type: ignore[arg-type]
        programs[direction] = TensorRTProgram(built.data, graph, device, direction)
    return GpuSegment("tensorrt", graphs, programs, gradient, device, set(programs) if precision == "fp16" else ())


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    difference = (found.double().cpu() - expected.double().cpu()).norm()
    return float(difference / expected.double().cpu().norm().clamp_min(1e-12))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("gradient", ["exact", "recompute"])
@pytest.mark.parametrize(("name", "policy"), [("wide_resnet", "ema"), ("vgg", "source"), ("gates", "source")])
def test_step_by_step_as_torch(
    gpu: torch.device, name: str, policy: str, gradient: GradientMode, precision: str
) -> None:
    graphs = part(name, policy)
    one, other = TorchSegment(graphs, gradient), segment(name, policy, gradient, precision, gpu)
    for batch in (4, 2, 7):
        x, grad_y = inputs(graphs, batch)
        y, kept = one.forward(x, momentum=0.2)
        y_other, kept_other = other.forward(x.to(gpu), momentum=0.2)
        assert y_other.device == gpu
        assert error(y_other, y) < LIMIT[precision]
        assert kept_other.kept_bytes() == kept.kept_bytes()
        if gradient == "exact":  # the same masks for both: a flipped one is no error of the backward
            kept_other.kept = {key: tensor.to(gpu) for key, tensor in kept.kept.items()}
        found, biases = one.input_gradient(kept, grad_y)
        found_other, biases_other = other.input_gradient(kept_other, grad_y.to(gpu))
        assert error(found_other, found) < LIMIT[precision] * (1 if gradient == "exact" else 10)
        assert biases_other.keys() == biases.keys()
        for key, tensor in one.state.items():
            assert error(other.state[key], tensor) < LIMIT[precision]


def test_cuda_graphs_compute_the_same(gpu: torch.device) -> None:
    graphs = part("vgg", "source", "meta")
    built = build_engine(model_of(graphs.forward), "forward", BuildOptions("fp32", (1, 4, 8)))
    plain = TensorRTProgram(built.data, graphs.forward, gpu, "forward")
    graphed = GraphedProgram(TensorRTProgram(built.data, graphs.forward, gpu, "forward"))
    for batch in (4, 2, 4):
        x = inputs(graphs, batch)[0].to(gpu)
        pairs = zip(
            plain.run({"x": x}, graphs.forward.outputs), graphed.run({"x": x}, graphs.forward.outputs), strict=True
        )
        assert all(torch.equal(a, b) for a, b in pairs)


def test_engines_run_on_any_stream(gpu: torch.device) -> None:
    made = segment("vgg", "source", "local", "fp32", gpu)
    x = inputs(part("vgg", "source"), 4)[0].to(gpu)
    expected = made.forward(x)[0]
    with torch.cuda.stream(torch.cuda.Stream(gpu)):
        x2 = x * 2 / 2
        found = made.forward(x2)[0]
        torch.cuda.current_stream(gpu).synchronize()
    assert error(found, expected) < 1e-6


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_the_runtime_adapts_as_on_torch(gpu: torch.device, tmp_path: Path, precision: str, cuda_graphs: bool) -> None:
    config = AdaptConfig(learning_rate=1e-2, entropy_margin=1.0)
    settings = TensorRTConfig(precision=precision, batch=(1, 16, 32), cuda_graphs=cuda_graphs)  # type: ignore[arg-type]
    bundle = whole_bundle()
    full = edgetta.load(bundle, "torch", config=config)
    fast = edgetta.load(bundle, "tensorrt", config=config, tensorrt=settings, engine_cache=tmp_path)
    assert engine_of(fast.network) == "tensorrt"
    for seed in range(4):
        images = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        result, expected = fast.step(images), full.step(images)
        assert result.adapted
        assert error(result.logits, expected.logits) < 10 * LIMIT[precision]
    assert error(fast.source(images), full.source(images)) < LIMIT[precision]
    again = edgetta.load(bundle, "tensorrt", config=config, tensorrt=settings, engine_cache=tmp_path)
    assert again.step(images).logits.shape == (16, 5)


def test_the_torch_engine_on_a_gpu() -> None:
    config = AdaptConfig(learning_rate=1e-2, entropy_margin=1.0)
    one, other = (edgetta.load(whole_bundle(), engine, config=config) for engine in ("torch", "torch-cuda"))
    for seed in range(3):
        images = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        assert error(other.step(images).logits, one.step(images).logits) < 1e-2
