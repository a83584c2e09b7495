"""The examination: the machine it runs on, Jetsons by recorded files, and that nothing can stop it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from edgetta.devices import doctor, packages
from edgetta.devices.doctor import examine
from edgetta.devices.report import Check, Report, problems

ORIN = b"NVIDIA Jetson Orin Nano Developer Kit\0"
L4T = b"# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
CPUINFO = b"processor\t: 0\nmodel name\t: Old Machine\nflags\t\t: fpu sse sse2\n"


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The system files that there are; all others are missing."""
    there: dict[str, bytes] = {}
    monkeypatch.setattr(doctor, "_bytes", lambda path: there.get(path, b""))
    return there


def test_this_machine(tmp_path: Path) -> None:
    report = examine(tmp_path)
    found = {check.name: check for check in report.checks}
    assert list(found) == [
        *("edgetta", "python", "system", "jetson", "power mode", "processor", "memory", "disk", "torch", "cuda"),
        *("numpy", "safetensors", "pillow", "onnxruntime", "tensorrt", "onnx", "onnxscript", "opencv"),
    ]
    assert report.usable
    assert found["python"].facts["version"] == ".".join(map(str, sys.version_info[:3]))
    assert found["disk"].facts["free_bytes"] > 0
    assert all(check.value and check.status in ("ok", "warning") for check in report.checks)
    assert all(check.remedy for check in report.checks if check.status != "ok")
    assert json.loads(json.dumps(report.as_dict()))["usable"] is True


def test_importing_the_doctor_imports_nothing_heavy() -> None:
    program = (
        "import sys, edgetta.devices.doctor\n"
        "assert not {'torch', 'numpy', 'onnxruntime', 'onnx', 'rich', 'click'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_check_that_breaks_does_not_end_the_examination(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken() -> Check:
        raise OSError("the driver is gone")

    monkeypatch.setattr(packages, "check_opencv", broken)
    check = examine(tmp_path).checks[-1]
    assert (check.name, check.status) == ("opencv", "warning")
    assert check.value == "could not be examined: OSError: the driver is gone"


def test_usable_and_problems() -> None:
    fine, slow, bad = Check("a", "ok", "1"), Check("b", "warning", "2"), Check("c", "problem", "3")
    assert Report((fine, slow)).usable and not Report((fine, slow, bad)).usable
    assert problems((fine, slow, bad)) == ["c"]


def test_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 8, 10))
    check = doctor.check_python()
    assert check.status == "problem" and check.remedy == "install Python 3.10 or newer"


def test_jetson(files: dict[str, bytes]) -> None:
    assert doctor.jetson_model() is None
    assert doctor.check_jetson(None).facts == {"model": None}
    files["/proc/device-tree/model"] = b"Raspberry Pi 5 Model B Rev 1.0\0"
    assert doctor.jetson_model() is None
    files["/proc/device-tree/model"] = ORIN
    model = doctor.jetson_model()
    assert model == "NVIDIA Jetson Orin Nano Developer Kit"
    assert doctor.check_jetson(model).status == "warning", "a container without the release file"
    files["/etc/nv_tegra_release"] = L4T
    check = doctor.check_jetson(model)
    assert (check.status, check.value) == ("ok", "NVIDIA Jetson Orin Nano Developer Kit, L4T 36.4.3 (JetPack 6)")
    assert check.facts == {"model": model, "l4t": "36.4.3", "jetpack": "6"}
    del files["/proc/device-tree/model"]
    assert doctor.jetson_model() == "Jetson of an unknown model"


def test_power_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"stdout": "NV Power Mode: 15W\n0\n", "stderr": ""}
    asked: list[Any] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append((command, options["timeout"], options["stdin"]))
        return subprocess.CompletedProcess(command, 0, **answer)

    monkeypatch.setattr(subprocess, "run", run)
    assert doctor.check_power_mode(None).value == "none: not a Jetson" and asked == []
    check = doctor.check_power_mode("Jetson")
    assert (check.status, check.value, check.facts) == ("ok", "15W", {"mode": "15W", "number": 0})
    assert "faster modes" in check.remedy
    assert asked == [(["nvpmodel", "-q"], 5, subprocess.DEVNULL)]
    answer["stdout"] = "NV Power Mode: MAXN_SUPER\n2\n"
    assert doctor.check_power_mode("Jetson").remedy == ""
    answer.update(stdout="", stderr="NVPM ERROR: Error opening /var/lib/nvpmodel/status: 13\n")
    check = doctor.check_power_mode("Jetson")
    assert check.status == "warning" and "status: 13" in check.value and "sudo nvpmodel -q" in check.remedy


@pytest.mark.parametrize("error", [FileNotFoundError("no nvpmodel"), subprocess.TimeoutExpired("nvpmodel", 5)])
def test_power_mode_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def run(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    check = doctor.check_power_mode("Jetson")
    assert check.status == "warning" and "nvpmodel" in check.value


def test_processor(files: dict[str, bytes]) -> None:
    assert doctor.check_processor().status == "ok", "nothing is known: nothing is wrong"
    files["/proc/cpuinfo"] = CPUINFO
    check = doctor.check_processor()
    assert check.status == "warning" and "Old Machine" in check.value and "neither AVX2 nor NEON" in check.remedy
    files["/proc/cpuinfo"] = CPUINFO.replace(b"sse2", b"sse2 avx2")
    check = doctor.check_processor()
    assert check.status == "ok" and check.facts["extensions"] == ["avx2"] and check.facts["cores"] == 1


def test_memory(files: dict[str, bytes]) -> None:
    assert doctor.check_memory().value.startswith("unknown on ")
    files["/proc/meminfo"] = b"MemTotal: 8000000 kB\nMemAvailable: 5000000 kB\n"
    check = doctor.check_memory()
    assert (check.status, check.value) == ("ok", "4.8 GiB available of 7.6 GiB")
    files["/sys/fs/cgroup/memory.max"] = b"max\n"
    assert doctor.check_memory() == check
    files["/sys/fs/cgroup/memory.max"] = b"536870912\n"
    check = doctor.check_memory()
    assert check.status == "warning" and "this container may use 0.5 GiB" in check.value
    assert check.facts["limit_bytes"] == 2**29
    del files["/sys/fs/cgroup/memory.max"]
    files["/proc/meminfo"] = b"MemTotal: 4000000 kB\nMemAvailable: 300000 kB\n"
    check = doctor.check_memory()
    assert check.status == "warning" and "smaller batch" in check.remedy


def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage(2**35, 0, 2**28))
    check = doctor.check_disk(tmp_path)
    assert (check.status, check.value) == ("warning", "0.2 GiB free of 32.0 GiB")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage(2**35, 0, 2**34))
    assert doctor.check_disk(tmp_path).status == "ok"
