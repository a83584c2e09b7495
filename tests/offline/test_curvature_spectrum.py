"""Spectral densities, traces, and their files and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgetta.errors import UsageError
from edgetta.offline.curvature import (
    CurvatureError,
    HessianOperator,
    Progress,
    Spectrum,
    describe,
    hutchinson,
    load_spectrum,
    measure_spectrum,
    plot_spectrum,
    save_spectrum,
)
from tests.offline.small_surfaces import DenseOperator, images, surface, symmetric


def eigenvalues(size: int = 600) -> torch.Tensor:
    """Half near one, the other half uniform between -1 and 0, and one outlier."""
    generator = torch.Generator().manual_seed(0)
    return torch.cat(
        [
            1 + 0.01 * torch.randn(size // 2, generator=generator, dtype=torch.float64),
            -torch.rand(size // 2 - 1, generator=generator, dtype=torch.float64),
            torch.tensor([5.0], dtype=torch.float64),
        ]
    )


@pytest.fixture(scope="module")
def measured() -> Spectrum:
    return measure_spectrum(DenseOperator(symmetric(eigenvalues())), iterations=40, probes=8)


def test_the_density_integrates_to_one_and_has_the_right_masses(measured: Spectrum) -> None:
    density = measured.density(4000, width=0.02)
    step = density.grid[1] - density.grid[0]
    assert density.mean.sum() * step == pytest.approx(1, abs=1e-3)
    upper = (density.grid > 0.5) & (density.grid < 3)
    assert density.mean[upper].sum() * step == pytest.approx(0.5, abs=0.05)
    assert (density.error >= 0).all()


def test_the_density_equals_the_exact_one_within_its_errors(measured: Spectrum) -> None:
    density = measured.density(200, width=0.1)
    bumps = np.exp(-0.5 * ((density.grid[:, None] - eigenvalues().numpy()) / 0.1) ** 2) / (0.1 * (2 * np.pi) ** 0.5)
    exact = bumps.mean(axis=1)
    assert (np.abs(density.mean - exact) <= 4 * density.error + 0.02 * exact.max()).mean() > 0.97


def test_extremes_and_moments(measured: Spectrum) -> None:
    exact = eigenvalues().numpy()
    assert measured.largest[0] == pytest.approx(5, abs=1e-6)
    assert measured.smallest[0] == pytest.approx(exact.min(), abs=1e-2)
    trace, error = measured.trace()
    assert abs(trace - exact.sum()) < 4 * error
    square, error = measured.moment(np.square)
    assert abs(square - (exact**2).mean()) < 4 * error


def test_quantiles_use_weights_not_counts(measured: Spectrum) -> None:
    assert measured.quantile(0.25) == pytest.approx(np.quantile(eigenvalues().numpy(), 0.25), abs=0.1)
    assert measured.quantile(0.75) == pytest.approx(1, abs=0.02)
    assert measured.quantile(0, magnitude=True, above=0.9) >= 0.9
    assert measured.quantile(1) == pytest.approx(5, abs=1e-6)
    with pytest.raises(UsageError, match="no Ritz value"):
        measured.quantile(0.5, above=10)
    with pytest.raises(UsageError, match="level"):
        measured.quantile(1.5)


def test_one_probe_has_no_error_bar() -> None:
    single = measure_spectrum(DenseOperator(symmetric(eigenvalues(60))), iterations=10, probes=1)
    assert np.isnan(single.density(10).error).all() and np.isnan(single.trace()[1])
    with pytest.raises(UsageError, match="probes"):
        measure_spectrum(DenseOperator(symmetric(eigenvalues(60))), probes=0)


def test_hutchinson_within_its_errors_whatever_the_block() -> None:
    exact = eigenvalues().numpy()
    operator = DenseOperator(symmetric(eigenvalues()))
    moments = hutchinson(operator, 40, block=7, seed=3)
    assert operator.products == 6
    assert len(moments.trace.samples) == 40 and moments.trace.error > 0
    assert abs(moments.trace.value - exact.sum()) < 4 * moments.trace.error
    assert abs(moments.squared_norm.value - (exact**2).sum()) < 4 * moments.squared_norm.error
    np.testing.assert_allclose(hutchinson(operator, 40, block=1, seed=3).trace.samples, moments.trace.samples)
    assert np.isnan(hutchinson(operator, 1).trace.error)
    with pytest.raises(UsageError, match="probes"):
        hutchinson(operator, 0)


def test_hutchinson_of_a_diagonal_matrix_is_exact() -> None:
    moments = hutchinson(DenseOperator(torch.diag(torch.arange(10.0))), 3)
    assert moments.trace.samples == (45, 45, 45)


def test_finished_probes_are_kept_and_the_basis_is_not(tmp_path: Path) -> None:
    matrix = symmetric(eigenvalues(60))

    class Stop(Exception):
        pass

    def stop(event: Progress) -> None:
        if event.step == 14:
            raise Stop

    with pytest.raises(Stop):
        measure_spectrum(DenseOperator(matrix), iterations=10, probes=3, folder=tmp_path, progress=stop)
    operator = DenseOperator(matrix)
    resumed = measure_spectrum(operator, iterations=10, probes=3, folder=tmp_path)
    assert operator.products == 30 - 14
    whole = measure_spectrum(DenseOperator(matrix), iterations=10, probes=3)
    for ours, theirs in zip(resumed.runs, whole.runs, strict=True):
        np.testing.assert_array_equal(ours.values, theirs.values)
    assert not list(tmp_path.rglob("basis-*"))


def test_spectra_survive_the_disk(tmp_path: Path) -> None:
    operator = HessianOperator(surface(batch_norm="batch"), images(16), batch_size=8)
    measured = measure_spectrum(operator, iterations=10, probes=2, description=describe(operator))
    path = save_spectrum(measured, tmp_path / "out")
    loaded = load_spectrum(tmp_path / "out")
    for ours, theirs in zip(loaded.runs, measured.runs, strict=True):
        np.testing.assert_array_equal(ours.values, theirs.values)
        np.testing.assert_array_equal(ours.weights, theirs.weights)
        np.testing.assert_array_equal(ours.residuals, theirs.residuals)
    assert loaded.description == measured.description
    facts = json.loads(path.read_text())
    assert facts["largest"] == measured.largest[0]
    assert facts["description"]["batch_norm"] == "batch" and facts["description"]["parameters"] == operator.dimension


def test_a_missing_damaged_or_newer_spectrum_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CurvatureError, match="no readable spectrum"):
        load_spectrum(tmp_path)
    path = save_spectrum(measure_spectrum(DenseOperator(symmetric(eigenvalues(60))), iterations=5, probes=1), tmp_path)
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "version": 99}))
    with pytest.raises(CurvatureError, match="version 99"):
        load_spectrum(tmp_path)
    path.write_text(json.dumps(facts))
    (tmp_path / "spectrum.safetensors").write_bytes(b"short")
    with pytest.raises(CurvatureError, match="measure it again"):
        load_spectrum(tmp_path)


def test_a_picture_is_drawn(measured: Spectrum, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path = plot_spectrum(measured, tmp_path / "spectrum.svg", title="a spectrum")
    text = path.read_text(encoding="utf-8")
    assert "<svg" in text and len(text) > 5000
