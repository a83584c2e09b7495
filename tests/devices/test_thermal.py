"""Thermal zones of several devices: the hottest one that measures something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgetta.devices.thermal import Zone, hottest, read_zones


@pytest.mark.parametrize(
    ("device", "name", "celsius", "throttles_at"),
    [
        ("jetpack4-nano", "AO-therm", 45.0, None),
        ("jetpack4-tx2", "BCPU-therm", 35.5, None),
        ("jetpack5-agx-orin", "CPU-therm", 42.593, None),
        ("jetpack6-orin-nano", "cpu-thermal", 53.968, None),
        ("jetpack7-thor", "soc012-thermal", 55.1, 114.5),
    ],
)
def test_hottest(
    thermal_zones: Callable[[str], Path], device: str, name: str, celsius: float, throttles_at: float | None
) -> None:
    """The PMIC of a TX2 always says 100 degrees; that is no measurement."""
    assert hottest(read_zones(thermal_zones(device))) == Zone(name, celsius, throttles_at)


def test_zones_that_are_off_or_unreadable_are_left_out(thermal_zones: Callable[[str], Path]) -> None:
    names = [zone.name for zone in read_zones(thermal_zones("jetpack7-thor"))]
    assert names == ["cpu-thermal", "soc012-thermal", "soc345-thermal", "tj-thermal"]
    names = [zone.name for zone in read_zones(thermal_zones("jetpack5-agx-orin"))]
    assert names == ["CPU-therm", "SOC0-therm", "SOC1-therm", "SOC2-therm", "tj-therm"]


def test_the_lowest_point_of_throttling_counts(tmp_path: Path) -> None:
    zone = tmp_path / "thermal_zone0"
    zone.mkdir()
    (zone / "type").write_text("cpu-thermal\n")
    (zone / "temp").write_text("70000\n")
    points = [("active", 40000), ("critical", 110000), ("passive", 80000), ("passive", 0), ("hot", -1)]
    for number, (kind, limit) in enumerate(points):
        (zone / f"trip_point_{number}_type").write_text(f"{kind}\n")
        (zone / f"trip_point_{number}_temp").write_text(f"{limit}\n")
    assert read_zones(tmp_path) == (Zone("cpu-thermal", 70.0, 80.0),)


def test_zones_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 0):
        zone = tmp_path / f"thermal_zone{number}"
        zone.mkdir()
        (zone / "type").write_text(f"zone {number}")
        (zone / "temp").write_text("1000")
    assert [zone.name for zone in read_zones(tmp_path)] == ["zone 0", "zone 2", "zone 10"]


def test_no_zones(tmp_path: Path) -> None:
    assert read_zones(tmp_path / "nowhere") == () and hottest(()) is None
