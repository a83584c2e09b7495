"""Peaks of steps and of inference in processes of their own: what must hold whatever the machine."""

from __future__ import annotations

import pytest

from edgetta.memory.fresh_process import MeasurementError, in_fresh_process
from edgetta.memory.step_peak import StepCase, measure_inference, measure_step, process_bytes
from tests.small_bundle import ENGINES, whole_bundle

MB = 1_000_000


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_takes_more_than_it_keeps_and_than_inference(engine: str) -> None:
    case = StepCase(str(whole_bundle()), 512, engine, learn=512)
    step, inference = measure_step(case), measure_inference(case)
    assert step.source == "high-water mark"
    assert 0 < step.kept_bytes < step.peak_bytes
    assert inference.peak_bytes < step.peak_bytes
    assert step.held_bytes < 0.1 * step.peak_bytes
    assert inference.kept_bytes == 0 < inference.seconds


def test_what_stands_in_the_way_is_named() -> None:
    with pytest.raises(MeasurementError, match="unknown engine"):
        measure_step(StepCase(str(whole_bundle()), 2, engine="none"))


def test_a_whole_process_without_torch() -> None:
    """numpy, ONNX Runtime and a small network: torch alone would take more than this."""
    lean = process_bytes(StepCase(str(whole_bundle()), 16, "onnxruntime", False, slice=4, predict=4), give_back=True)
    assert 30 * MB < lean < 150 * MB


def test_the_way_of_a_step_imports_no_torch() -> None:
    found = in_fresh_process("tests.memory.targets:modules_of_a_planned_step", bundle=str(whole_bundle()))
    assert found["adapted"] and found["planned"]
    assert found["heavy"] == []
