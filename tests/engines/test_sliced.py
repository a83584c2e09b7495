"""A batch in slices: the same logits, distances and moments, and gradients that are those of its slices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgetta.engines.sliced import SlicedEngine
from edgetta.engines.torch import TorchEngine
from tests.engines.programs_of_networks import generic, gradient, images, programs_of, relative


def engines(size: int) -> tuple[TorchEngine, SlicedEngine]:
    whole = TorchEngine(programs_of("resnet20"), torch.float64, pack=False)
    return whole, SlicedEngine(whole, size)


@pytest.mark.parametrize("size", [4, 6, 100])
def test_a_forward_in_slices_is_the_forward(size: int) -> None:
    whole, sliced = engines(size)
    parameters, statistics = generic(whole.programs)
    batch = images(whole.programs, 10)
    found = sliced.forward(batch, parameters, statistics)
    wanted = whole.forward(batch, parameters, statistics)
    assert relative(found.logits, wanted.logits) < 1e-12 and abs(found.distance - wanted.distance) < 1e-12
    assert found.moments is not None and wanted.moments is not None
    assert relative(found.moments.mean, wanted.moments.mean) < 1e-12
    assert relative(found.moments.variance, wanted.moments.variance) < 1e-9
    assert found.residuals.batch == 10
    assert 1 <= found.residuals.nbytes / wanted.residuals.nbytes < 1.02  # numbers per channel are kept per slice
    assert sliced.forward(batch, parameters, statistics, moments=False).moments is None


def test_gradients_are_those_of_the_slices_and_near_those_of_the_whole() -> None:
    whole, sliced = engines(6)
    parameters, statistics = generic(whole.programs)
    parameters = parameters.astype(np.float64)
    batch, grad = images(whole.programs, 12), gradient(whole.programs, 12)
    passed = sliced.forward(batch, parameters, statistics)
    found = sliced.backward(passed.residuals, grad, 0.7, parameters)
    again = sliced.recompute(batch, grad, 0.7, parameters, statistics)
    pieces = [
        whole.recompute(batch[rows], grad[rows], 0.35, parameters, statistics) for rows in (slice(0, 6), slice(6, 12))
    ]
    assert relative(found, sum(pieces)) < 1e-12 and relative(again, sum(pieces)) < 1e-12
    wanted = whole.recompute(batch, grad, 0.7, parameters, statistics)
    assert found @ wanted > 0.8 * np.linalg.norm(found) * np.linalg.norm(wanted)
    assert passed.residuals.nbytes == 0, "used up"


def test_slices_hold_images() -> None:
    with pytest.raises(ValueError, match="hold none"):
        engines(0)
