"""Recorded outputs of devices, and system folders made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "recorded"

Recorded = Callable[[str, str], str]
"""The text of a recorded output: (device, what)."""


@pytest.fixture
def recorded() -> Recorded:
    return lambda device, what: (FOLDER / device / what).read_text()


@pytest.fixture
def thermal_zones(tmp_path: Path, recorded: Recorded) -> Callable[[str], Path]:
    """A folder like /sys/class/thermal with the zones of a recorded device."""

    def make(device: str) -> Path:
        folder = tmp_path / "thermal" / device
        for number, line in enumerate(recorded(device, "thermal").splitlines()):
            name, temperature, *trip = line.split()
            zone = folder / f"thermal_zone{number}"
            zone.mkdir(parents=True)
            (zone / "type").write_text(f"{name}\n")
            if temperature == "unreadable":
                (zone / "temp").mkdir()  # reading it raises OSError, as the kernel does
            else:
                (zone / "temp").write_text(f"{temperature}\n")
            if trip:
                (zone / "trip_point_0_type").write_text(f"{trip[0]}\n")
                (zone / "trip_point_0_temp").write_text(f"{trip[1]}\n")
        return folder

    return make
