"""The adaptation objective as a surface: it is the device's objective, and its curvature is exact."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from typing import Any, ClassVar

import pytest
import torch

from edgetta.segmented.objective import cross_entropy, entropy, filtered_entropy
from edgetta.errors import UsageError
from edgetta.offline.curvature import HessianOperator, extreme_eigenpairs
from edgetta.offline.curvature.adaptation import DifferentiableNetwork, adaptation_surface
from tests.adaptation.backbones import network_of, small_model

REGULARISER = 0.7


def images(count: int = 24, seed: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("batch_norm", ["batch", "ema", "source"])
@pytest.mark.parametrize("initialisation", ["identity", "published"])
def test_it_predicts_and_descends_as_the_device_does(batch_norm: str, initialisation: str) -> None:
    network = network_of(small_model(initialisation), batch_norm)  # type: ignore[arg-type]
    logits, tape = network.forward(images(), track=False)
    margin = float(entropy(logits).mean()) / math.log(logits.shape[1])  # so that the filter drops about half
    objective = filtered_entropy(logits, margin)
    assert 0 < objective.kept < 24
    distances = torch.stack(tape.distances)
    network.backward(tape, objective.gradient, REGULARISER)
    expected = {name: p.grad.clone() for name, p in network.metas.named_parameters() if p.grad is not None}
    network.metas.zero_grad()

    surface = adaptation_surface(network, regulariser=REGULARISER, margin=margin)
    operator = HessianOperator(surface, images(), batch_size=24)
    torch.testing.assert_close(DifferentiableNetwork(network)(images())[0], logits)
    assert operator.loss() == pytest.approx(objective.value + REGULARISER * float(distances.sum()))
    found = dict(zip(surface.parameters, surface.unflatten(operator.gradient()), strict=True))
    assert len(found) == len(list(network.parameters()))
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name.removeprefix("metas.")], atol=1e-9, rtol=1e-7)


def test_cross_entropy_is_that_of_warm_up() -> None:
    network = network_of(small_model(), "batch")
    labels = torch.arange(24) % 5
    logits, tape = network.forward(images())
    objective = cross_entropy(logits, labels)
    network.backward(tape, objective.gradient)
    expected = torch.cat([p.grad.flatten() for p in network.metas.parameters()])
    operator = HessianOperator(adaptation_surface(network, "cross_entropy"), (images(), labels), batch_size=24)
    assert operator.loss() == pytest.approx(objective.value)
    torch.testing.assert_close(operator.gradient(), expected, atol=1e-9, rtol=1e-7)


def test_its_hessian_is_symmetric_indefinite_and_equals_differences_of_gradients() -> None:
    network = network_of(small_model(), "source")
    operator = HessianOperator(adaptation_surface(network, regulariser=0.3), images(12), batch_size=12)
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, operator.dimension, generator=generator, dtype=torch.float64)
    assert float(u @ operator.product(v)) == pytest.approx(float(v @ operator.product(u)), rel=1e-9)
    sides = []
    for step in (1e-6, -1e-6):
        moved = copy.deepcopy(network)
        for name, part in zip(operator.surface.parameters, operator.surface.unflatten(v), strict=True):
            moved.metas.get_parameter(name.removeprefix("metas.")).data += step * part
        # Without the regulariser: its first-order detachment has no counterpart in differences of gradients.
        sides.append(HessianOperator(adaptation_surface(moved), images(12), batch_size=12).gradient())
    plain = HessianOperator(adaptation_surface(network), images(12), batch_size=12)
    torch.testing.assert_close(plain.product(v), (sides[0] - sides[1]) / 2e-6, atol=1e-4, rtol=1e-4)
    ends = extreme_eigenpairs(plain, iterations=25, tolerance=1e-2)
    assert ends.smallest.values[0] < 0 < ends.largest.values[0]


def test_batches_stay_whole_and_nothing_is_moved() -> None:
    network = network_of(small_model(), "auto")
    surface = adaptation_surface(network)
    assert not surface.splittable
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    HessianOperator(surface, images(18), batch_size=6).product(torch.ones(surface.dimension))
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    with pytest.raises(UsageError, match="objective 'margin' is unknown"):
        adaptation_surface(network, "margin")  # type: ignore[arg-type]


class Marked(torch.autograd.Function):
    """The identity; `alive` holds a flag for as long as the graph that it is part of."""

    alive: ClassVar[weakref.WeakSet[object]] = weakref.WeakSet()

    class Flag:
        pass

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        ctx.flag = Marked.Flag()
        Marked.alive.add(ctx.flag)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad


@pytest.mark.parametrize("batch_norm", ["batch", "ema", "source"])
def test_nothing_is_alive_after_a_forward_that_nobody_holds(batch_norm: str) -> None:
    model = DifferentiableNetwork(network_of(small_model(), batch_norm))  # type: ignore[arg-type]
    state = {name: Marked.apply(value) for name, value in model.named_parameters()}
    state |= {name: value.clone() for name, value in model.named_buffers()}
    outputs = torch.func.functional_call(model, state, (images(),))
    del state
    gc.collect()
    assert len(Marked.alive) >= 15
    del outputs
    gc.collect()
    assert not Marked.alive, "a cycle through the graph would fill the memory, product by product"
