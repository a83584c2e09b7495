"""Hessian variance, batch eigenvalues and batch sharpness against dense matrices of every sample."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from edgetta.errors import UsageError
from edgetta.offline.curvature import (
    DataSetTooSmallError,
    GaussNewtonOperator,
    HessianOperator,
    NotFiniteError,
    extreme_eigenpairs,
)
from edgetta.offline.learning_rate import (
    BatchExtremes,
    HessianVariance,
    batch_sharpness,
    directional_variance,
    draw_batches,
    hessian_variance,
    measure_ladder,
    measure_whole,
)
from tests.offline.small_surfaces import flat_loss, images, surface

COUNT = 96


@pytest.fixture(scope="module")
def operator() -> HessianOperator:
    return HessianOperator(surface(), images(COUNT))


@pytest.fixture(scope="module")
def each(operator: HessianOperator) -> Tensor:
    """The Hessian of every sample, [N, P, P]."""
    net = operator.surface.model.eval()
    names = list(operator.surface.parameters)
    flat = torch.cat([parameter.detach().flatten() for parameter in net.parameters()])

    def loss(vector: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return flat_loss(net, x[None], y[None], names, vector)

    return torch.func.vmap(torch.func.hessian(loss), in_dims=(None, 0, 0))(flat, *images(COUNT)).detach()


def test_variance_equals_that_of_the_samples_hessians(operator: HessianOperator, each: Tensor) -> None:
    exact = float((each - each.mean(dim=0)).square().sum()) / (COUNT - 1) / operator.dimension
    many = [hessian_variance(operator, (2, 8), probes=6, batches=12, seed=seed) for seed in range(6)]
    values = [found.pooled.value for found in many]
    assert np.mean(values) == pytest.approx(exact, abs=4 * np.std(values) / len(many) ** 0.5)
    assert np.std(values) < 0.3 * exact
    assert sum(exact in found.pooled for found in many) >= 5
    assert sum(found.scales for found in many) >= 5
    assert many[0].at(2).value + many[0].at(8).value == pytest.approx(2 * values[0])


def test_noise_that_does_not_fall_as_one_over_the_batch_is_noticed() -> None:
    generator = np.random.default_rng(0)
    tables = (1 + 0.1 * generator.random((4, 5)), 3 + 0.1 * generator.random((4, 5)))
    assert not HessianVariance((8, 32), tables, 0).scales
    assert HessianVariance((8,), tables[:1], 0).scales


def test_directional_variance_equals_that_along_an_eigenvector(operator: HessianOperator, each: Tensor) -> None:
    top = extreme_eigenpairs(operator, 1, 0, tolerance=1e-6).largest.vectors[:, 0]
    moved = each @ top - each.mean(dim=0) @ top
    along = float((moved @ top).square().sum()) / (COUNT - 1)
    across = float((moved - torch.outer(moved @ top, top)).square().sum()) / (COUNT - 1)
    many = [directional_variance(operator, 3 * top, 4, batches=24, seed=seed) for seed in range(10)]
    for exact, found in ((across, [one.across for one in many]), (along, [one.along for one in many])):
        values = [interval.value for interval in found]
        assert np.mean(values) == pytest.approx(exact, abs=4 * np.std(values) / len(many) ** 0.5)
        assert sum(exact in interval for interval in found) >= 7
    isotropic = float((each - each.mean(dim=0)).square().sum()) / (COUNT - 1) / operator.dimension
    assert across > 2 * isotropic  # why the isotropic model is not enough


def test_variance_is_refused_where_it_is_not_defined_or_the_data_do_not_suffice() -> None:
    coupled = HessianOperator(surface(batch_norm="batch"), images(64))
    with pytest.raises(UsageError, match="not defined where samples are coupled"):
        hessian_variance(coupled, (8,))
    small = HessianOperator(surface(), images(40))
    with pytest.raises(DataSetTooSmallError, match="8 batches of 8 need 64 samples and the data set has 40"):
        hessian_variance(small, (8,))
    with pytest.raises(UsageError, match="no pair"):
        hessian_variance(small, (8,), batches=1)


def test_batches_are_disjoint_until_the_data_are_used_up() -> None:
    drawn = draw_batches(20, 6, 5, seed=3)
    assert [len(set(batch)) for batch in drawn] == [6] * 5
    assert len({index for batch in drawn[:3] for index in batch}) == 18
    assert drawn == draw_batches(20, 6, 5, seed=3) != draw_batches(20, 6, 5, seed=4)


@pytest.mark.parametrize("batch_norm", ["source", "batch"])
def test_measured_extremes_are_those_of_the_dense_batch_matrices(batch_norm: str) -> None:
    whole = HessianOperator(surface(batch_norm=batch_norm), images(COUNT))
    ladder = measure_ladder(whole, (32, 8), batches=3, iterations=51, tolerance=1e-6, seed=1)
    assert ladder.batch_sizes == (8, 32) and ladder.samples == COUNT
    eye = torch.eye(whole.dimension, dtype=torch.float64)
    for rung in ladder.rungs:
        for k, indices in enumerate(draw_batches(COUNT, rung.batch_size, 3, 1)):
            exact = torch.linalg.eigvalsh(whole.on_batch(indices).product(eye))
            assert rung.largest[k] == pytest.approx(float(exact[-1]), abs=1e-6)
            assert rung.smallest[k] == pytest.approx(float(exact[0]), abs=1e-6)
    assert ladder.sample_products == sum(rung.products * rung.batch_size for rung in ladder.rungs)


def test_batch_extremes_exceed_those_of_the_whole(operator: HessianOperator) -> None:
    # Over a partition this is certain: the largest eigenvalue is convex.
    ladder = measure_ladder(operator, (8, 24, COUNT), batches=4, iterations=51, tolerance=1e-6)
    tops = [rung.lambda_max.value for rung in ladder.rungs]
    bottoms = [rung.lambda_min.value for rung in ladder.rungs]
    assert tops[0] > tops[1] > tops[2] and bottoms[0] < bottoms[1] < bottoms[2]
    assert len(ladder.rungs[2].largest) == 1  # the whole data set is one batch


def test_a_loose_tolerance_saves_products_and_stays_close(operator: HessianOperator) -> None:
    exact = measure_ladder(operator, (16,), batches=6, iterations=51, tolerance=1e-8)
    loose = measure_ladder(operator, (16,), batches=6, iterations=51, tolerance=0.05)
    assert loose.products < 0.6 * exact.products
    np.testing.assert_allclose(loose.rungs[0].largest, exact.rungs[0].largest, rtol=0.01)
    only = measure_ladder(operator, (16,), batches=6, iterations=51, tolerance=0.05, smallest=False)
    assert only.products <= loose.products
    np.testing.assert_allclose(only.rungs[0].largest, exact.rungs[0].largest, rtol=0.01)
    hurried = measure_ladder(operator, (16,), batches=2, iterations=3, tolerance=1e-8)
    assert hurried.rungs[0].unconverged == 2


def test_magnitudes_take_the_larger_end() -> None:
    assert BatchExtremes(8, (1.0, 4.0), (-3.0, -1.0), 5, 0).magnitudes == (3.0, 4.0)


def test_a_ladder_that_cannot_be_climbed_is_refused(operator: HessianOperator) -> None:
    with pytest.raises(DataSetTooSmallError, match="a batch of 97 is larger than the data set of 96"):
        measure_ladder(operator, (8, 97))
    with pytest.raises(UsageError, match="give positive ones"):
        measure_ladder(operator, ())


def test_batch_sharpness_is_the_curvature_along_the_gradients(operator: HessianOperator, each: Tensor) -> None:
    (found,) = batch_sharpness(operator, (12,), batches=5, seed=2)
    above, below = [], []
    for indices in draw_batches(COUNT, 12, 5, 2):
        gradient = operator.on_batch(indices).gradient()
        above.append(float(gradient @ each[indices].mean(dim=0) @ gradient))
        below.append(float(gradient @ gradient))
    assert found.value.value == pytest.approx(np.mean(above) / np.mean(below))
    assert found.mean_ratio.value == pytest.approx(np.mean(np.divide(above, below)))
    assert found.value.low <= found.value.value <= found.value.high
    tops = [float(torch.linalg.eigvalsh(each[i].mean(dim=0))[-1]) for i in draw_batches(COUNT, 12, 5, 2)]
    assert found.value.value < max(tops)


def test_batch_sharpness_needs_a_gradient() -> None:
    net = torch.nn.Linear(2, 3, bias=False).double()
    flat = HessianOperator(surface(net), (torch.zeros(8, 2).double(), torch.zeros(8, dtype=torch.long)))
    with pytest.raises(NotFiniteError, match="gradient of a batch of 4 is zero"):
        batch_sharpness(flat, (4,), batches=2)


@pytest.mark.parametrize(("kind", "theory"), [(HessianOperator, "perturbed"), (GaussNewtonOperator, "perturbed")])
def test_predictions_meet_measured_batches(kind: Callable[..., HessianOperator], theory: str) -> None:
    whole = kind(surface(), images(400, seed=7))
    facts = measure_whole(whole, batch_sizes=(16,), batches=24, tolerance=1e-4)
    ladder = measure_ladder(whole, (50, 100), batches=8, tolerance=1e-3)
    for rung in ladder.rungs:
        predicted = facts.predict(rung.batch_size, theory).maximum
        assert predicted.value == pytest.approx(rung.lambda_max.value, rel=0.15)
        assert facts.predict(rung.batch_size, theory, fresh=True).maximum.value > predicted.value
    exact = facts.predict(400, theory).maximum.value
    assert exact == pytest.approx(facts.largest)


def test_each_theory_says_what_it_is_for() -> None:
    data = images(64)
    hessian = measure_whole(HessianOperator(surface(), data), batch_sizes=(4, 8), batches=4)
    both = hessian.predict(8, "wigner")
    assert both.maximum.low <= both.maximum.value <= both.maximum.high
    assert both.minimum is not None and both.minimum.value < hessian.smallest < 0
    assert hessian.predict(8, "perturbed").minimum is not None
    assert hessian.crossover.value > 0
    with pytest.raises(UsageError, match="for Gauss-Newton and Fisher matrices, not hessian"):
        hessian.predict(8, "marchenko_pastur")
    with pytest.raises(UsageError, match="'free' is not one of"):
        hessian.predict(8, "free")
    ggn = measure_whole(GaussNewtonOperator(surface(), data), batch_sizes=(4, 8), batches=4)
    found = ggn.predict(8, "marchenko_pastur")
    assert found.minimum is None and found.maximum.value > ggn.largest
    assert ggn.predict(64, "marchenko_pastur").maximum.value == pytest.approx(ggn.largest)
