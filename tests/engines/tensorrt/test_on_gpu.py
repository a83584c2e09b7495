"""The TensorRT engine on a GPU: `pytest -m gpu`, where there is one and TensorRT; skipped with the reason elsewhere.

What the double stands in for is done in earnest here: engines are built, run and compared with the torch engine.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import edgetta
from edgetta.adaptation.config import AdaptConfig
from edgetta.bundle.program_jobs import job_of
from edgetta.bundle.tensorrt_engines import TensorRTConfig
from edgetta.engines.contract import ProgramSet
from edgetta.engines.gpu import GpuEngine
from edgetta.engines.tensorrt.build import BuildOptions, build_engine
from edgetta.engines.tensorrt.library import tensorrt_trouble
from edgetta.engines.tensorrt.program import GraphedProgram, TensorRTProgram
from edgetta.engines.torch import TorchEngine
from tests.adaptation.pictures import pictures
from tests.engines.programs_of_networks import assert_agree, generic, gradient, images, programs_of, relative
from tests.engines.tensorrt.test_build import model_of
from tests.engines.tensorrt.test_engine import inputs, part
from tests.small_bundle import whole_bundle

pytestmark = pytest.mark.gpu
LIMIT = {"fp32": 1e-4, "fp16": 2e-2}
CONFIG = AdaptConfig(learning_rate=1e-2, entropy_margin=1.0, hold_back=False)


@pytest.fixture(autouse=True)
def gpu() -> torch.device:
    trouble = tensorrt_trouble()
    if trouble:
        pytest.skip(trouble)
    return torch.device("cuda", torch.cuda.current_device())


def engine(programs: ProgramSet, precision: str, device: torch.device) -> GpuEngine:
    def make(name: str) -> tuple[TensorRTProgram, bool]:
        job = job_of(programs, name)
        built = build_engine(job.model(), name, BuildOptions(precision, (1, 4, 8)))  # type: ignore[arg-type]
        return TensorRTProgram(built.data, job.graph, device, name), precision == "fp16"

    return GpuEngine(programs, "tensorrt", make, device, precision)


@pytest.mark.parametrize(
    ("name", "form"), [("wide_resnet", "adaptive"), ("mobile", "source"), ("transformer", "source")]
)
def test_all_programs_as_torch(gpu: torch.device, name: str, form: str) -> None:
    programs = programs_of(name, form)
    one, other = TorchEngine(programs), engine(programs, "fp32", gpu)
    for batch in (4, 2, 7):
        assert_agree(one, other, batch, LIMIT["fp32"])


@pytest.mark.parametrize("name", ["wide_resnet", "mobile"])
def test_float16_computes_as_torch(gpu: torch.device, name: str) -> None:
    programs = programs_of(name)
    one, other = TorchEngine(programs), engine(programs, "fp16", gpu)
    (parameters, statistics), batch = generic(programs), images(programs, 4)
    passed, found = (e.forward(batch, parameters, statistics) for e in (one, other))
    assert relative(found.logits, passed.logits) < LIMIT["fp16"]
    assert found.residuals.nbytes == passed.residuals.nbytes
    # The same masks for both: a flipped one is no error of the backward.
    found.residuals.kept = {key: tensor.to(gpu) for key, tensor in passed.residuals.kept.items()}
    expected = one.backward(passed.residuals, gradient(programs, 4), 0.3, parameters)
    assert relative(other.backward(found.residuals, gradient(programs, 4), 0.3, parameters), expected) < LIMIT["fp16"]
    assert other.overflows == 0


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
    programs = programs_of("wide_resnet")
    made, (parameters, statistics), batch = engine(programs, "fp32", gpu), generic(programs), images(programs, 4)
    expected = made.predict(batch, parameters, statistics)
    with torch.cuda.stream(torch.cuda.Stream(gpu)):
        found = made.predict(batch, parameters, statistics)
    assert relative(found, expected) < 1e-6


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_the_runtime_adapts_as_on_torch(gpu: torch.device, tmp_path: Path, precision: str, cuda_graphs: bool) -> None:
    settings = TensorRTConfig(precision=precision, batch=(1, 16, 32), cuda_graphs=cuda_graphs)  # type: ignore[arg-type]
    bundle = whole_bundle()
    full = edgetta.load(bundle, "torch", config=CONFIG)
    fast = edgetta.load(bundle, "tensorrt", config=CONFIG, tensorrt=settings, engine_cache=tmp_path)
    assert fast.engine.name == "tensorrt"
    for seed in range(4):
        result, expected = fast.step(pictures(16, seed)), full.step(pictures(16, seed))
        assert result.adapted
        assert relative(result.logits, expected.logits) < 10 * LIMIT[precision]
    assert relative(fast.source(pictures(16, 0)), full.source(pictures(16, 0))) < LIMIT[precision]
    again = edgetta.load(bundle, "tensorrt", config=CONFIG, tensorrt=settings, engine_cache=tmp_path)
    assert again.step(pictures(16, 0)).logits.shape == (16, 5)


def test_the_torch_engine_on_a_gpu() -> None:
    one, other = (edgetta.load(whole_bundle(), engine, config=CONFIG) for engine in ("torch", "torch-cuda"))
    for seed in range(3):
        logits = other.step(pictures(16, seed)).logits
        assert isinstance(logits, np.ndarray)
        assert relative(logits, one.step(pictures(16, seed)).logits) < 1e-2
