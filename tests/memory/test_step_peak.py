"""Peaks of steps and of inference in processes of their own: what must hold whatever the machine."""

from __future__ import annotations

import pytest

from edgetta.memory.fresh_process import MeasurementError
from edgetta.memory.step_peak import StepCase, measure_inference, measure_step
from tests.small_bundle import ENGINES, whole_bundle


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_takes_more_than_it_keeps_and_than_inference(engine: str) -> None:
    case = StepCase(str(whole_bundle()), 512, engine, "exact", "batch")
    step, inference = measure_step(case), measure_inference(case)
    assert step.source == "high-water mark"
    assert abs(step.alive_bytes - step.kept_bytes) <= 0.1 * step.kept_bytes
    assert step.kept_bytes < step.peak_bytes < 4 * step.kept_bytes
    assert 512 * 6 * 256 * 4 < inference.peak_bytes < step.peak_bytes  # at least the stem's output
    assert step.held_bytes < 0.1 * step.peak_bytes
    assert inference.kept_bytes == 0 < inference.seconds


def test_what_stands_in_the_way_is_named() -> None:
    with pytest.raises(MeasurementError, match="unknown gradient mode"):
        measure_step(StepCase(str(whole_bundle()), 2, gradient="none"))
