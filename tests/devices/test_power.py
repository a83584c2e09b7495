"""Power rails: found as JetPack 4 and as later ones show them, added up rightly, integrated over time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgetta.devices.power import PowerMeter, Rail, find_rails, mean_watts, read_power, total_watts
from tests.devices.conftest import Recorded


def hwmon(sys_folder: Path, number: int, files: dict[str, object]) -> Path:
    chip = sys_folder / "class" / "hwmon" / f"hwmon{number}"
    chip.mkdir(parents=True)
    for name, content in files.items():
        (chip / name).write_text(f"{content}\n")
    return chip


def orin(sys_folder: Path) -> Path:
    """An INA3221 as JetPack 5 and later show it: three rails, and shunt voltages that are none."""
    files: dict[str, object] = {"name": "ina3221"}
    for channel, (label, millivolts, milliamperes) in enumerate(
        [("VDD_IN", 5072, 920), ("VDD_CPU_GPU_CV", 5072, 120), ("VDD_SOC", 5064, 248)], start=1
    ):
        files |= {f"in{channel}_label": label, f"in{channel}_input": millivolts, f"curr{channel}_input": milliamperes}
    files |= {"in7_label": "sum of shunt voltages", "in7_input": 6}
    return hwmon(sys_folder, 1, files)


def test_rails_of_an_orin(tmp_path: Path) -> None:
    orin(tmp_path)
    hwmon(tmp_path, 0, {"name": "nvme", "in1_label": "VDD_IN", "in1_input": 1, "curr1_input": 1})
    power = read_power(find_rails(tmp_path))
    assert power == pytest.approx({"VDD_IN": 4.66624, "VDD_CPU_GPU_CV": 0.60864, "VDD_SOC": 1.255872})
    assert total_watts(power) == pytest.approx(4.66624)


def test_rails_of_a_thor(tmp_path: Path) -> None:
    """A second chip measures the whole board, in microwatts."""
    hwmon(tmp_path, 0, {"name": "ina238", "label": "VIN", "power1_input": 19780000})
    hwmon(tmp_path, 1, {"name": "ina3221", "in1_label": "VDD_GPU", "in1_input": 12000, "curr1_input": 163})
    power = read_power(find_rails(tmp_path))
    assert power == pytest.approx({"VIN": 19.78, "VDD_GPU": 1.956})
    assert total_watts(power) == pytest.approx(19.78)


def test_rails_of_a_nano_with_jetpack_4(tmp_path: Path) -> None:
    device = tmp_path / "bus" / "i2c" / "drivers" / "ina3221x" / "6-0040" / "iio:device0"
    device.mkdir(parents=True)
    for channel, (label, milliwatts) in enumerate([("POM_5V_IN", 1750), ("POM_5V_GPU", 0), ("NC", 3)]):
        (device / f"rail_name_{channel}").write_text(f"{label}\n")
        (device / f"in_power{channel}_input").write_text(f"{milliwatts}\n")
    power = read_power(find_rails(tmp_path))
    assert power == {"POM_5V_IN": 1.75, "POM_5V_GPU": 0.0} and total_watts(power) == 1.75


def test_a_machine_without_sensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_rails(tmp_path) == () and total_watts({}) is None
    assert total_watts({"VDD_GPU_SOC": 2.0, "VDD_CPU_CV": 1.0}) is None, "a part is not the whole"
    monkeypatch.setenv("PATH", "")
    with PowerMeter(()) as meter:
        pass
    assert (meter.source, meter.watts, meter.joules) == ("", None, None)


def test_a_sensor_that_stops_answering_is_left_out(tmp_path: Path) -> None:
    rails = find_rails(orin(tmp_path).parents[2])
    (tmp_path / "class" / "hwmon" / "hwmon1" / "curr2_input").unlink()
    assert set(read_power(rails)) == {"VDD_IN", "VDD_SOC"}


def test_energy_from_rails(tmp_path: Path) -> None:
    rail = tmp_path / "power"
    rail.write_text("5000000")
    with PowerMeter((Rail("VDD_IN", (rail,), 1e-6),)) as meter:
        pass
    assert meter.source == "rails" and meter.watts == pytest.approx(5.0)
    assert meter.joules == pytest.approx(5.0 * meter.seconds)


def test_energy_from_tegrastats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: Recorded) -> None:
    """Where the kernel shows no rails, as in a container, tegrastats is asked."""
    program = tmp_path / "tegrastats"
    line = recorded("jetpack6-orin-nano", "tegrastats").strip()
    program.write_text(
        f"#!{sys.executable}\nimport sys, signal\nassert sys.argv[1:] == ['--interval', '100']\n"
        f"for _ in range(3):\n    print({line!r}, flush=True)\nsignal.pause()\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with PowerMeter(()) as meter:
        while len(meter.samples) < 3:
            pass
    assert meter.source == "tegrastats" and meter.watts == pytest.approx(12.479)


def test_mean_over_time() -> None:
    assert mean_watts([]) is None
    assert mean_watts([(0.0, 7.0)]) == 7.0
    assert mean_watts([(1.0, 2.0), (1.0, 4.0)]) == 3.0
    # Two seconds at 1 W, then a rise to 3 W in one: (2 x 1 + 1 x 2) / 3.
    assert mean_watts([(0.0, 1.0), (2.0, 1.0), (3.0, 3.0)]) == pytest.approx(4 / 3)
