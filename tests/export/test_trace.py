"""Tracing: the whole graph computes what the module computes, and what cannot be traced says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetta.bench.exactness.reference import randomise, relative_error
from edgetta.errors import UsageError
from edgetta.export.lowering import RULES
from edgetta.export.trace import TraceError, trace
from edgetta.models.exported import read_program
from edgetta.segments.graph import BATCH
from edgetta.segments.torch_engine import Program
from tests.export.small_networks import SMALL

SHAPE = (3, 8, 8)


class Module(nn.Module):
    """A function as a module in evaluation mode."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, x: Tensor) -> object:
        return self.function(x)


def whole(model: nn.Module, shape: tuple[int, int, int], batch: int) -> float:
    """Relative error of the traced graph in float64."""
    images = torch.rand(batch, *shape, dtype=torch.float64)
    graph = trace(model, shape).graph
    assert graph.inputs == ("x",)
    assert graph.values["x"].shape == (BATCH, *shape)
    (found,) = Program(graph, dtype=torch.float64).run({"x": images})
    return relative_error(found, model.double()(images).detach())


@pytest.mark.parametrize(("name", "batch"), [("gates", 1), ("transformer", 3), ("vgg", 1)])
def test_the_whole_network(name: str, batch: int) -> None:
    torch.manual_seed(0)
    assert whole(randomise(SMALL[name].build()).eval(), SMALL[name].input_shape, batch) <= 1e-12


def test_weights_keep_their_names_and_modules_their_outputs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), nn.Flatten()).eval()
    traced = trace(model, SHAPE)
    names = {name for name, _ in [*model.named_parameters(), *model.named_buffers()] if "num_batches" not in name}
    assert set(traced.graph.constants) == names
    produced = traced.graph.producers()
    assert {path: produced[value].op for path, value in traced.module_outputs.items() if value in produced} == {
        "0": "Conv",
        "1": "Relu",
        "1.0": "BatchNormalization",
        "1.1": "Relu",
    } | {"2": "Reshape"}


def test_weights_may_be_called_what_values_are_called() -> None:
    model = nn.Module()
    model.x, model.v1, model.v2 = (nn.Parameter(torch.randn(3, 1, 1)) for _ in range(3))
    model.forward = lambda image: (image * model.x + model.v1) * model.v2
    assert whole(model.eval(), SHAPE, 2) <= 1e-12


def test_an_exported_program_is_as_good_as_its_module(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(True)).eval()
    batch = torch.export.Dim("n", min=1, max=8)
    program = torch.export.export(model, (torch.zeros(3, *SHAPE),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "model.pt2")
    again = trace(read_program(tmp_path / "model.pt2"), SHAPE).graph
    images = torch.rand(5, *SHAPE)
    assert torch.equal(Program(again).run({"x": images})[0], model(images).detach())


def test_training_mode_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    model[1].train()
    with pytest.raises(UsageError, match=r"^1 is in training mode; call model\.eval\(\)"):
        trace(model, SHAPE)


def written_slice(x: Tensor) -> Tensor:
    y = x * 2
    y[:, :2].mul_(3.0)
    return y


REFUSED: dict[str, tuple[Callable[..., object], str]] = {
    "unknown operator": (lambda x: x.cumsum(1), r"operator aten\.cumsum\.default .* has no rule"),
    "slices that are written": (written_slice, "operator aten.slice_scatter.default"),
    "two outputs": (lambda x: (x * 2, x * 3), "return one tensor"),
    "an output that ignores the input": (lambda x: torch.ones(3), "does not depend on its input"),
    "batch merged with what lies before it": (lambda x: x.transpose(0, 1).reshape(-1, 8) * 2, "merges the batch"),
    "mean over the batch": (lambda x: x - x.mean(0, keepdim=True), "over the batch is not supported"),
    "slice of the batch": (lambda x: x[1:] * 2, "slicing the batch|cannot trace"),
    "one image of the batch": (lambda x: x[1] + x, "selecting from the batch"),
    "branch on the data": (lambda x: x * 2 if x.sum() > 0 else x, "cannot trace the model at input"),
    "transposed convolution": (lambda x: F.conv_transpose2d(x, torch.ones(3, 3, 2, 2)), "transposed convolutions"),
    "dilated max-pool": (lambda x: F.max_pool2d(x, 2, dilation=2), "dilated max-pooling"),
    "padding by reflection": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "pad"),
    "causal attention": (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), "causal attention"),
    "rounding to integers": (lambda x: x.to(torch.int32) * x, "conversion to torch.int32"),
    "odd powers": (lambda x: x**7, "power 7 is not supported"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_traced_says_why(name: str) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(TraceError, match=reason):
        trace(Module(function), SHAPE)


def test_the_module_with_the_unknown_operator_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Sequential(nn.Hardtanh(), nn.Softshrink())).eval()
    with pytest.raises(TraceError, match=r"operator aten\.\w+\.\w+ \(in module '1\.1'\) has no rule"):
        trace(model, SHAPE)


