"""Lines of tegrastats, as JetPack 4, 5, 6 and 7 write them."""

from __future__ import annotations

import pytest

from edgetta.devices.machine import FreeBlocks
from edgetta.devices.power import total_watts
from edgetta.devices.tegrastats import parse_tegrastats
from tests.devices.conftest import Recorded

MB = 2**20


@pytest.mark.parametrize(
    ("device", "used", "total", "blocks", "hottest", "watts"),
    [
        ("jetpack4-nano", 1923, 3964, FreeBlocks(2 * MB, 2), 50.0, 1.75),
        ("jetpack4-tx2", 2007, 7852, FreeBlocks(4 * MB, 180), 100.0, 1.423),
        ("jetpack5-agx-orin", 1282, 62795, FreeBlocks(4 * MB, 15152), 42.593, 2.399 + 0.4 + 4.032),
        ("jetpack6-orin-nano", 6185, 7620, FreeBlocks(2 * MB, 8), 53.968, 12.479),
        ("jetpack6-agx-orin", 18207, 62841, FreeBlocks(4 * MB, 466), 52.562, 2.412 + 1.607 + 4.707),
        ("jetpack7-thor", 36529, 125749, FreeBlocks(4 * MB, 12), 63.281, 87.426),
    ],
)
def test_recorded_lines(
    recorded: Recorded, device: str, used: int, total: int, blocks: FreeBlocks, hottest: float, watts: float
) -> None:
    read = parse_tegrastats(recorded(device, "tegrastats"))
    assert read is not None
    assert (read.memory_used, read.memory_total, read.free_blocks) == (used * MB, total * MB, blocks)
    assert max(read.temperatures.values()) == hottest
    assert min(read.temperatures.values()) > 0, "sensors that are switched off are left out"
    assert total_watts(read.power) == pytest.approx(watts)


def test_rails_of_each_kind(recorded: Recorded) -> None:
    nano = parse_tegrastats(recorded("jetpack4-nano", "tegrastats"))
    assert nano is not None and nano.power == {"POM_5V_IN": 1.75, "POM_5V_GPU": 0.0, "POM_5V_CPU": 0.366}
    thor = parse_tegrastats(recorded("jetpack7-thor", "tegrastats"))
    assert thor is not None
    assert thor.power == {"VDD_GPU": 37.528, "VDD_CPU_SOC_MSS": 18.961, "VIN_SYS_5V0": 18.331, "VIN": 87.426}
    xavier = parse_tegrastats("GPU 0mW/0mW CPU 310mW/311mW SOC 1242mW/1242mW CV 0/0 VDDRQ 155/155 SYS5V 1880/1880")
    assert xavier is not None and total_watts(xavier.power) == pytest.approx(0.31 + 1.242 + 0.155 + 1.88)


def test_a_rail_that_feeds_out_is_negative() -> None:
    read = parse_tegrastats("VDD_GPU -392mW/-392mW VIN 15004mW/15096mW")
    assert read is not None and read.power == {"VDD_GPU": -0.392, "VIN": 15.004}


@pytest.mark.parametrize("line", ["", "tegrastats: some banner\n", "CPU [0%@1190]"])
def test_what_is_no_line(line: str) -> None:
    assert parse_tegrastats(line) is None


def test_a_line_without_power() -> None:
    read = parse_tegrastats("RAM 900/15368MB (lfb 12x512kB) CPU [2%@729]")
    assert read is not None and read.free_blocks == FreeBlocks(512 * 1024, 12)
    assert read.power == {} and read.temperatures == {}
