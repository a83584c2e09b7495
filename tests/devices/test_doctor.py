"""The examination: the machine it runs on, Jetsons by recorded files, and that nothing can stop it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetta.devices import doctor, packages
from edgetta.devices.doctor import examine
from edgetta.devices.report import Check, Report, problems
from edgetta.devices.thermal import Zone

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
        *("edgetta", "python", "system", "jetson", "profile", "power mode", "power", "temperature"),
        *("processor", "memory", "disk", "torch", "cuda"),
        *("numpy", "safetensors", "pillow", "onnxruntime", "tensorrt", "engines", "onnx", "onnxscript", "opencv"),
    ]
    assert report.usable
    assert found["python"].facts["version"] == ".".join(map(str, sys.version_info[:3]))
    assert found["disk"].facts["free_bytes"] > 0
    assert all(check.value and check.status in ("ok", "absent", "warning") for check in report.checks)
    assert all(check.remedy for check in report.checks if check.status == "warning")
    assert all("not installed" not in check.value for check in report.checks if check.status == "ok")
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


def test_old_python(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 8, 10))
    check = doctor.check_python()
    assert check.status == "problem" and check.remedy == "install Python 3.10 or newer"
    files["/etc/nv_tegra_release"] = b"# R35 (release), REVISION: 4.1, GCID: 33958178"
    assert "JetPack 5.1.2 comes with this Python: run edgetta in its container" in doctor.check_python().remedy


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
    assert check.status == "ok"
    assert check.value == "NVIDIA Jetson Orin Nano Developer Kit, L4T 36.4.3 (JetPack 6.2), no CUDA toolkit"
    assert check.facts == {"model": model, "l4t": "36.4.3", "jetpack": "6.2", "cuda_toolkit": None}
    files["/usr/local/cuda/version.json"] = b'{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}'
    assert doctor.check_jetson(model).value.endswith(", CUDA 12.6.11")
    del files["/proc/device-tree/model"]
    assert doctor.jetson_model() == "Jetson of an unknown model"


def test_power_mode(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> None:
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
    assert check.status == "warning" and "sudo nvpmodel -q" in check.remedy


@pytest.mark.parametrize("error", [FileNotFoundError("no nvpmodel"), subprocess.TimeoutExpired("nvpmodel", 5)])
def test_power_mode_without_nvpmodel(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], error: Exception
) -> None:
    def run(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    check = doctor.check_power_mode("Jetson")
    assert check.status == "warning" and "nvpmodel" in check.value
    files["/var/lib/nvpmodel/status"] = b"pmode:0001 fmode:cool"
    files["/etc/nvpmodel.conf"] = b"< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=10W >\n"
    check = doctor.check_power_mode("Jetson")
    assert (check.status, check.value) == ("ok", "10W"), "the files of a container tell, too"


def test_profile(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "machine", lambda: "x86_64")
    check = doctor.check_profile()
    assert check.facts["name"] == "generic-x86" and check.facts["traps"] == []
    files["/proc/device-tree/model"] = ORIN
    files["/proc/meminfo"] = b"MemTotal: 7802880 kB\nMemAvailable: 5000000 kB\n"
    check = doctor.check_profile()
    assert check.status == "ok" and check.facts["name"] == "orin-nano-8gb"
    assert check.value == "orin-nano-8gb (Jetson Orin Nano 8GB, 68.3 GB/s); start with a budget of 3.2 GiB"
    assert any("share the memory" in trap for trap in check.facts["traps"])
    files["/proc/device-tree/model"] = b"Radxa ROCK 5B\0"
    assert doctor.check_profile().value == "none fits this machine"


def test_power(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_rails", lambda: ())
    assert doctor.check_power().value.startswith("no sensor that edgetta knows")
    for power, value in (
        ({"VDD_IN": 4.7, "VDD_SOC": 1.3}, "4.70 W (VDD_IN 4.70 W, VDD_SOC 1.30 W)"),
        ({"VDD_SOC": 1.3}, "VDD_SOC 1.30 W"),
    ):
        monkeypatch.setattr(doctor, "read_power", lambda rails, power=power: power)
        check = doctor.check_power()
        assert (check.status, check.value, check.facts["rails_watts"]) == ("ok", value, power)


def test_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    zones: list[Zone] = []
    monkeypatch.setattr(doctor.thermal, "read_zones", lambda: tuple(zones))
    assert doctor.check_temperature().value == "no sensor that can be read"
    zones += [Zone("cpu-thermal", 70.0, 99.0), Zone("tj-thermal", 71.2, None)]
    check = doctor.check_temperature()
    assert (check.status, check.value) == ("ok", "71 °C (tj-thermal)")
    zones[0] = Zone("cpu-thermal", 94.5, 99.0)
    check = doctor.check_temperature()
    assert check.status == "warning" and "(cpu-thermal)" in check.remedy and "cooling" in check.remedy
    zones[:] = [Zone("x86_pkg_temp", 86.0, None)]
    assert doctor.check_temperature().status == "warning"


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
    assert check.facts["largest_free_block_bytes"] is None
    files["/sys/fs/cgroup/memory.max"] = b"max\n"
    assert doctor.check_memory() == check
    files["/sys/fs/cgroup/memory.max"] = b"536870912\n"
    check = doctor.check_memory()
    assert check.status == "warning" and "this container may use 0.5 GiB" in check.value
    assert check.facts["limit_bytes"] == 2**29
    del files["/sys/fs/cgroup/memory.max"]
    files["/proc/meminfo"] = b"MemTotal: 4000000 kB\nMemAvailable: 300000 kB\n"
    check = doctor.check_memory()
    assert check.status == "warning" and "smaller batch" in check.remedy and "desktop" not in check.remedy
    assert "without a desktop" in doctor.check_memory("Jetson").remedy


def test_memory_in_pieces(
    files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, recorded: Callable[[str, str], str]
) -> None:
    monkeypatch.setattr(doctor.os, "sysconf", lambda name: 4096)
    files["/proc/meminfo"] = b"MemTotal: 8000000 kB\nMemAvailable: 5000000 kB\n"
    files["/proc/buddyinfo"] = recorded("jetpack6-orin-nano", "buddyinfo").encode()
    check = doctor.check_memory("Jetson")
    assert (check.status, check.facts["largest_free_blocks"]) == ("ok", 8)
    assert check.value == "4.8 GiB available of 7.6 GiB, largest free blocks 8 x 2,048 KiB"
    files["/proc/buddyinfo"] = b"Node 0, zone   Normal   9000   800   70 \n"
    check = doctor.check_memory("Jetson")
    assert check.status == "warning" and "restart" in check.remedy
    assert doctor.check_memory(None).status == "ok", "other drivers do not mind"


def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage(2**35, 0, 2**28))
    check = doctor.check_disk(tmp_path)
    assert (check.status, check.value) == ("warning", "0.2 GiB free of 32.0 GiB")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage(2**35, 0, 2**34))
    assert doctor.check_disk(tmp_path).status == "ok"
