"""The environments are the ends of what edgetta declares, and their outcome is told as it was."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgetta.devices import doctor, packages
from tests.versions.__main__ import outcome, summary
from tests.versions.environments import ENVIRONMENTS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent.parent


def numbers(version: str) -> tuple[int, ...]:
    """`1.26.0` -> (1, 26): trailing zeros mean nothing."""
    found = [int(part) for part in version.split(".")]
    while found[-1:] == [0]:
        found.pop()
    return tuple(found)


@pytest.fixture(scope="module")
def declared() -> dict[str, tuple[int, ...]]:
    """The lowest version of each requirement, by name; where several are declared, the lowest of them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    found: dict[str, tuple[int, ...]] = {"python": numbers(project["requires-python"].removeprefix(">="))}
    for line in (*project["dependencies"], *(line for extra in ("onnxruntime", "export") for line in extras[extra])):
        name, _, version = line.split(";")[0].strip().partition(">=")
        if version:
            found[name] = min(found.get(name, (99,)), numbers(version))
    return found


@pytest.mark.parametrize(
    "name", ["python", "torch", "numpy", "onnxruntime", "onnx", "safetensors", "click", "rich", "pillow"]
)
def test_the_lowest_that_is_declared_is_run(declared: dict[str, tuple[int, ...]], name: str) -> None:
    run = [numbers(e.python) for e in ENVIRONMENTS] if name == "python" else []
    pins = [package.split("==") for environment in ENVIRONMENTS for package in environment.packages]
    run += [numbers(version) for package, version in pins if package == name]
    assert min(run) == declared[name]


def test_the_doctor_asks_for_what_is_declared(declared: dict[str, tuple[int, ...]]) -> None:
    assert declared["python"] == doctor.OLDEST_PYTHON
    assert declared["torch"] == packages.OLDEST_TORCH
    assert declared["onnxruntime"] == packages.OLDEST_ONNXRUNTIME


REPORT = """<testsuites><testsuite>
<testcase name="test_holds" /><testcase name="test_breaks"><failure message="assert 3 == 0&#10;more" /></testcase>
<testcase name="test_cannot"><skipped message="no torch here" /></testcase>
</testsuite></testsuites>"""


def test_an_outcome_names_what_failed_and_why(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    found = outcome(tmp_path / "report.xml")
    assert found == {
        "passed": ["holds"],
        "failed": {"breaks": "assert 3 == 0"},
        "skipped": {"cannot": "no torch here"},
    }
    told = summary({**found, "versions": {"python": "3.10.1"}, "seconds": 3})
    assert told.startswith("1 passed, 1 failed, 1 skipped in 3 s (python 3.10.1)") and "breaks: assert 3 == 0" in told
