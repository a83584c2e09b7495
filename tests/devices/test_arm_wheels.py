"""The question after Arm wheels: which packages are asked for, and what pip's answers mean. Asks no index."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgetta.devices import arm_wheels as module
from edgetta.devices.arm_wheels import arm_wheels, main, requirements

LINES = (
    "torch>=2.3",
    "tomli>=2; python_version < '3.11'",
    'onnxruntime>=1.16; extra == "onnxruntime"',
    "opencv-python-headless>=4.8; extra == 'serve'",
    "scipy>=1.11; extra == 'bench'",
    "torch>=2.6; extra == 'export'",
)


def pip(monkeypatch: pytest.MonkeyPatch, files: dict[str, str] | None) -> list[list[str]]:
    """A pip that finds these files, or nothing; the commands that it is given."""
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if files is None:
            said = "WARNING: slow\nERROR: No matching distribution found for torch>=2.3\n"
            return subprocess.CompletedProcess(command, 1, "", said)
        install = [
            {"metadata": {"name": name}, "download_info": {"url": f"https://index/{file}"}}
            for name, file in files.items()
        ]
        Path(command[command.index("--report") + 1]).write_text(json.dumps({"install": install}))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_what_a_device_needs() -> None:
    assert requirements(LINES) == ["torch>=2.3", "tomli>=2", "onnxruntime>=1.16", "opencv-python-headless>=4.8"]
    assert requirements(LINES, ()) == ["torch>=2.3", "tomli>=2"]


def test_pip_is_asked_for_wheels_of_64_bit_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = pip(monkeypatch, {"torch": "torch-2.14.1-cp312-cp312-manylinux_2_28_aarch64.whl"})
    assert arm_wheels(["torch>=2.3"], "3.12") == {"torch": "torch-2.14.1-cp312-cp312-manylinux_2_28_aarch64.whl"}
    (command,) = commands
    assert {"--dry-run", "--only-binary=:all:", "--no-deps"} <= set(command) and command[-1] == "torch>=2.3"
    platforms = [command[number + 1] for number, word in enumerate(command) if word == "--platform"]
    assert platforms and all(platform.endswith("_aarch64") for platform in platforms)
    assert command[command.index("--python-version") + 1] == "3.12"


def test_a_missing_wheel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pip(monkeypatch, None)
    with pytest.raises(LookupError, match="No matching distribution found for torch"):
        arm_wheels(["torch>=2.3"], "3.10")
    monkeypatch.setattr(module.importlib.metadata, "requires", lambda name: list(LINES))
    assert main() == 1
    assert capsys.readouterr().out.endswith("something has no Arm wheel\n")


def test_all_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    commands = pip(monkeypatch, {"rich": "rich-15.0.0-py3-none-any.whl"})
    assert main() == 0 and len(commands) == len(module.PYTHONS)
    assert capsys.readouterr().out.endswith("Arm wheels for every dependency\n")
