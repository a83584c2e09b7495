"""Power that the device draws, from its own sensors: a Jetson's rails, read from the kernel or from tegrastats.

A Jetson measures with an INA3221 (or INA238) chip. JetPack 4 shows it as an industrial-I/O device with a power in
milliwatts per rail; later ones as a hardware monitor with millivolts and milliamperes. Both can be read without root.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from edgetta.devices.tegrastats import parse_tegrastats

WHOLE = ("VIN", "VDD_IN", "POM_5V_IN")
"""Rails that feed the whole module or board, the widest first."""

PARTS = (("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"))
"""Rails of an AGX Orin and of an AGX Xavier, which have none for the whole: their sum is taken."""

_INTERVAL = 0.05
"""Seconds between two readings. The chip itself averages over a few milliseconds."""


@dataclass(frozen=True)
class Rail:
    """A rail that the kernel can read: its label, and the files whose product is its power."""

    label: str
    files: tuple[Path, ...]
    scale: float

    def watts(self) -> float | None:
        """Power of the moment; None where it cannot be read."""
        watts = self.scale
        try:
            for file in self.files:
                watts *= int(file.read_text())
        except (OSError, ValueError):
            return None
        return watts


def find_rails(sys: Path = Path("/sys")) -> tuple[Rail, ...]:
    """All rails that the kernel shows, by label; none on other machines."""
    found: dict[str, Rail] = {}
    for chip in sorted(sys.glob("class/hwmon/hwmon*")):
        if not _text(chip / "name").startswith("ina"):
            continue
        for label_file in sorted(chip.glob("in*_label")):
            channel = label_file.name.removeprefix("in").removesuffix("_label")
            files = (chip / f"in{channel}_input", chip / f"curr{channel}_input")
            # Channels without a current are sums and shunt voltages, no rails.
            if all(file.is_file() for file in files):
                _add(found, Rail(_text(label_file), files, 1e-6))
        if (chip / "power1_input").is_file():
            _add(found, Rail(_text(chip / "label"), (chip / "power1_input",), 1e-6))
    for name_file in sorted(sys.glob("bus/i2c/drivers/ina3221x/*/iio*device*/rail_name_*")):
        channel = name_file.name.rpartition("_")[2]
        power = name_file.with_name(f"in_power{channel}_input")
        if power.is_file():
            _add(found, Rail(_text(name_file), (power,), 1e-3))
    return tuple(found.values())


def total_watts(power: Mapping[str, float]) -> float | None:
    """Watts of the whole module, from the power of its rails; None where these do not tell."""
    for label in WHOLE:
        if label in power:
            return power[label]
    for parts in PARTS:
        if all(label in power for label in parts):
            return sum(power[label] for label in parts)
    return None


def read_power(rails: Sequence[Rail]) -> dict[str, float]:
    """Watts of the moment, by rail."""
    return {rail.label: watts for rail in rails if (watts := rail.watts()) is not None}


class PowerMeter:
    """Measures the energy that a block of code takes, the whole module's, whatever else runs on it.

        with PowerMeter() as meter:
            ...
        meter.joules, meter.watts  # None where the machine has no such sensor

    Attributes:
        source: "rails", "tegrastats", or "" where the machine tells nothing.
        samples: (seconds since the start, watts), in order.
        seconds: how long the block took.
    """

    def __init__(self, rails: Sequence[Rail] | None = None) -> None:
        self.rails = find_rails() if rails is None else rails
        self.source = ""
        self.samples: list[tuple[float, float]] = []
        self.seconds = 0.0
        self._start = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> PowerMeter:
        self._start = time.perf_counter()
        if total_watts(read_power(self.rails)) is not None:
            self.source = "rails"
            self._thread = threading.Thread(target=self._read_rails, daemon=True)
        elif shutil.which("tegrastats"):
            self.source = "tegrastats"
            # Into a pipe it would write whole blocks, long after the fact.
            line_by_line = ["stdbuf", "-oL"] if shutil.which("stdbuf") else []
            self._process = subprocess.Popen(
                [*line_by_line, "tegrastats", "--interval", "100"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self._thread = threading.Thread(target=self._read_tegrastats, args=(self._process,), daemon=True)
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self._stop.set()
        if self._process is not None:
            self._process.terminate()
        if self._thread is not None:
            self._thread.join()
        if self._process is not None:
            self._process.communicate()

    @property
    def watts(self) -> float | None:
        """Mean power while the block ran, weighted with time; None where nothing was read."""
        return mean_watts([sample for sample in self.samples if sample[0] <= self.seconds] or self.samples)

    @property
    def joules(self) -> float | None:
        """Energy of the block; None where nothing was read."""
        return None if self.watts is None else self.watts * self.seconds

    def _read_rails(self) -> None:
        while True:
            self._add(read_power(self.rails))
            if self._stop.wait(_INTERVAL):
                return

    def _read_tegrastats(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            read = parse_tegrastats(line)
            if read is not None:
                self._add(read.power)
            if self._stop.is_set():
                return

    def _add(self, power: Mapping[str, float]) -> None:
        watts = total_watts(power)
        if watts is not None:
            self.samples.append((time.perf_counter() - self._start, watts))


def mean_watts(samples: Sequence[tuple[float, float]]) -> float | None:
    """Mean of readings (seconds, watts) over time, by the trapezoidal rule; None where there is no reading."""
    if not samples:
        return None
    if len(samples) == 1 or samples[-1][0] == samples[0][0]:
        return sum(watts for _, watts in samples) / len(samples)
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(samples))
    return area / (samples[-1][0] - samples[0][0])


def _add(found: dict[str, Rail], rail: Rail) -> None:
    """Keep a rail under its label, unless it has none or is a channel that is not connected."""
    if rail.label and rail.label != "NC":
        found.setdefault(rail.label, rail)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
