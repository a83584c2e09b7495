"""Measuring a bundle's steps: what is measured, and that it is what such steps take."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetta.bundle import processor_engines, read_bundle
from edgetta.cli import main
from edgetta.memory import calibration
from edgetta.memory.calibration import WAYS, _Sizes, measure_cost_model, points_here
from edgetta.memory.choice import Choice
from edgetta.memory.cost_model import CostModel
from edgetta.memory.fresh_process import MeasurementError
from tests.memory.costs import cost_model
from tests.small_bundle import ENGINES, whole_bundle
from tests.tiny_model import write_model

linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is measured on Linux")


@pytest.fixture(scope="module")
def measured() -> CostModel:
    """The small bundle, measured in a fresh process."""
    return measure_cost_model(str(whole_bundle()), ENGINES, threads=1)


@linux
@pytest.mark.parametrize("engine", ENGINES)
def test_every_way_is_measured_at_two_batch_sizes(measured: CostModel, engine: str) -> None:
    assert measured.engines() == list(ENGINES) and measured.image_bytes == 4 * 3 * 16 * 16
    shares = measured.shares(engine)
    assert set(shares) == {(gradient, storage) for gradient, storage, _ in WAYS}
    for gradient, storage, expected in WAYS:
        points = [p for p in measured.steps if (p.engine, p.gradient, p.storage) == (engine, gradient, storage)]
        assert shares[gradient, storage] == pytest.approx(list(expected))
        assert {point.batch for point in points} == {24, 48}, "sizes that thirds and twelfths divide"
        assert all(0 < point.update_bytes < 5_000_000 for point in points), "few weights, whatever the batch"
        assert all(point.forward_bytes and point.backward_bytes and point.seconds for point in points)
    assert {(p.network, p.batch) for p in measured.predictions if p.engine == engine} == {
        (network, batch) for network in ("adapted", "source") for batch in (24, 48)
    }
    assert measured.measured_on["threads"] == 1 and measured.measured_on["versions"]["torch"]


def test_few_images_are_measured_whole_and_in_slices_of_two_sizes() -> None:
    assert list(_Sizes(24, 48).points((1 / 3, 1 / 12))) == [(24, 8), (48, 16), (48, 4)]
    assert list(_Sizes(3, 6).points((1 / 3,))) == [(3, 0), (6, 0), (6, 2), (6, 1)]
    assert list(_Sizes(6, 12).points((1 / 3, 1 / 12))) == [(6, 0), (12, 0), (12, 4), (12, 1)]
    assert list(_Sizes(3, 6).points((1.0,))) == [(3, 0), (6, 0)]


@linux
@pytest.mark.parametrize("engine", ENGINES)
def test_kept_bytes_are_those_of_the_contract(measured: CostModel, engine: str) -> None:
    bundle = read_bundle(whole_bundle())
    kept = {
        storage: measured.cost(Choice(engine, 48, "batch", "auto", storage, 0 if storage == "full" else 16)).kept
        for storage in ("full", "half", "int8", "recompute", "recompute-int8")
    }
    assert kept["full"] == pytest.approx(bundle.memory["auto"].at(48), rel=0.1)
    assert kept["full"] > kept["half"] > kept["int8"] > kept["recompute-int8"] and kept["full"] > kept["recompute"]
    assert measured.cost(Choice(engine, 48)).peak > kept["full"]


def test_a_bundle_that_is_not_there() -> None:
    with pytest.raises(MeasurementError, match="nowhere"):
        measure_cost_model("nowhere", ["torch"])


def test_a_system_that_does_not_reset_its_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "reset_high_water", lambda: False)
    with pytest.raises(Exception, match="does not let the mark of resident memory be reset"):
        points_here(str(whole_bundle()), ["torch"])


def test_export_measures_and_ships_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def measure(path: str, engines: tuple[str, ...]) -> CostModel:
        seen.append((read_bundle(path).name, engines))  # it can be read already
        return cost_model()

    monkeypatch.setattr(calibration, "measure_cost_model", measure)
    out = tmp_path / "bundle.zip"
    assert main(["export", write_model(tmp_path), "-o", str(out), "--input-size", "8", "-q"]) == 0
    assert read_bundle(out).cost_model == cost_model()
    assert seen == [("net.py:build", processor_engines())]


def test_export_goes_on_where_nothing_can_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(path: str, engines: object) -> CostModel:
        raise MeasurementError("this system tells nothing")

    monkeypatch.setattr(calibration, "measure_cost_model", fails)
    out = tmp_path / "bundle"
    assert main(["export", write_model(tmp_path), "-o", str(out), "--input-size", "8", "-q"]) == 0
    assert "what steps take was not measured: this system tells nothing" in capsys.readouterr().err
    assert read_bundle(out).cost_model is None
