"""The torch engine: what it keeps, what it frees, what it must not touch."""

from __future__ import annotations

import functools
import gc

import pytest
import torch
from torch import Tensor

from edgetta.bench.exactness.reference import randomise
from edgetta.export.batch_norm import settle
from edgetta.export.cut import cut
from edgetta.export.differentiate import differentiate
from edgetta.export.trace import trace
from edgetta.models import load_model
from edgetta.segments.contract import GradientMode, Residuals, SegmentGraphs
from edgetta.segments.graph import BATCH, GraphBuilder
from edgetta.segments.torch_engine import Program, TorchSegment
from tests.export.small_networks import SMALL


@functools.cache
def part(name: str, policy: str = "source", index: int = 0, adapt: str = "meta") -> SegmentGraphs:
    torch.manual_seed(0)
    pieces = cut(trace(randomise(SMALL[name].build()).eval(), SMALL[name].input_shape), SMALL[name].cuts)
    return differentiate(settle(pieces.parts[index], policy, adapt))  # type: ignore[arg-type]


def inputs(graphs: SegmentGraphs, batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(graphs.input.with_batch(batch), generator=generator),
        torch.randn(graphs.output.with_batch(batch), generator=generator),
    )


def alive(shapes: set[tuple[int, ...]]) -> int:
    """Float tensors of these shapes that somebody holds."""
    gc.collect()
    found = [o for o in gc.get_objects() if type(o) is Tensor]
    return sum(tuple(t.shape) in shapes and t.dtype == torch.float32 for t in found)


@pytest.mark.parametrize("name", ["wide_resnet", "vgg", "mobile", "gates", "transformer", "odds"])
@pytest.mark.parametrize("gradient", ["exact", "recompute", "local"])
def test_kept_bytes_are_as_promised(name: str, gradient: GradientMode) -> None:
    policy = "ema" if name in ("wide_resnet", "gates") else "source"
    graphs = part(name, policy)
    for batch in (1, 3, 8):
        segment = TorchSegment(graphs, gradient)
        _, residuals = segment.forward(inputs(graphs, batch)[0])
        assert residuals.kept_bytes() == graphs.kept_bytes(batch, gradient)
        assert all(t.untyped_storage().nbytes() == t.nbytes for t in residuals.kept.values())  # no hidden rest


def test_a_mask_is_one_bit_per_element() -> None:
    """WRN-40-2 at batch 64: its ReLUs keep one bit per element, its frozen BatchNorms one scale per channel."""
    model = load_model("wrn40_2")
    assert model.parts is not None
    pieces = cut(trace(model.module, model.input_shape), model.parts.cuts(4))
    elements = 0
    for piece in pieces.parts:
        relus = [piece.values[node.output].elements(64) for node in piece.nodes if node.op == "Relu"]
        norms = [piece.values[node.output].shape[1] for node in piece.nodes if node.op == "BatchNormalization"]
        elements += sum(relus)
        folded, of_batch = differentiate(settle(piece, "source")), differentiate(settle(piece, "batch"))
        assert folded.kept_bytes(64, "exact") == sum(relus) // 8
        assert of_batch.kept_bytes(64, "exact") == sum(relus) // 8 + 4 * sum(norms)
    assert elements // 8 < 6_000_000  # in floats they were 178 MB


def test_masks_replace_activations_while_the_forward_runs() -> None:
    """No ReLU output outlives its last reader: when the last one is made, the others are bits."""
    graphs = part("resnet20", index=1)
    shapes = {graphs.input.with_batch(3)}
    counts: list[int] = []

    def keep(name: str, tensor: Tensor) -> Tensor:
        counts.append(alive(shapes))
        return tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor

    x = inputs(graphs)[0]
    Program(graphs.forward).run({"x": x}, keep)
    assert len(counts) == len(graphs.residuals) + 1
    assert max(counts) <= 4  # x, a ReLU's output, a convolution's, and the shortcut


