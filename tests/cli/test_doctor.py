"""`edgetta doctor` as a user sees it."""

from __future__ import annotations

import json

import pytest

from edgetta.cli import main
from edgetta.devices import doctor
from edgetta.devices.report import Check, Report


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    """The checks that an examination finds."""
    checks = [
        Check("torch", "ok", "2.13.0, 2 threads", facts={"version": "2.13.0"}),
        Check("onnxruntime", "warning", "not installed", "pip install 'edgetta[onnxruntime]'"),
    ]
    monkeypatch.setattr(doctor, "examine", lambda: Report(tuple(checks)))
    return checks


def test_table(report: list[Check], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0].split() == ["ok", "torch", "2.13.0,", "2", "threads"]
    assert lines[1].split() == ["warning", "onnxruntime", "not", "installed"]
    assert lines[2].strip() == "-> pip install 'edgetta[onnxruntime]'", "brackets are no markup"
    assert lines[-1] == "edgetta can run here."


def test_traps_of_the_device_stand_below(report: list[Check], capsys: pytest.CaptureFixture[str]) -> None:
    report.append(Check("profile", "ok", "thor", facts={"traps": ["only CUDA 13 [and later] runs"]}))
    assert main(["doctor"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "What others stumbled over on this device:" in lines and "- only CUDA 13 [and later] runs" in lines


def test_problems_are_named_and_end_with_1(report: list[Check], capsys: pytest.CaptureFixture[str]) -> None:
    report.append(Check("numpy", "problem", "not installed", "pip install numpy"))
    report.append(Check("memory", "problem", "x" * 150, "buy some"))
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].rstrip() == "edgetta cannot run here: see numpy, memory."
    assert any("x" * 150 in line for line in lines), "a pipe gets long lines whole"


def test_json(report: list[Check], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "usable": True,
        "checks": [
            {
                "name": "torch",
                "status": "ok",
                "value": "2.13.0, 2 threads",
                "remedy": "",
                "facts": {"version": "2.13.0"},
            },
            {
                "name": "onnxruntime",
                "status": "warning",
                "value": "not installed",
                "remedy": "pip install 'edgetta[onnxruntime]'",
                "facts": {},
            },
        ],
    }
    report.append(Check("numpy", "problem", "not installed"))
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["usable"] is False


def test_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert found["torch"]["status"] != "problem" and found["torch"]["facts"]["version"]
