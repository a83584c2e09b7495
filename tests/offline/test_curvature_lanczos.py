"""Lanczos: exact on small matrices, no ghosts in float32, bounds that hold, runs that can be interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from edgetta.errors import UsageError
from edgetta.offline.curvature import (
    CurvatureError,
    HessianOperator,
    MemoryLimitError,
    NotSymmetricError,
    Progress,
    extreme_eigenpairs,
    run_lanczos,
)
from edgetta.offline.curvature.basis import BasisPlan
from tests.offline.small_surfaces import DenseOperator, convolutional, images, surface, symmetric


def network_like(size: int = 400) -> Tensor:
    """A bulk near zero of both signs and a few outliers, as Hessians of networks have."""
    generator = torch.Generator().manual_seed(5)
    bulk = torch.randn(size - 5, generator=generator, dtype=torch.float64) ** 3 * 1e-3
    return torch.cat([torch.tensor([50.0, 20.0, 8.0, 3.0, -4.0], dtype=torch.float64), bulk])


def test_a_full_run_finds_every_eigenvalue_of_a_networks_hessian() -> None:
    operator = HessianOperator(surface(), images(40), batch_size=16)
    exact = torch.linalg.eigvalsh(operator.product(torch.eye(operator.dimension))).numpy()
    found = extreme_eigenpairs(operator, 5, 3, iterations=operator.dimension, tolerance=1e-9)
    np.testing.assert_allclose(found.largest.values, exact[::-1][:5], atol=1e-6)
    np.testing.assert_allclose(found.smallest.values, exact[:3], atol=1e-6)
    assert found.converged
    assert found.magnitude == pytest.approx(abs(exact).max())
    for ends in (found.largest, found.smallest):
        for k, value in enumerate(ends.values):
            vector = ends.vectors[:, k]
            assert float(vector.norm()) == pytest.approx(1)
            assert float((operator.product(vector) - value * vector).norm()) < 1e-6


def test_extremes_agree_with_scipy() -> None:
    linalg = pytest.importorskip("scipy.sparse.linalg", reason="scipy is not installed")
    operator = HessianOperator(surface(batch_norm="batch"), images(32), batch_size=16)
    theirs = linalg.LinearOperator(
        (operator.dimension,) * 2,
        matvec=lambda v: operator.product(torch.from_numpy(np.ascontiguousarray(v)).flatten()).numpy(),
        dtype=np.float64,
    )
    ours = extreme_eigenpairs(operator, 2, 2, iterations=operator.dimension, tolerance=1e-8)
    np.testing.assert_allclose(ours.largest.values[::-1], linalg.eigsh(theirs, 2, which="LA")[0], atol=1e-6)
    np.testing.assert_allclose(ours.smallest.values, linalg.eigsh(theirs, 2, which="SA")[0], atol=1e-6)


def test_no_ghosts_after_100_iterations_in_float32() -> None:
    values = network_like()
    run = run_lanczos(DenseOperator(symmetric(values).float()), 100)
    ritz = run.tridiagonal.values
    for outlier in (50.0, 20.0, 8.0, 3.0, -4.0):
        assert int((abs(ritz - outlier) < 0.02 * abs(outlier)).sum()) == 1
    vectors = torch.stack([run.eigenvector(k).double() for k in range(100)])
    assert float((vectors @ vectors.T - torch.eye(100)).abs().max()) < 1e-4
    assert run.tridiagonal.asymmetry < 1e-4


def test_residual_bounds_hold_and_weights_sum_to_one() -> None:
    values = network_like()
    matrix = symmetric(values)
    tridiagonal = run_lanczos(DenseOperator(matrix), 20).tridiagonal
    distances = np.abs(tridiagonal.values[:, None] - values.numpy()).min(axis=1)
    assert (distances <= tridiagonal.residuals + 1e-12).all()
    assert tridiagonal.residuals.max() > 1e-6
    assert tridiagonal.weights.sum() == pytest.approx(1)
    run = run_lanczos(DenseOperator(matrix), 20)
    top = run.eigenvector(-1)
    measured = float((matrix @ top - tridiagonal.values[-1] * top).norm())
    assert measured == pytest.approx(tridiagonal.residuals[-1], abs=1e-9)


def test_it_stops_early_when_good_enough_and_when_the_space_is_exhausted() -> None:
    operator = DenseOperator(symmetric(network_like()))
    found = extreme_eigenpairs(operator, 1, 0, iterations=100, tolerance=1e-2, vectors=False)
    assert found.converged and found.iterations == operator.products < 15
    assert found.largest.values[0] == pytest.approx(50, rel=1e-3)
    assert found.largest.vectors is None and len(found.smallest.values) == 0
    low_rank = DenseOperator(symmetric(torch.tensor([3.0, 2.0, 1.0] + [0.0] * 60)))
    run = run_lanczos(low_rank, 50)
    assert len(run.tridiagonal.alpha) == 4  # three eigenvalues and the null space
    np.testing.assert_allclose(run.tridiagonal.values, [0, 1, 2, 3], atol=1e-12)
    zero = run_lanczos(DenseOperator(torch.zeros(10, 10)), 5)
    np.testing.assert_allclose(zero.tridiagonal.values, [0])
    hard = extreme_eigenpairs(operator, 1, 1, iterations=3, tolerance=1e-9)
    assert not hard.converged


def test_a_start_vector_near_the_answer_saves_products() -> None:
    operator = DenseOperator(symmetric(network_like()))
    cold = extreme_eigenpairs(operator, 1, 0, tolerance=1e-4)
    noise = torch.randn(400, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e-3
    warm = extreme_eigenpairs(operator, 1, 0, tolerance=1e-4, start=cold.largest.vectors[:, 0] + noise)
    assert warm.iterations < cold.iterations


def test_an_operator_that_is_not_symmetric_or_not_the_same_each_time_is_refused() -> None:
    matrix = symmetric(network_like(60))
    with pytest.raises(NotSymmetricError, match="departs from symmetry"):
        run_lanczos(DenseOperator(matrix + 5 * torch.triu(torch.ones(60, 60).double(), 1)), 20)

    class Restless(DenseOperator):
        def product(self, vectors: Tensor) -> Tensor:
            return super().product(vectors) + torch.randn(vectors.shape, dtype=vectors.dtype)

    torch.manual_seed(0)
    with pytest.raises(NotSymmetricError, match="augmentation"):
        run_lanczos(Restless(matrix), 20)


@pytest.mark.parametrize("storage", ["half", "disk"])
def test_other_storages_give_the_same_eigenvalues(storage: str, tmp_path: Path) -> None:
    operator = DenseOperator(symmetric(network_like()).float())
    exact = run_lanczos(operator, 40).tridiagonal.values
    other = run_lanczos(operator, 40, storage=storage, folder=tmp_path if storage == "disk" else None)
    tolerance = 5e-4 * 50 if storage == "half" else 1e-4
    np.testing.assert_allclose(other.tridiagonal.values[[0, -3, -2, -1]], exact[[0, -3, -2, -1]], atol=tolerance)
    top = other.eigenvector(-1)
    assert float((operator.matrix @ top - 50 * top).norm()) < 2 * tolerance
    assert len(list(tmp_path.glob("basis-*.safetensors"))) == (40 if storage == "disk" else 0)


def test_the_storage_is_decided_and_said_beforehand(tmp_path: Path) -> None:
    device = torch.device("cpu")

    def plan(limit: int, **options: object) -> BasisPlan:
        return BasisPlan.make(1000, 10, torch.float32, device, limit=limit, **options)  # type: ignore[arg-type]

    assert (plan(40_000).storage, plan(40_000).bytes) == ("memory", 40_000)
    assert (plan(39_999).storage, plan(39_999).bytes) == ("half", 20_000)
    assert plan(19_999, folder=tmp_path).storage == "disk"
    with pytest.raises(MemoryLimitError, match="give a folder"):
        plan(19_999)
    with pytest.raises(UsageError, match="needs a folder"):
        plan(40_000, storage="disk")
    with pytest.raises(UsageError, match="'ram' is unknown"):
        plan(40_000, storage="ram")
    events: list[Progress] = []
    run_lanczos(DenseOperator(symmetric(network_like(50))), 3, basis_limit=700, progress=events.append)
    assert [event.step for event in events] == [0, 1, 2, 3]
    assert "half precision" in events[0].message and "limit is 0.0 MiB" in events[0].message


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("storage", ["memory", "half", "disk"])
def test_an_interrupted_run_goes_on_where_it_stopped(storage: str, tmp_path: Path) -> None:
    matrix = symmetric(network_like())
    whole = run_lanczos(DenseOperator(matrix), 12, storage=storage, folder=tmp_path / "whole")

    def interrupt(event: Progress) -> None:
        if event.step == 5:
            raise Interrupted

    folder = tmp_path / "parts"
    with pytest.raises(Interrupted):
        run_lanczos(DenseOperator(matrix), 12, storage=storage, folder=folder, progress=interrupt)
    operator = DenseOperator(matrix)
    resumed = run_lanczos(operator, 12, storage=storage, folder=folder)
    assert operator.products == 7
    np.testing.assert_array_equal(resumed.tridiagonal.alpha, whole.tridiagonal.alpha)
    np.testing.assert_array_equal(resumed.tridiagonal.beta, whole.tridiagonal.beta)
    torch.testing.assert_close(resumed.eigenvector(-1), whole.eigenvector(-1))
    operator = DenseOperator(matrix)
    again = run_lanczos(operator, 12, storage=storage, folder=folder)
    assert operator.products == 0
    torch.testing.assert_close(again.eigenvector(0), whole.eigenvector(0))


def test_a_folder_with_another_or_a_damaged_run_is_refused(tmp_path: Path) -> None:
    operator = DenseOperator(symmetric(network_like(50)))
    run_lanczos(operator, 5, folder=tmp_path)
    with pytest.raises(CurvatureError, match="differs in iterations, start"):
        run_lanczos(operator, 6, seed=1, folder=tmp_path)
    (tmp_path / "basis-00002.safetensors").write_bytes(b"nothing")
    with pytest.raises(CurvatureError, match="basis-00002"):
        run_lanczos(operator, 5, folder=tmp_path)
    (tmp_path / "state.json").write_text(json.dumps({"key": {}}))
    with pytest.raises(CurvatureError, match="delete the folder"):
        run_lanczos(operator, 5, folder=tmp_path)


def test_another_model_is_another_run(tmp_path: Path) -> None:
    data = images(8)
    run_lanczos(HessianOperator(surface(), data), 3, folder=tmp_path)
    with pytest.raises(CurvatureError, match="differs in operator"):
        run_lanczos(HessianOperator(surface(convolutional(seed=9)), data), 3, folder=tmp_path)


def test_what_cannot_be_run_is_refused() -> None:
    operator = DenseOperator(symmetric(network_like(50)))
    with pytest.raises(UsageError, match="1 or more"):
        run_lanczos(operator, 0)
    with pytest.raises(UsageError, match="start vector"):
        run_lanczos(operator, 3, start=torch.zeros(50))
    with pytest.raises(UsageError, match="ask for one"):
        extreme_eigenpairs(operator, 0, 0)
    with pytest.raises(UsageError, match="keep_basis"):
        run_lanczos(operator, 3, keep_basis=False).eigenvector(0)
