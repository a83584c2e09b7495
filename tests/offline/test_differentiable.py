"""The network as one differentiable function: it predicts as the engine does, and its gradient is autograd's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgetta.engines.contract import Array, Mixing, Moments, ProgramSet, Statistics
from edgetta.engines.torch import TorchEngine
from edgetta.offline.differentiable import DifferentiableNetwork
from tests.adaptation.backbones import small_model
from tests.engines.programs_of_networks import NETWORKS, generic, gradient, images, programs_of
from tests.export.test_programs import Reference

REGULARISER = 0.7


def moved(programs: ProgramSet) -> tuple[ProgramSet, Statistics]:
    """With parameters at no special point, and statistics near those of the images."""
    programs = replace(programs, shipped=generic(programs)[0])
    own = own_statistics(programs, images(programs, 12).astype(np.float64))
    return programs, Statistics(own.mean + 0.01 * np.sqrt(own.variance), own.variance * 1.02)


def own_statistics(programs: ProgramSet, batch: Array) -> Statistics:
    before = Moments(programs.source.mean, programs.source.variance)
    own = TorchEngine(programs, torch.float64).measure(batch, programs.shipped, Mixing.plain(before, 1.0))[1]
    return Statistics(own.mean, own.variance)


@pytest.mark.parametrize("given", [True, False], ids=["given", "own"])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_predicts_as_the_engine_and_points_where_its_gradient_points(name: str, given: bool) -> None:
    """The engine takes the way through statistics from one bit per element, so that gradients are alike, not equal."""
    programs, statistics = moved(programs_of(name))
    batch, by_logits = images(programs, 12).astype(np.float64), gradient(programs, 12).astype(np.float64)
    used = statistics if given else own_statistics(programs, batch)
    engine = TorchEngine(programs, torch.float64, pack=False)
    passed = engine.forward(batch, programs.shipped, used)
    wanted = engine.backward(passed.residuals, by_logits, REGULARISER, programs.shipped)

    model = DifferentiableNetwork(programs, statistics if given else None).double()
    logits, distances = model(torch.from_numpy(batch))
    np.testing.assert_allclose(logits.detach().numpy(), passed.logits, rtol=1e-6, atol=1e-6)
    assert float(distances.detach().sum()) == pytest.approx(passed.distance, rel=1e-6)
    ((logits * torch.from_numpy(by_logits)).sum() + REGULARISER * distances.sum()).backward()
    found = programs.parameters.join([p.grad.numpy() for p in model.parameters() if p.grad is not None])
    assert found @ wanted > 0.7 * np.linalg.norm(found) * np.linalg.norm(wanted)


class BatchReference(Reference):
    """Every BatchNorm by the batch, with its whole gradient where its weight adapts."""

    def norm(self, layer: str, x: Tensor, weight: Tensor, bias: Tensor, track: bool = True) -> Tensor:
        if weight.requires_grad:
            return F.batch_norm(x, None, None, weight, bias, True, 0.0, 1e-5)
        variance, mean = torch.var_mean(x.detach(), (0, 2, 3), correction=0)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, 1e-5)


@pytest.mark.parametrize("adapt", ["affine", "meta"])
def test_its_gradient_is_that_of_the_network_written_down_again(adapt: str) -> None:
    programs, _ = moved(small_model(adapt=adapt).programs)
    batch = torch.from_numpy(images(programs, 12)).double()
    by_logits = torch.from_numpy(gradient(programs, 12)).double()
    reference = BatchReference(programs, programs.shipped.astype(np.float64), programs.source)
    logits = reference.logits(batch)
    ((logits * by_logits).sum() + REGULARISER * reference.distance).backward()
    model = DifferentiableNetwork(programs).double()
    again, distances = model(batch)
    torch.testing.assert_close(again, logits)
    ((again * by_logits).sum() + REGULARISER * distances.sum()).backward()
    wanted = programs.parameters.split(reference.gradients())
    for (name, array), parameter in zip(wanted.items(), model.parameters(), strict=True):
        assert parameter.grad is not None, name
        np.testing.assert_allclose(parameter.grad.numpy(), array, rtol=1e-7, atol=1e-9, err_msg=name)


def test_distances_reach_their_own_meta_network_alone() -> None:
    programs, _ = moved(small_model(adapt="affine").programs)
    model = DifferentiableNetwork(programs)
    _, distances = model(torch.from_numpy(images(programs, 8)))
    distances[1].backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert reached and all(name.startswith("metas/1/") for name in reached)
    assert model.meta_parameters and all(name.startswith("metas/") for name in model.meta_parameters)
    assert not len(DifferentiableNetwork(programs, distances=False)(torch.zeros(2, 3, 16, 16))[1])
    np.testing.assert_array_equal(model.vector().numpy(), programs.shipped)