@pytest.mark.parametrize("gradient", ["exact", "recompute"])
@pytest.mark.parametrize(("name", "policy"), [("wide_resnet", "ema"), ("vgg", "batch"), ("transformer", "source")])
def test_nothing_of_the_caller_is_written(name: str, policy: str, gradient: GradientMode) -> None:
    graphs = part(name, policy, adapt="bias")
    segment = TorchSegment(graphs, gradient)
    x, grad_y = inputs(graphs)
    mine = [x, grad_y, *segment.state.values(), *segment.affine.values(), *graphs.forward.constants.values()]
    before = [tensor.clone() for tensor in mine]
    y, residuals = segment.forward(x)
    first, first_biases = segment.input_gradient(residuals, grad_y)
    assert all(torch.equal(a, b) for a, b in zip(mine, before, strict=True))
    again = TorchSegment(graphs, gradient)
    y2, residuals = again.forward(x)
    second, second_biases = again.input_gradient(residuals, grad_y)
    assert torch.equal(y, y2)
    assert torch.equal(first, second)
    assert first_biases.keys() == second_biases.keys() == graphs.initial_affine.keys()
    assert all(torch.equal(first_biases[name], second_biases[name]) for name in first_biases)


def test_recompute_uses_the_statistics_of_its_own_forward() -> None:
    """Later batches move the running statistics; the gradient is still that of the batch that was kept."""
    graphs = part("wide_resnet", "ema")
    x, grad_y = inputs(graphs)
    gradients = []
    for gradient in ("exact", "recompute"):
        segment = TorchSegment(graphs, gradient)  # type: ignore[arg-type]
        _, residuals = segment.forward(x, momentum=0.3)
        segment.forward(3 * x + 1, keep=False, momentum=0.9)
        gradients.append(segment.input_gradient(residuals, grad_y)[0])
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-6)


def test_without_keep_nothing_is_kept() -> None:
    graphs = part("wide_resnet")
    for gradient in ("exact", "recompute", "local"):
        _, residuals = TorchSegment(graphs, gradient).forward(inputs(graphs)[0], keep=False)  # type: ignore[arg-type]
        assert residuals == Residuals(batch=3)


def test_a_local_segment_has_no_backward() -> None:
    graphs = part("wide_resnet")
    segment = TorchSegment(graphs, "local")
    x, grad_y = inputs(graphs)
    _, residuals = segment.forward(x)
    assert residuals.kept_bytes() == graphs.kept_bytes(3, "local") == 0
    with pytest.raises(RuntimeError, match="no backward"):
        segment.input_gradient(residuals, grad_y)


def test_the_input_as_residual_is_shared_not_kept() -> None:
    builder = GraphBuilder()
    x = builder.input("x", (BATCH, 2))
    graphs = differentiate(settle(builder.graph([builder.emit("Mul", x, x)]), "source"))
    assert [residual.value.name for residual in graphs.residuals] == ["x"]
    images = torch.tensor([[3.0, -2.0]])
    segment = TorchSegment(graphs)
    _, residuals = segment.forward(images)
    assert residuals.shared["x"] is images
    assert residuals.kept_bytes() == graphs.kept_bytes(1, "exact") == 0
    assert segment.input_gradient(residuals, torch.ones(1, 2))[0].tolist() == [[6.0, -4.0]]


def test_a_program_returns_inputs_and_weights_that_are_outputs() -> None:
    builder = GraphBuilder()
    x = builder.input("x", (BATCH, 2))
    w = builder.constant("w", torch.ones(2))
    y = builder.emit("Relu", builder.emit("Add", x, w))
    found = Program(builder.graph([x, y, w, y])).run({"x": torch.tensor([[-2.0, 1.0]])})
    assert [t.tolist() for t in found] == [[[-2.0, 1.0]], [[0.0, 2.0]], [1.0, 1.0], [[0.0, 2.0]]]


def test_in_place_operators_spare_what_is_seen_elsewhere() -> None:
    """Views, repeated arguments, outputs and values that are read again."""
    builder = GraphBuilder()
    x = builder.input("x", (BATCH, 4))
    a = builder.emit("Add", x, x)
    view = builder.emit("Reshape", a, shape=[0, 2, 2])
    square = builder.emit("Mul", a, a)
    b = builder.emit("Add", a, builder.constant("one", torch.ones(4)))
    c = builder.emit("Relu", b)
    d = builder.emit("Mul", b, c)
    wide = builder.emit("Add", builder.emit("ReduceSum", d, axes=[1], keepdims=1), d)
    given = torch.tensor([[-3.0, -0.25, 0.5, 2.0]])
    results = Program(builder.graph([view, square, d, wide, c])).run({"x": given})
    doubled = given * 2
    relu = (doubled + 1).clamp_min(0)
    product = (doubled + 1) * relu
    expected = [doubled.view(1, 2, 2), doubled**2, product, product.sum(1, keepdim=True) + product, relu]
    for found, wanted in zip(results, expected, strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(given, torch.tensor([[-3.0, -0.25, 0.5, 2.0]]))
