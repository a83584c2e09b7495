"""The ONNX Runtime engine does what the torch engine does, with the same residuals and the same manners."""

from __future__ import annotations

import functools
import sys

import pytest
import torch
from torch import Tensor

from edgetta.bench.exactness.reference import randomise
from edgetta.bench.exactness.segments import models, segment
from edgetta.errors import MissingDependencyError
from edgetta.export.batch_norm import settle
from edgetta.export.cut import cut
from edgetta.export.differentiate import differentiate
from edgetta.export.trace import trace
from edgetta.segments.contract import GradientMode, SegmentGraphs
from edgetta.segments.graph import BATCH, GraphBuilder
from edgetta.segments.onnxruntime_engine import OnnxRuntimeSegment, import_onnxruntime
from edgetta.segments.torch_engine import TorchSegment
from tests.export.small_networks import SMALL


@functools.cache
def part(name: str, policy: str, adapt: str = "bias") -> SegmentGraphs:
    torch.manual_seed(0)
    pieces = cut(trace(randomise(SMALL[name].build()).eval(), SMALL[name].input_shape), SMALL[name].cuts)
    return differentiate(settle(pieces.parts[-1], policy, adapt))  # type: ignore[arg-type]


def inputs(graphs: SegmentGraphs, batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return (
        torch.randn(graphs.input.with_batch(batch), generator=generator),
        torch.randn(graphs.output.with_batch(batch), generator=generator),
    )


@pytest.mark.parametrize("gradient", ["exact", "recompute"])
@pytest.mark.parametrize(("name", "policy"), [("wide_resnet", "ema"), ("vgg", "batch"), ("gates", "source")])
def test_step_by_step_as_torch(name: str, policy: str, gradient: GradientMode) -> None:
    """Three batches of different sizes, statistics moving: outputs, gradients, state and kept bytes agree."""
    graphs = part(name, policy)
    one, other = (segment(graphs, engine, gradient) for engine in ("torch", "onnxruntime"))
    for batch in (4, 1, 7) if policy != "batch" else (4, 2, 7):
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
        assert one.state.keys() == other.state.keys() == graphs.state.keys()
        assert all(torch.allclose(one.state[k], other.state[k], rtol=1e-4, atol=1e-6) for k in one.state)
        assert torch.equal(x, mine[0])
        assert torch.equal(grad_y, mine[1])


def test_masks_of_one_engine_serve_the_other() -> None:
    """Residuals have one form: what ONNX Runtime kept, torch differentiates with, and the other way round."""
    graphs = part("vgg", "source", "meta")
    x, grad_y = inputs(graphs, 3)
    one, other = (segment(graphs, engine) for engine in ("torch", "onnxruntime"))
    of_torch, of_runtime = one.forward(x)[1], other.forward(x)[1]
    swapped = other.input_gradient(of_torch, grad_y)[0], one.input_gradient(of_runtime, grad_y)[0]
    assert torch.allclose(*swapped, rtol=1e-4, atol=1e-5)


def test_local_and_unkept_forwards_keep_nothing() -> None:
    graphs = part("wide_resnet", "ema")
    x, grad_y = inputs(graphs, 2)
    local = segment(graphs, "onnxruntime", "local")
    _, residuals = local.forward(x)
    assert residuals.kept_bytes() == 0
    with pytest.raises(RuntimeError, match="no backward"):
        local.input_gradient(residuals, grad_y)
    _, residuals = segment(graphs, "onnxruntime").forward(x, keep=False)
    assert residuals.kept == {}


def test_what_is_not_needed_is_not_loaded() -> None:
    """Without residuals the forward makes none; with them, one session serves both. Predictions are the same."""
    graphs = part("vgg", "ema", "meta")
    x, grad_y = inputs(graphs, 2)
    made, fresh = segment(graphs, "onnxruntime"), segment(graphs, "onnxruntime")
    before, _ = made.forward(x, keep=False)
    predict = made._loaded["predict"]
    outputs = [output.name for output in predict._session.get_outputs()]
    assert set(made._loaded) == {"predict"} and outputs == list(graphs.forward.outputs[: 1 + len(graphs.state)])
    assert torch.equal(fresh.forward(x)[0], before) and fresh.state.keys() == made.state.keys()
    assert all(torch.equal(fresh.state[name], made.state[name]) for name in made.state)
    _, residuals = made.forward(x)
    assert set(made._loaded) == {"forward"}
    made.input_gradient(residuals, grad_y)
    made.forward(x, keep=False)
    assert set(made._loaded) == {"forward", "backward"}


@pytest.mark.parametrize("gradient", ["recompute", "local"])
def test_modes_that_keep_no_masks_make_none(gradient: GradientMode) -> None:
    made = segment(part("vgg", "source", "meta"), "onnxruntime", gradient)
    made.forward(inputs(made.graphs, 2)[0])
    assert set(made._loaded) == {"predict"}


def test_inputs_of_another_type_or_layout_are_converted() -> None:
    """The session reads raw memory; doubles, halves and transposed tensors must not be read as they lie."""
    graphs = part("vgg", "source", "meta")
    x, grad_y = inputs(graphs, 2)
    made = segment(graphs, "onnxruntime")
    y, residuals = made.forward(x)
    expected = made.input_gradient(residuals, grad_y)[0]
    turned = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    for other in (x.double(), turned):
        again, residuals = made.forward(other)
        assert torch.equal(again, y)
        assert torch.equal(made.input_gradient(residuals, grad_y.to(other.dtype))[0], expected)
    assert torch.allclose(made.forward(x.half())[0], y, rtol=0.1, atol=0.1)


def test_the_input_as_residual_is_shared_not_kept() -> None:
    builder = GraphBuilder()
    x = builder.input("x", (BATCH, 2))
    graphs = differentiate(settle(builder.graph([builder.emit("Mul", x, x)]), "source"))
    images = torch.tensor([[3.0, -2.0]])
    for made in (TorchSegment(graphs), OnnxRuntimeSegment(graphs, models(graphs, "exact"), threads=1)):
        _, residuals = made.forward(images)
        assert residuals.shared["x"] is images
        assert residuals.kept_bytes() == graphs.kept_bytes(1, "exact") == 0
        assert made.input_gradient(residuals, torch.ones(1, 2))[0].tolist() == [[6.0, -4.0]]


def test_without_onnx_runtime_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'edgetta\[onnxruntime\]'"):
        import_onnxruntime()
