"""Temperatures, from the thermal zones of the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path("/sys/class/thermal")

# Not what heats up: PMIC-Die of older Jetsons always says 50 or 100, the fan's estimate follows the others, and the
# network's module and the board report themselves.
_NOT_MEASURED = ("pmic", "fan-est", "iwlwifi", "tboard", "tdiode")

_PLAUSIBLE = range(-40_000, 150_000)
"""Thousandths of a degree. A sensor that is switched off says -256 degrees."""


@dataclass(frozen=True)
class Zone:
    """A thermal zone. Degrees Celsius.

    Attributes:
        name: as the kernel has it, e.g. "tj-thermal".
        celsius: its temperature.
        throttles_at: where the kernel slows the device down, or a critical limit; None where it names none.
    """

    name: str
    celsius: float
    throttles_at: float | None


def read_zones(folder: Path = FOLDER) -> tuple[Zone, ...]:
    """All zones that can be read now. That of a GPU which is switched off cannot, and is left out."""
    zones = []
    for path in sorted(folder.glob("thermal_zone*"), key=lambda path: (len(path.name), path.name)):
        name = _text(path / "type")
        temperature = _number(path / "temp")
        if not name or temperature is None or temperature not in _PLAUSIBLE:
            continue
        if any(word in name.lower() for word in _NOT_MEASURED):
            continue
        zones.append(Zone(name, temperature / 1000, _limit(path)))
    return tuple(zones)


def hottest(zones: tuple[Zone, ...]) -> Zone | None:
    """The zone of the highest temperature; None where there is no zone."""
    return max(zones, key=lambda zone: zone.celsius, default=None)


def _limit(path: Path) -> float | None:
    """The lowest trip point at which the kernel acts against heat, fans left aside."""
    limits = []
    for kind in path.glob("trip_point_*_type"):
        limit = _number(kind.with_name(kind.name.replace("_type", "_temp")))
        if _text(kind) in ("passive", "hot", "critical") and limit is not None and 0 < limit < _PLAUSIBLE.stop:
            limits.append(limit)
    return min(limits) / 1000 if limits else None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except ValueError:
        return None
