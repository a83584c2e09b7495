"""The TensorRT engine does what the torch engine does, on every interface of TensorRT from 8.5 to 11.4."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from edgetta.bench.exactness.reference import randomise
from edgetta.errors import EdgettaError, MissingDependencyError, UsageError
from edgetta.export.batch_norm import settle
from edgetta.export.cut import cut
from edgetta.export.differentiate import differentiate
from edgetta.export.onnx_writer import to_onnx
from edgetta.export.quantise import quantise
from edgetta.export.trace import trace
from edgetta.segments.contract import GradientMode, SegmentGraphs
from edgetta.segments.gpu_segment import GpuSegment, GradientScale
from edgetta.segments.graph import Graph
from edgetta.segments.onnx_model import parse_onnx
from edgetta.segments.tensorrt.build import BuildOptions, build_engine
from edgetta.segments.tensorrt.program import EngineRejectedError, TensorRTProgram
from edgetta.segments.torch_engine import TorchSegment
from tests.export.small_networks import SMALL
from tests.segments.tensorrt.double import VERSIONS, Double, install

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


def segment(graphs: SegmentGraphs, gradient: GradientMode, precision: str = "fp32") -> GpuSegment:
    programs = {"forward": program(graphs.forward, precision)}
    if gradient != "local":
        direction = {"exact": "backward", "recompute": "recompute"}[gradient]
        programs[direction] = program(getattr(graphs, direction), precision)
    return GpuSegment("tensorrt", graphs, programs, gradient, CPU, set(programs) if precision == "fp16" else ())


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Double:
    return install(monkeypatch, request.param)


@pytest.fixture
def newest(monkeypatch: pytest.MonkeyPatch) -> Double:
    return install(monkeypatch, VERSIONS[-1])


@pytest.mark.parametrize("gradient", ["exact", "recompute"])
def test_step_by_step_as_torch(trt: Double, gradient: GradientMode) -> None:
    """Three batches of different sizes, statistics moving: outputs, gradients, state and kept bytes agree."""
    graphs = part("wide_resnet", "ema")
    one, other = TorchSegment(graphs, gradient), segment(graphs, gradient)
    for batch in (4, 1, 7):
        x, grad_y = inputs(graphs, batch)
        mine = [x.clone(), grad_y.clone()]
        (y, kept), (y_other, kept_other) = one.forward(x, momentum=0.2), other.forward(x, momentum=0.2)
        assert torch.allclose(y, y_other, rtol=1e-4, atol=1e-5)
        assert kept.kept_bytes() == kept_other.kept_bytes() == graphs.kept_bytes(batch, gradient)
        assert kept.kept.keys() == kept_other.kept.keys()
        assert kept.shared.keys() == kept_other.shared.keys()
        (found, biases), (found_other, biases_other) = (
            one.input_gradient(kept, grad_y),
            other.input_gradient(kept_other, grad_y),
        )
        assert torch.allclose(found, found_other, rtol=1e-3, atol=1e-4)
        assert biases.keys() == biases_other.keys() == graphs.initial_affine.keys()
        assert all(torch.allclose(biases[k], biases_other[k], rtol=1e-3, atol=1e-3) for k in biases)
        assert all(torch.allclose(one.state[k], other.state[k], rtol=1e-4, atol=1e-6) for k in one.state)
        assert torch.equal(x, mine[0])
        assert torch.equal(grad_y, mine[1])


def test_only_names_that_the_version_has_are_used(trt: Double) -> None:
    """The double raises for others; here, that each version gets what only it has."""
    segment(part("vgg", "source", "meta"), "exact").forward(inputs(part("vgg", "source", "meta"), 2)[0])
    used = {f"{owner}.{name}" for owner, name, _ in trt.calls}
    version = tuple(int(n) for n in trt.__version__.split(".")[:2])
    assert ("IBuilderConfig.builder_optimization_level" in used) == (version >= (8, 6))
    assert ("ICudaEngine.create_execution_context" in used) == (version >= (10, 0))
    assert ("IExecutionContext.set_device_memory" in used) == (version >= (10, 1))
    assert ("IExecutionContext.device_memory" in used) == (version < (10, 1))


def test_unkept_and_local_forwards_keep_nothing(newest: Double) -> None:
    graphs = part("wide_resnet", "ema")
    x, grad_y = inputs(graphs, 2)
    local = segment(graphs, "local")
    _, residuals = local.forward(x)
    assert residuals.kept_bytes() == 0
    with pytest.raises(RuntimeError, match="no backward"):
        local.input_gradient(residuals, grad_y)
    assert segment(graphs, "exact").forward(x, keep=False)[1].kept == {}


def test_inputs_of_another_type_or_layout_are_converted(newest: Double) -> None:
    """The engine reads raw memory; doubles and transposed tensors must not be read as they lie.

    Converted copies must outlive the call that enqueues the engine.
    """
    newest.watch_lifetimes = True
    graphs = part("vgg", "source", "meta")
    x, grad_y = inputs(graphs, 2)
    made = segment(graphs, "exact")
    y, residuals = made.forward(x)
    expected = made.input_gradient(residuals, grad_y)[0]
    turned = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    for other in (x.double(), turned):
        again, residuals = made.forward(other)
        assert torch.equal(again, y)
        assert torch.equal(made.input_gradient(residuals, grad_y.to(other.dtype))[0], expected)


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


def test_the_engine_of_another_segment_is_rejected(newest: Double) -> None:
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
    graphs = part("vgg", "source")
    exact, half = TorchSegment(graphs, "exact"), segment(graphs, "exact", "fp16")
    x, grad_y = inputs(graphs, 4)
    _, kept = exact.forward(x)
    expected, biases = exact.input_gradient(kept, grad_y * size)
    _, kept = exact.forward(x)  # the same masks for both
    found, found_biases = half.input_gradient(kept, grad_y * size)
    assert float((found - expected).norm() / expected.norm()) < 2e-3
    for name, bias in biases.items():
        assert float((found_biases[name] - bias).norm() / bias.norm()) < 5e-3
    assert half.overflows == 0


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
