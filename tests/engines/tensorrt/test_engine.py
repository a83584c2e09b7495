"""The TensorRT engine does what the torch engine does, on every interface of TensorRT from 8.5 to 11.4."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from edgetta.bench.exactness.reference import randomise
from edgetta.bundle.program_jobs import job_of
from edgetta.engines.contract import ProgramSet
from edgetta.engines.gpu import GpuEngine, GradientScale
from edgetta.engines.tensorrt.build import BuildOptions, build_engine
from edgetta.engines.tensorrt.program import EngineRejectedError, TensorRTProgram
from edgetta.engines.torch import TorchEngine
from edgetta.errors import EdgettaError, MissingDependencyError, UsageError
from edgetta.export.batch_norm import settle
from edgetta.export.cut import cut
from edgetta.export.differentiate import differentiate
from edgetta.export.onnx_writer import to_onnx
from edgetta.export.quantise import quantise
from edgetta.export.trace import trace
from edgetta.segments.contract import SegmentGraphs
from edgetta.segments.graph import Graph
from edgetta.segments.onnx_model import parse_onnx
from tests.adaptation.backbones import small_programs
from tests.engines.programs_of_networks import (
    assert_agree,
    generic,
    gradient,
    images,
    relative,
)
from tests.engines.tensorrt.double import VERSIONS, Double, install
from tests.export.small_networks import SMALL

CPU = torch.device("cpu")


@functools.cache
def part(name: str, policy: str, adapt: str = "bias", int8: bool = False) -> SegmentGraphs:
    torch.manual_seed(0)
    pieces = cut(trace(randomise(SMALL[name].build()).eval(), SMALL[name].input_shape), SMALL[name].cuts)
    frozen = settle(pieces.parts[-1], policy, adapt)  # type: ignore[arg-type]
    if int8:
        frozen = replace(frozen, graph=quantise(frozen.graph, dict.fromkeys(frozen.graph.values, 8.0)))
    return differentiate(frozen)


def inputs(graphs: SegmentGraphs, batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return (
        torch.randn(graphs.input.with_batch(batch), generator=generator),
        torch.randn(graphs.output.with_batch(batch), generator=generator),
    )


def program(graph: Graph, precision: str = "fp32", batch: tuple[int, int, int] = (1, 4, 8)) -> TensorRTProgram:
    outputs = [name for name in graph.outputs if name not in graph.inputs]
    model = parse_onnx(to_onnx(graph, "graph").SerializeToString()).only(outputs)
    built = build_engine(model, "part1.forward", BuildOptions(precision, batch))  # type: ignore[arg-type]
    return TensorRTProgram(built.data, graph, CPU, "part1.forward")


def engine(programs: ProgramSet, precision: str = "fp32", batch: tuple[int, int, int] = (1, 4, 8)) -> GpuEngine:
    def make(name: str) -> tuple[TensorRTProgram, bool]:
        job = job_of(programs, name)
        built = build_engine(job.model(), name, BuildOptions(precision, batch))  # type: ignore[arg-type]
        return TensorRTProgram(built.data, job.graph, CPU, name), precision == "fp16"

    return GpuEngine(programs, "tensorrt", make, CPU, precision)


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Double:
    return install(monkeypatch, request.param)


@pytest.fixture
def newest(monkeypatch: pytest.MonkeyPatch) -> Double:
    return install(monkeypatch, VERSIONS[-1])


@pytest.mark.parametrize("form", ["adaptive", "source"])
def test_all_programs_as_torch(trt: Double, form: str) -> None:
    """Three batches of different sizes: logits, moments, gradients and kept bytes agree."""
    programs = small_programs(form=form)
    one, other = TorchEngine(programs), engine(programs)
    for batch in (4, 1, 7):
        assert_agree(one, other, batch)
    assert other.overflows == 0 and (other.name, other.precision) == ("tensorrt", "fp32")


def test_a_program_is_made_when_it_is_first_used(newest: Double) -> None:
    programs = small_programs()
    made = engine(programs)
    assert newest.builds == 0
    parameters, statistics = generic(programs)
    for _ in range(2):
        made.predict(images(programs, 4), parameters, statistics)
        assert newest.builds == 1


def test_only_names_that_the_version_has_are_used(trt: Double) -> None:
    """The double raises for others; here, that each version gets what only it has."""
    graphs = part("vgg", "source", "meta")
    program(graphs.forward).run({"x": inputs(graphs, 2)[0]}, graphs.forward.outputs[:1])
    used = {f"{owner}.{name}" for owner, name, _ in trt.calls}
    version = tuple(int(n) for n in trt.__version__.split(".")[:2])
    assert ("IBuilderConfig.builder_optimization_level" in used) == (version >= (8, 6))
    assert ("ICudaEngine.create_execution_context" in used) == (version >= (10, 0))
    assert ("IExecutionContext.set_device_memory" in used) == (version >= (10, 1))
    assert ("IExecutionContext.device_memory" in used) == (version < (10, 1))


def test_inputs_of_another_type_or_layout_are_converted(newest: Double) -> None:
    """The engine reads raw memory; doubles and transposed tensors must not be read as they lie.

    Converted copies must outlive the call that enqueues the engine.
    """
    newest.watch_lifetimes = True
    graphs = part("vgg", "source", "meta")
    assert graphs.backward is not None
    x, grad_y = inputs(graphs, 2)
    forward, backward = program(graphs.forward), program(graphs.backward)
    names = [name for name in graphs.forward.outputs if name not in graphs.forward.inputs]
    y, *residuals = forward.run({"x": x}, names)
    kept = {"x": x, **dict(zip(names[1:], residuals, strict=True))}
    given = {name: kept[name] for name in graphs.backward.inputs if name in kept}
    expected = backward.run({**given, "grad_y": grad_y}, graphs.backward.outputs)[0]
    turned = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    for other in (x.double(), turned):
        assert torch.equal(forward.run({"x": other}, names)[0], y)
        found = backward.run({**given, "grad_y": grad_y.to(other.dtype)}, graphs.backward.outputs)[0]
        assert torch.equal(found, expected)


def test_shapes_are_set_when_they_change(newest: Double) -> None:
    graphs = part("vgg", "source", "meta")
    made = program(graphs.forward)
    for batch in (2, 2, 3):
        made.run({"x": inputs(graphs, batch)[0]}, graphs.forward.outputs[:1])
    assert [call[2][1][0] for call in newest.calls if call[1] == "set_input_shape"] == [2, 3]


@pytest.mark.parametrize("member", ["set_input_shape", "set_tensor_address", "execute_async_v3"])
def test_every_refusal_is_noticed(newest: Double, member: str) -> None:
    graphs = part("vgg", "source", "meta")
    made = program(graphs.forward)
    newest.fail.add(member)
    with pytest.raises(EdgettaError, match=r"TensorRT failed in part1.forward: .*try --engine onnxruntime"):
        made.run({"x": inputs(graphs, 2)[0]}, graphs.forward.outputs[:1])
    newest.fail.clear()
    made.run({"x": inputs(graphs, 2)[0]}, graphs.forward.outputs[:1])


def test_a_batch_outside_the_profile_names_the_remedy(newest: Double) -> None:
    graphs = part("vgg", "source", "meta")
    made = program(graphs.forward, batch=(2, 4, 8))
    for batch, remedy in ((1, "1,2,8"), (9, "2,8,9")):
        with pytest.raises(UsageError, match=f"batches of 2 to 8 images, and this one has {batch}.*--batch {remedy}`"):
            made.run({"x": inputs(graphs, batch)[0]}, graphs.forward.outputs[:1])


@pytest.mark.parametrize("wrong", [b"no engine", b""])
def test_an_engine_that_is_none_is_rejected(trt: Double, wrong: bytes) -> None:
    with pytest.raises(EngineRejectedError, match=rf"TensorRT {trt.__version__} refuses the engine: Serialization"):
        TensorRTProgram(wrong, part("vgg", "source", "meta").forward, CPU, "part1.forward")


def test_the_engine_of_another_program_is_rejected(newest: Double) -> None:
    one, other = part("vgg", "source", "meta").backward, part("vgg", "source", "meta").forward
    assert one is not None
    built = build_engine(parse_onnx(to_onnx(one, "one").SerializeToString()), "one", BuildOptions("fp32", (1, 4, 8)))
    with pytest.raises(EngineRejectedError, match="other inputs and outputs"):
        TensorRTProgram(built.data, other, CPU, "other")


def test_a_runtime_that_does_not_start_names_the_driver(newest: Double) -> None:
    newest.fail.add("Runtime")
    with pytest.raises(MissingDependencyError, match="driver is too old for it: update the driver"):
        TensorRTProgram(b"", part("vgg", "source", "meta").forward, CPU, "part1.forward")


@pytest.mark.parametrize("size", [1e-9, 1.0, 3e4])
def test_float16_gradients_are_scaled_into_range(newest: Double, size: float) -> None:
    """Gradients far below float16's smallest number, and far above, come out as in float32."""
    programs = small_programs()
    exact, half = TorchEngine(programs), engine(programs, "fp16")
    parameters, statistics = generic(programs)
    batch, incoming = images(programs, 4), np.float32(size) * gradient(programs, 4)
    first, second = (exact.forward(batch, parameters, statistics).residuals for _ in range(2))  # the same masks
    expected = exact.backward(first, incoming, 0.3 * size, parameters)
    found = half.backward(second, incoming, 0.3 * size, parameters)
    assert relative(found / size, expected / size) < 5e-3
    again = half.recompute(batch, incoming, 0.3 * size, parameters, statistics)
    assert relative(again / size, expected / size) < 0.2  # a few masks flip
    assert half.overflows == 0


