"""Micro-batches that keep a memory limit, and batches that must not be split."""

from __future__ import annotations

import pytest
import torch

from edgetta.offline.curvature import OPERATORS, GaussNewtonOperator, HessianOperator, MemoryLimitError
from tests.offline.small_surfaces import convolutional, images, surface


def test_what_is_counted_grows_with_the_samples_and_covers_the_activations() -> None:
    operator = HessianOperator(surface(), images(64), batch_size=64)
    sizes = [operator.product_bytes(count) for count in (1, 2, 4, 8)]
    per_sample = sizes[1] - sizes[0]
    assert sizes[3] - sizes[2] == pytest.approx(4 * per_sample, rel=0.2)
    activations = (16 + 3 * 4 * 2) * 8  # input, convolution, BatchNorm and tanh, in float64
    assert per_sample > activations


@pytest.mark.parametrize("kind", sorted(OPERATORS))
def test_a_limit_splits_batches_and_leaves_the_result(kind: str) -> None:
    data = images(30)
    whole = OPERATORS[kind](surface(), data, batch_size=30)
    limit = whole.product_bytes(7)
    split = OPERATORS[kind](surface(), data, batch_size=30, memory_limit=limit)
    assert 4 <= split.micro_batch <= 8
    assert split.product_bytes(split.micro_batch) <= 1.1 * limit
    vector = torch.randn(whole.dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(split.product(vector), whole.product(vector), atol=1e-14, rtol=0)
    assert split.loss() == pytest.approx(whole.loss(), abs=1e-14)
    torch.testing.assert_close(split.gradient(), whole.gradient(), atol=1e-14, rtol=0)
    roomy = OPERATORS[kind](surface(), data, batch_size=30, memory_limit=10**9)
    assert roomy.micro_batch == 30


def test_a_limit_below_one_sample_is_an_error_with_the_figures() -> None:
    operator = HessianOperator(surface(), images(30), memory_limit=1000)
    with pytest.raises(MemoryLimitError, match=r"one sample needs about 0\.0 MiB"):
        operator.product(torch.ones(operator.dimension))


@pytest.mark.parametrize("options", [{"batch_norm": "batch"}, {"separable": False}])
def test_coupled_samples_are_never_split(options: dict[str, object]) -> None:
    data = images(32)
    free = GaussNewtonOperator(surface(**options), data, batch_size=32)
    limit = free.product_bytes(8)
    with pytest.raises(MemoryLimitError, match="it cannot be split"):
        GaussNewtonOperator(surface(**options), data, batch_size=32, memory_limit=limit).gradient()
    fits = GaussNewtonOperator(surface(**options), data, batch_size=4, memory_limit=limit)
    assert fits.micro_batch == 4
    vector = torch.ones(free.dimension)
    torch.testing.assert_close(
        fits.product(vector), GaussNewtonOperator(surface(**options), data, batch_size=4).product(vector)
    )


def test_the_policy_couples_nothing_where_there_is_no_batch_norm() -> None:
    net = convolutional()
    net[1] = torch.nn.Identity()
    assert surface(net, batch_norm="batch").splittable
    assert not surface(batch_norm="batch").splittable
