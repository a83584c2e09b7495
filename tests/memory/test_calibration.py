"""Measuring a bundle's programs: what is measured, and that it is what such steps take."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetta.adaptation.step_plan import StepPlan
from edgetta.bundle import processor_engines, read_bundle
from edgetta.cli import main
from edgetta.memory import calibration
from edgetta.memory.calibration import measure_cost_model, points_here
from edgetta.memory.choice import Choice
from edgetta.memory.cost_model import PROGRAMS, CostModel, Load
from edgetta.memory.fresh_process import MeasurementError
from edgetta.memory.kept_bytes import KeptBytes
from edgetta.memory.step_peak import StepCase, measure_step
from tests.memory.costs import cost_model
from tests.small_bundle import ENGINES, whole_bundle
from tests.tiny_model import write_model

linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is measured on Linux")


@pytest.fixture(scope="module")
def measured() -> CostModel:
    """The small bundle, measured in fresh processes."""
    return measure_cost_model(str(whole_bundle()), ENGINES, threads=1)


@linux
@pytest.mark.parametrize("engine", ENGINES)
def test_every_program_is_measured_at_two_numbers_of_images(measured: CostModel, engine: str) -> None:
    assert measured.engines() == list(ENGINES) and measured.image_bytes == 4 * 3 * 16 * 16
    kept = KeptBytes.of(read_bundle(whole_bundle()).programs.residuals)
    for program in PROGRAMS:
        points = [p for p in measured.points if (p.engine, p.program) == (engine, program)]
        few, many = sorted(points, key=lambda point: point.images)
        assert many.images == 4 * few.images and many.seconds > 0
        assert few.peak_bytes <= 1.1 * many.peak_bytes
        if program in ("forward", "backward"):
            assert many.kept_bytes == kept.at(many.images)
            assert many.peak_bytes >= 0.9 * many.kept_bytes
    assert measured.measured_on["threads"] == 1 and set(measured.measured_on["versions"]) == {"edgetta", *ENGINES}


@linux
@pytest.mark.parametrize("plan", [StepPlan(), StepPlan(slice=16), StepPlan(False, slice=32, predict=64)])
def test_steps_of_another_size_take_what_follows_from_them(measured: CostModel, plan: StepPlan) -> None:
    case = StepCase(str(whole_bundle()), 512, "onnxruntime", plan.keep, plan.learn, plan.slice, plan.predict, 1)
    found = measure_step(case)
    predicted = measured.cost(Choice("onnxruntime", 512, plan), Load(512))
    above = found.peak_bytes + predicted.images  # they are there before the level is read
    assert 0.75 < predicted.peak / above < 1.3, (predicted, found)


def test_a_bundle_that_is_not_there() -> None:
    with pytest.raises(MeasurementError, match="nowhere"):
        measure_cost_model("nowhere", ["torch"])


def test_a_system_that_does_not_reset_its_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "reset_high_water", lambda: False)
    with pytest.raises(Exception, match="does not let the mark of resident memory be reset"):
        points_here(str(whole_bundle()), "torch")


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