def test_float16_predicts_and_measures(newest: Double) -> None:
    programs = small_programs()
    exact, half = TorchEngine(programs), engine(programs, "fp16")
    parameters, statistics = generic(programs)
    passed, found = (e.forward(images(programs, 4), parameters, statistics) for e in (exact, half))
    assert 1e-5 < relative(found.logits, passed.logits) < 1e-2
    assert passed.moments is not None and found.moments is not None
    assert relative(found.moments.variance, passed.moments.variance) < 1e-2


def test_overflow_is_counted_and_the_scale_lowered() -> None:
    scale = GradientScale(CPU)
    grad = torch.tensor([3.0, -1.0])
    seen: list[float] = []

    def amplify(scaled: Tensor) -> list[Tensor]:
        seen.append(float(scaled.abs().max()))
        return [(scaled * 2e4).half().float()]

    results = [scale.through(grad, amplify)[0] for _ in range(3)]
    assert not bool(torch.isfinite(results[0]).all())  # the adapter refuses the update
    assert torch.allclose(results[1], grad * 2e4, rtol=1e-3)
    assert torch.allclose(results[2], grad * 2e4, rtol=1e-3)
    assert seen == [12.0, 0.75, 0.75]
    assert int(scale.overflows) == 1


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_zero_and_nonfinite_gradients_pass_unscaled(value: float) -> None:
    scale = GradientScale(CPU)
    found = scale.through(torch.tensor([value, 0.0]), lambda grad: [grad])[0]
    assert torch.equal(found, torch.tensor([value, 0.0])) or (value != value and bool(found[0].isnan()))
    assert int(scale.overflows) == 0
