"""The adaptation objective as a surface: over all that adapts, the device's objective, and its curvature is exact."""

from __future__ import annotations

import gc
import math
import weakref
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from edgetta.adaptation.objective import entropy, filtered_entropy
from edgetta.engines.contract import ProgramSet, Statistics
from edgetta.engines.torch import TorchEngine
from edgetta.errors import UsageError
from edgetta.offline.curvature import HessianOperator, LossSurface, extreme_eigenpairs
from edgetta.offline.curvature.adaptation import adaptation_surface
from edgetta.offline.differentiable import DifferentiableNetwork
from tests.adaptation.backbones import small_programs
from tests.offline.test_differentiable import own_statistics

REGULARISER = 0.7


def images(count: int = 24, seed: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def surface(programs: ProgramSet, *arguments: Any, **options: Any) -> LossSurface:
    return adaptation_surface(programs, *arguments, dtype=torch.float64, **options)


def with_parameters(programs: ProgramSet, vector: Any) -> ProgramSet:
    return replace(programs, shipped=np.asarray(vector, np.float64))


@pytest.mark.parametrize("own", [True, False], ids=["own", "given"])
@pytest.mark.parametrize("initialisation", ["identity", "published"])
def test_its_value_is_the_objective_that_the_device_descends(initialisation: str, own: bool) -> None:
    programs = small_programs(initialisation)
    batch = images().numpy()
    used = own_statistics(programs, batch) if own else programs.source
    passed = TorchEngine(programs, torch.float64).forward(batch, programs.shipped, used)
    margin = float(entropy(passed.logits).mean()) / math.log(5)  # so that the filter drops about half
    objective = filtered_entropy(passed.logits, margin)
    assert 0 < objective.kept < 24
    found = surface(programs, statistics=None if own else used, regulariser=REGULARISER, margin=margin)
    operator = HessianOperator(found, images(), batch_size=24)
    assert operator.loss() == pytest.approx(objective.value + REGULARISER * passed.distance, rel=1e-5)


def test_it_is_over_all_that_adapts_and_not_the_meta_networks_alone() -> None:
    programs = small_programs()
    assert any("weight" in name for name in programs.parameters.shapes if name.startswith("part"))
    everything = HessianOperator(surface(programs), images(12), batch_size=12)
    assert everything.dimension == programs.parameters.size
    alone = HessianOperator(surface(programs, affine=False), images(12), batch_size=12)
    ours = np.concatenate(
        [np.full(math.prod(s), n.startswith("metas.")) for n, s in programs.parameters.shapes.items()]
    )
    assert alone.dimension == ours.sum() < everything.dimension
    vector = torch.zeros(everything.dimension, dtype=torch.float64)
    vector[~torch.from_numpy(ours)] = 1.0
    product = everything.product(vector).numpy()
    assert float(np.abs(product[~ours]).max()) > 1e-6, "biases and weights inside the frozen parts bend it, too"
    assert float(np.abs(product[ours]).max()) > 1e-6, "and not for themselves alone"
    np.testing.assert_allclose(everything.gradient().numpy()[ours], alone.gradient().numpy(), rtol=1e-9, atol=1e-12)


def test_cross_entropy_is_that_of_warm_up() -> None:
    programs = small_programs()
    labels = torch.arange(24) % 5
    model = DifferentiableNetwork(programs, distances=False).double()
    torch.nn.functional.cross_entropy(model(images())[0], labels).backward()
    operator = HessianOperator(surface(programs, "cross_entropy"), (images(), labels), batch_size=24)
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(operator.gradient(), expected, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("own", [True, False], ids=["own", "given"])
def test_its_hessian_is_symmetric_and_indefinite(own: bool) -> None:
    programs = small_programs()
    given = None if own else own_statistics(programs, images(12, seed=8).numpy())
    operator = HessianOperator(surface(programs, statistics=given, regulariser=0.3), images(12), batch_size=12)
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(2, operator.dimension, generator=generator, dtype=torch.float64)
    assert float(u @ operator.product(v)) == pytest.approx(float(v @ operator.product(u)), rel=1e-9)
    plain = HessianOperator(surface(programs, statistics=given), images(12), batch_size=12)
    ends = extreme_eigenpairs(plain, iterations=25, tolerance=1e-2)
    assert ends.smallest.values[0] < 0 < ends.largest.values[0]


def test_its_hessian_equals_differences_of_gradients() -> None:
    """With each batch's own statistics; given ones stand where the parameters are."""
    programs = small_programs()
    operator = HessianOperator(surface(programs), images(12), batch_size=12)
    vector = torch.randn(operator.dimension, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sides = []
    for step in (1e-6, -1e-6):
        moved = with_parameters(programs, programs.shipped + step * vector.numpy())
        sides.append(HessianOperator(surface(moved), images(12), batch_size=12).gradient())
    torch.testing.assert_close(operator.product(vector), (sides[0] - sides[1]) / 2e-6, atol=1e-4, rtol=1e-4)


def test_batches_stay_whole() -> None:
    found = surface(small_programs())
    assert not found.splittable
    HessianOperator(found, images(18), batch_size=6).product(torch.ones(found.dimension, dtype=torch.float64))
    with pytest.raises(UsageError, match="objective 'margin' is unknown"):
        surface(small_programs(), "margin")


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


@pytest.mark.parametrize("own", [True, False], ids=["own", "given"])
def test_nothing_is_alive_after_a_forward_that_nobody_holds(own: bool) -> None:
    programs = small_programs()
    given: Statistics | None = None if own else programs.source
    model = DifferentiableNetwork(programs, given).double()
    state = {name: Marked.apply(value) for name, value in model.named_parameters()}
    state |= {name: value.clone() for name, value in model.named_buffers()}
    outputs = torch.func.functional_call(model, state, (images(),))
    del state
    gc.collect()
    assert len(Marked.alive) >= 15
    del outputs
    gc.collect()
    assert not Marked.alive, "a cycle through the graph would fill the memory, product by product"