def test_a_rule_that_does_not_foresee_an_argument_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "aten.relu.default", lambda lower, fake: "nothing")
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Sequential(nn.ReLU())).eval()
    with pytest.raises(TraceError, match=r"operator aten\.relu\.default \(in module '1\.0'\) is used in a way .*Type"):
        trace(model, SHAPE)


def test_what_torch_cannot_take_apart_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise NotImplementedError("no decomposition\nhere")

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", fails)
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Sequential(nn.Softshrink())).eval()
    with pytest.raises(
        TraceError, match=r"softshrink\.default \(in module '1\.0'\).*cannot take it apart \(no decomp"
    ):
        trace(model, SHAPE)


class Star(nn.Module):
    def forward(self, *x: Tensor) -> Tensor:
        return x[0] * 2


def test_arguments_that_are_not_named(tmp_path: Path) -> None:
    assert whole(Star().eval(), SHAPE, 3) <= 1e-12


def test_wrappers_and_half_precision() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    wanted = trace(model, SHAPE).graph
    for other in (nn.DataParallel(model), torch.compile(model)):
        found = trace(other.eval(), SHAPE).graph  # type: ignore[attr-defined]
        assert found.nodes == wanted.nodes and set(found.constants) == set(wanted.constants)
    half = model.half()
    assert trace(half, SHAPE).graph.nodes == wanted.nodes
    assert next(half.parameters()).dtype == torch.float16


@pytest.mark.parametrize("end", [nn.Softmax(1), nn.LogSoftmax(1), nn.Sequential(nn.Softmax(-1), nn.Flatten())])
def test_a_softmax_at_the_end_is_left_out(end: nn.Module) -> None:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    graph = trace(nn.Sequential(*layers, end).eval(), SHAPE).graph
    x = torch.rand(2, *SHAPE)
    assert torch.allclose(Program(graph).run({"x": x})[0], layers(x).detach(), atol=1e-6)


def test_a_softmax_over_positions_stays() -> None:
    assert whole(nn.Sequential(nn.Softmax(2), nn.Flatten()).eval(), SHAPE, 2) <= 1e-12


def test_two_inputs_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    program = torch.export.export(Two().eval(), (torch.zeros(2, *SHAPE), torch.zeros(2, *SHAPE)))
    with pytest.raises(TraceError, match="must take one tensor of images"):
        trace(program, SHAPE)
    with pytest.raises(TraceError, match="cannot trace the model at input"):
        trace(Two().eval(), SHAPE)


def test_a_program_in_training_mode_is_refused() -> None:
    program = torch.export.export(nn.Sequential(nn.BatchNorm2d(3)).train(), (torch.zeros(2, *SHAPE),))
    with pytest.raises(TraceError):
        trace(program, SHAPE)


def test_a_fixed_batch_is_refused() -> None:
    program = torch.export.export(nn.Conv2d(3, 4, 3).eval(), (torch.zeros(2, *SHAPE),))
    with pytest.raises(TraceError, match="batch of 2"):
        trace(program, SHAPE)


def test_another_image_size_than_the_program_has_is_refused() -> None:
    batch = torch.export.Dim("n", min=1, max=8)
    program = torch.export.export(nn.Conv2d(3, 4, 3).eval(), (torch.zeros(2, *SHAPE),), dynamic_shapes=({0: batch},))
    with pytest.raises(TraceError, match=r"images of shape \(3, 8, 8\), not \(3, 16, 16\)"):
        trace(program, (3, 16, 16))


def test_what_cannot_be_traced_says_why_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) if x.sum() > 0 else x.sum((2, 3))

    with pytest.raises(TraceError, match=r"cannot trace the model at input .*data-dependent"):
        trace(Branching().eval(), SHAPE)
    assert capfd.readouterr() == ("", ""), "torch prints the whole graph"
