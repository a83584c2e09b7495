"""int8 backbones: rounding as torch has it, gradients straight through, the same bundle on every engine."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from edgetta.adaptation.config import AdaptConfig
from edgetta.bench.exactness.reference import randomise
from edgetta.bundle import open_engine, read_bundle, self_test
from edgetta.errors import UsageError
from edgetta.export.adaptable import AdaptableModel
from edgetta.export.batch_norm import Frozen
from edgetta.export.bundle_writer import Shipment, write_bundle
from edgetta.export.derive import derive
from edgetta.export.differentiate import differentiate
from edgetta.export.onnx_writer import to_onnx
from edgetta.export.quantise import measure_ranges, quantise
from edgetta.offline.network import Network
from edgetta.offline.source_statistics import synthetic_images, with_source_statistics
from edgetta.segments.contract import SegmentGraphs
from edgetta.segments.graph import BATCH, Graph, GraphBuilder
from edgetta.segments.onnxruntime_engine import OnnxProgram
from edgetta.segments.operators import OPERATORS, dequantize_linear, fake_quantize
from edgetta.segments.torch_engine import Program, TorchSegment
from tests.export.small_networks import SMALL

NETWORKS = ("wide_resnet", "mobile", "gates", "transformer")  # dense, depthwise, linear layers


@functools.cache
def models(name: str, batch_norm: str) -> tuple[AdaptableModel, AdaptableModel]:
    """In fp32, and in int8 with ranges from synthetic images."""
    small = SMALL[name]
    torch.manual_seed(0)
    make = functools.partial(
        derive, randomise(small.build()).eval(), small.input_shape, small.cuts, adapt="bias", batch_norm=batch_norm
    )
    single = make()
    return single, make(ranges=measure_ranges(single, synthetic_images(small.input_shape, 16, 8)))


def one_layer(stride: int = 1, group: int = 1) -> tuple[Graph, Tensor]:
    builder = GraphBuilder()
    x = builder.input("x", (BATCH, 4, 6, 6))
    weight = torch.randn(8, 4 // group, 3, 3, generator=torch.Generator().manual_seed(0))
    attributes = {"strides": [stride, stride], "pads": [1] * 4, "dilations": [1, 1], "group": group}
    constants = [builder.constant("w", weight), builder.constant("b", torch.linspace(-1, 1, 8))]
    y = builder.emit("Conv", x, *constants, **attributes)
    return builder.graph([builder.emit("Relu", y)]), weight


@pytest.mark.parametrize("scale", [0.1, 3.0, 1e-3])
def test_rounding_is_that_of_torch(scale: float) -> None:
    x = torch.cat([torch.randn(1000) * 10, torch.tensor([0.0, 0.05, 0.15, 0.25, -0.05, 1e9, -1e9])])
    expected = torch.fake_quantize_per_tensor_affine(x, scale, 0, -128, 127)
    steps = (fake_quantize(x, torch.tensor(scale)) - expected).abs() / scale
    assert int((steps > 1e-3).sum()) <= 2, "torch multiplies by 1 / scale, so that halves may fall to either side"


def test_weights_are_off_by_half_a_step_at_most_and_take_a_byte_each() -> None:
    graph, weight = one_layer()
    found = quantise(graph, {"x": 3.0, graph.nodes[0].output: 20.0})
    codes, scale = found.constants["w.int8"], found.constants["w.scale"]
    assert codes.dtype == torch.int8 and scale.shape == (8,) and "w" not in found.constants
    again = dequantize_linear(codes, scale, axis=0)
    assert bool(((again - weight).abs() <= 0.5001 * scale.reshape(-1, 1, 1, 1)).all())
    torch.testing.assert_close(scale, weight.abs().amax((1, 2, 3)) / 127)
    assert found.quantised and not graph.quantised


def test_activations_lie_on_the_grid() -> None:
    graph, _ = one_layer()
    output = graph.nodes[0].output
    found = quantise(graph, {"x": 3.0, output: 20.0})
    y = Program(found).run({"x": torch.randn(2, 4, 6, 6)})[0] / (20 / 127)
    assert float((y - y.round()).abs().max()) < 1e-4


@pytest.mark.parametrize(("stride", "group"), [(1, 1), (2, 1), (1, 4), (1, 2), (2, 2)])
def test_onnx_runtime_rounds_alike(stride: int, group: int) -> None:
    """Engines may fall to either side where a value lies between two steps, and there alone."""
    graph, _ = one_layer(stride, group)
    found = quantise(graph, {"x": 3.0, graph.nodes[0].output: 20.0})
    x = torch.randn(16, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    program = OnnxProgram(to_onnx(found, "layer").SerializeToString(), found, 1)
    steps = ((program.run({"x": x})[0] - Program(found).run({"x": x})[0]).abs() / (20 / 127)).round()
    assert int(steps.max()) <= 1 and float((steps > 0).float().mean()) < 0.01


@pytest.mark.parametrize("batch_norm", ["source", "adaptive"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_go_straight_through_the_rounding(name: str, batch_norm: str) -> None:
    """In float64, against autograd over the same graph where rounding counts as the identity.

    A folded BatchNorm's scale is a constant of the backward, in float32.
    """
    if name == "transformer" and batch_norm == "adaptive":
        batch_norm = "source"  # it has no BatchNorm: the same graph
    for piece in list(models(name, batch_norm)[1].pieces.values())[1:]:
        compare_gradients(differentiate(piece), 1e-10 if batch_norm == "adaptive" else 1e-7)


@pytest.mark.parametrize(("stride", "group"), [(1, 1), (2, 1), (1, 4), (1, 2), (2, 2)])
def test_gradients_of_every_kind_of_convolution(stride: int, group: int) -> None:
    """Scales of grouped kernels lie along no axis of the turned kernel."""
    graph, _ = one_layer(stride, group)
    frozen = Frozen(quantise(graph, {"x": 3.0, graph.nodes[0].output: 20.0}), {}, {}, {})
    compare_gradients(differentiate(frozen), 1e-10)


def compare_gradients(graphs: SegmentGraphs, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(graphs.input.with_batch(4), generator=generator, dtype=torch.float64)
    grad_y = torch.randn(graphs.output.with_batch(4), generator=generator, dtype=torch.float64)
    expected_y, expected = reference(graphs, x, grad_y)
    for gradient in ("exact", "recompute"):
        segment = TorchSegment(graphs, gradient, dtype=torch.float64, pack=False)  # type: ignore[arg-type]
        y, residuals = segment.forward(x, momentum=0.3)
        torch.testing.assert_close(y, expected_y, rtol=1e-10, atol=1e-10)
        found = segment.input_gradient(residuals, grad_y)[0]
        assert float((found - expected).norm()) <= tolerance * float(expected.norm())


def reference(graphs: SegmentGraphs, x: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor]:
    """Output and input gradient by autograd; statistics are constants, rounding is the identity in the backward."""
    graph = graphs.forward.to(torch.float64)
    x = x.clone().requires_grad_()
    values = {**graph.constants, "": None, "x": x, "ema_momentum": torch.full((1,), 0.3, dtype=torch.float64)}
    values |= {name: tensor.double() for name, tensor in {**graphs.initial_state, **graphs.initial_affine}.items()}
    for node in graph.nodes:
        operands = [values[name] for name in node.inputs]
        if node.op.startswith("Channel"):
            operands = [operand.detach() for operand in operands]
        if node.op == "FakeQuantize":
            rounded = fake_quantize(operands[0].detach(), operands[1])
            values[node.output] = operands[0] + (rounded - operands[0]).detach()
        elif node.op == "Clip":  # at a border the gradient of clamp is 1, that of ReLU6 is 0
            values[node.output] = torch.nn.functional.hardtanh(operands[0], *map(float, node.attributes.values()))
        else:
            values[node.output] = OPERATORS[node.op](*operands, **node.attributes)
    y = values[graph.outputs[0]]
    return y.detach(), torch.autograd.grad(y, x, grad_y)[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_stays_what_it_was_and_keeps_no_more(name: str) -> None:
    single, eight = models(name, "source")
    images = next(synthetic_images(SMALL[name].input_shape, 8, 8, seed=5))
    expected, found = (Program(model.source).run({"x": images})[0] for model in (single, eight))
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.25
    assert (single.precision, eight.precision) == ("fp32", "int8")
    kept = [sum(residual.kept_bytes(8) for residual in model.programs.residuals) for model in (single, eight)]
    assert kept[0] == kept[1], "rounding leaves no residual"


def test_a_bundle_of_it_is_smaller_and_runs_on_both_engines(tmp_path: Path) -> None:
    sizes = []
    for model in models("wide_resnet", "adaptive"):
        network = with_source_statistics(Network(model.programs), None)
        shipment = Shipment(network.programs, model.cuts, model.batch_norm)
        write_bundle(tmp_path / model.precision, shipment, name="small", config=AdaptConfig())
        bundle = read_bundle(tmp_path / model.precision)
        sizes.append(sum(f.stat().st_size for f in bundle.path.rglob("weights.safetensors")))
    assert bundle.precision == "int8" and sizes[1] < 0.5 * sizes[0]
    images = next(synthetic_images(bundle.input_shape, 8, 8, seed=6)).numpy()
    engines = [open_engine(bundle, engine) for engine in ("torch", "onnxruntime")]
    answers = [e.predict(images, bundle.programs.shipped, bundle.programs.source) for e in engines]
    assert float(np.linalg.norm(answers[1] - answers[0]) / np.linalg.norm(answers[0])) < 0.1
    for engine in engines:
        assert self_test(bundle, engine).logits_error < 0.1


def test_ranges_cut_off_what_is_rare() -> None:
    """Ranges follow the images, and clip where that costs less than coarse steps."""
    graph, _ = one_layer()
    builder = GraphBuilder()
    after = builder.graph([builder.emit("Neg", builder.input("x", (BATCH, 8, 6, 6)))])
    pieces = {"stem": Frozen(graph, {}, {}, {}), "classifier": Frozen(after, {}, {}, {})}
    model = AdaptableModel(models("wide_resnet", "source")[0].programs, pieces, graph, ())
    even = torch.linspace(-1, 1, 256 * 4 * 36).reshape(256, 4, 6, 6)
    loud = even.clone()
    loud.view(-1)[1] = 50.0  # one value of 36,864
    found = [measure_ranges(model, [images])["source"]["x"] for images in (even, 2 * even, loud)]
    assert found[0] == pytest.approx(1.0, abs=0.03) and found[1] == pytest.approx(2 * found[0])
    assert found[2] == pytest.approx(found[0], abs=0.03)


def test_what_cannot_be_quantised_is_named() -> None:
    single, _ = models("wide_resnet", "source")
    with pytest.raises(UsageError, match="source images"):
        measure_ranges(single, [])
    with pytest.raises(UsageError, match="no range"):
        quantise(single.source, {})

    builder = GraphBuilder()
    x = builder.input("x", (BATCH, 3, 4, 4))
    graph = builder.graph([builder.emit("ReduceMean", builder.emit("Relu", x), axes=[2, 3], keepdims=0)])
    pieces = {"stem": Frozen(graph, {}, {}, {})}
    with pytest.raises(UsageError, match="has none"):
        measure_ranges(AdaptableModel(single.programs, pieces, graph, ()), [torch.rand(2, 3, 4, 4)])
