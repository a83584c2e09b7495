"""Predicted extreme eigenvalues against simulated spiked matrices."""

from __future__ import annotations

import numpy as np
import pytest

from edgetta.errors import UsageError
from edgetta.offline.learning_rate import (
    Bulk,
    marchenko_pastur_largest,
    marchenko_pastur_outlier,
    perturbed_extreme,
    sampling_share,
    wigner_crossover,
    wigner_extremes,
)


def symmetric_noise(generator: np.random.Generator, size: int) -> np.ndarray:
    """A symmetric matrix with entries of variance one (two on the diagonal)."""
    square = generator.standard_normal((size, size))
    return (square + square.T) / 2**0.5


@pytest.mark.parametrize("batch_size", [2, 8, 30, 100, 1000])
def test_wigner_extremes_equal_simulated_ones_in_both_branches(batch_size: int) -> None:
    size, variance = 400, 40.0
    generator = np.random.default_rng(batch_size)
    whole = np.zeros(size)
    whole[:3] = 3.0, 1.0, -1.5
    found = []
    for _ in range(3):
        noise = symmetric_noise(generator, size) * (variance / batch_size / size) ** 0.5
        values = np.linalg.eigvalsh(np.diag(whole) + noise)
        found.append((values[-1], values[0]))
    largest, smallest = np.mean(found, axis=0)
    predicted = wigner_extremes(3.0, -1.5, variance, batch_size)
    assert predicted == (pytest.approx(largest, rel=0.03), pytest.approx(smallest, rel=0.03))
    above = batch_size > wigner_crossover(3.0, variance)
    assert above == (predicted[0] > 2 * (variance / batch_size) ** 0.5 * 1.0001)


def test_the_branches_join_at_the_crossover_with_twice_the_eigenvalue() -> None:
    crossover = wigner_crossover(3.0, 40.0)
    assert wigner_extremes(3.0, -1.0, 40.0, crossover * 1.0001)[0] == pytest.approx(6, rel=1e-3)
    assert wigner_extremes(3.0, -1.0, 40.0, crossover * 0.9999)[0] == pytest.approx(6, rel=1e-3)


def test_a_matrix_without_a_spike_shows_the_edge_of_the_noise() -> None:
    assert wigner_extremes(0.0, 0.0, 4.0, 1) == (4.0, -4.0)
    assert wigner_extremes(-1.0, -2.0, 4.0, 100)[0] == pytest.approx(0.4)


def test_drawing_without_replacement_shrinks_the_noise_to_nothing_at_the_whole() -> None:
    size, samples = 120, 64
    generator = np.random.default_rng(0)
    spike = np.zeros((size, size))
    spike[0, 0] = 4.0
    each = np.stack([spike + symmetric_noise(generator, size) * (30.0 / size) ** 0.5 for _ in range(samples)])
    whole = np.linalg.eigvalsh(each.mean(axis=0))
    assert wigner_extremes(whole[-1], whole[0], 30.0, samples, samples)[0] == pytest.approx(whole[-1])
    for batch_size in (8, 32):
        tops = [
            np.linalg.eigvalsh(each[generator.permutation(samples)[:batch_size]].mean(axis=0))[-1] for _ in range(6)
        ]
        predicted = wigner_extremes(whole[-1], whole[0], 30.0, batch_size, samples)[0]
        assert np.mean(tops) == pytest.approx(predicted, rel=0.05)
        assert predicted < wigner_extremes(whole[-1], whole[0], 30.0, batch_size)[0]
    assert sampling_share(8) == 1 / 8 and sampling_share(64, 64) == 0
    for size_, count in ((0, None), (65, 64)):
        with pytest.raises(UsageError, match="cannot be drawn"):
            sampling_share(size_, count)


@pytest.mark.parametrize("batch_size", [5, 20, 100, 400])
def test_marchenko_pastur_equals_simulated_sample_covariances(batch_size: int) -> None:
    size, level, spike = 300, 0.5, 12.0
    generator = np.random.default_rng(batch_size)
    deviations = np.full(size, level**0.5)
    deviations[0] = spike**0.5
    tops = []
    for _ in range(max(12, 600 // batch_size)):
        rows = generator.standard_normal((batch_size, size)) * deviations
        tops.append(np.linalg.eigvalsh(rows @ rows.T / batch_size)[-1])
    predicted = marchenko_pastur_largest(spike, Bulk(level, size - 1), batch_size)
    assert np.mean(tops) == pytest.approx(predicted, rel=0.12)
    # Linear in 1/b while noise rules, and the outlier formula needs nothing but a trace.
    assert marchenko_pastur_outlier(spike, level * (size - 1), batch_size) == pytest.approx(predicted, rel=0.25)


def test_marchenko_pastur_without_replacement_from_a_finite_set() -> None:
    generator = np.random.default_rng(1)
    rows = generator.standard_normal((300, 200))
    rows[:, 0] *= 5
    whole = rows.T @ rows / 300
    values = np.linalg.eigvalsh(whole)
    bulk = Bulk.remaining(np.trace(whole), (whole**2).sum(), [values[-1]])
    assert bulk.level * bulk.dimension == pytest.approx(values[:-1].sum())
    assert bulk.level**2 * bulk.dimension == pytest.approx((values[:-1] ** 2).sum())
    for batch_size in (30, 100, 300):
        tops = []
        for _ in range(10):
            batch = rows[generator.permutation(300)[:batch_size]]
            tops.append(np.linalg.eigvalsh(batch @ batch.T / batch_size)[-1])
        predicted = marchenko_pastur_largest(values[-1], bulk, batch_size, 300)
        assert np.mean(tops) == pytest.approx(predicted, rel=0.1)


def test_a_bulk_cannot_be_negative() -> None:
    with pytest.raises(UsageError, match="leave nothing"):
        Bulk.remaining(3.0, 20.0, [4.0])


def test_noise_along_the_eigenvector_predicts_where_isotropic_noise_fails() -> None:
    size, batch_size = 300, 40
    generator = np.random.default_rng(2)
    # All noise sits in the first row and column: it meets the spike's eigenvector and nothing else.
    spike = np.zeros((size, size))
    spike[0, 0] = 5.0
    tops = []
    for _ in range(10):
        noise = np.zeros((size, size))
        noise[0, 1:] = noise[1:, 0] = generator.standard_normal(size - 1) * (30.0 / batch_size / size) ** 0.5
        tops.append(np.linalg.eigvalsh(spike + noise)[-1])
    across = 30.0 * (size - 1) / size  # b E ||E u||^2
    average = 2 * across / size  # b ||E||_F^2 / P, what random vectors see
    assert np.mean(tops) == pytest.approx(perturbed_extreme(5.0, across, batch_size), rel=0.01)
    assert wigner_extremes(5.0, 0.0, average, batch_size)[0] == pytest.approx(5.0, rel=1e-3)
    assert np.mean(tops) > 5.1
