"""Parsers of what Linux says, on recorded outputs."""

from __future__ import annotations

import pytest

from edgetta.devices.machine import (
    FreeBlocks,
    Memory,
    covers,
    parse_cpuinfo,
    parse_free_blocks,
    parse_meminfo,
    parse_memory_limit,
    version_pair,
)
from tests.devices.conftest import Recorded

EPYC = """\
processor\t: {number}
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC
cpu MHz\t\t: 2250.006
cpu cores\t: 2
flags\t\t: fpu vme de pse tsc msr sse sse2 ht pni ssse3 fma sse4_1 sse4_2 movbe aes avx f16c rdrand bmi1 avx2 bmi2
bugs\t\t: sysret_ss_attrs spectre_v1

"""
PI_5 = """\
processor\t: {number}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""
ORIN = """\
processor\t: {number}
model name\t: ARMv8 Processor rev 1 (v8l)
BogoMIPS\t: 62.50
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp uscat
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd42
CPU revision\t: 1

"""
ARMV7 = """\
Processor\t: ARMv7 Processor rev 3 (v7l)
processor\t: 0
BogoMIPS\t: 1489.66
Features\t: swp half thumb fastmult vfp edsp thumbee neon vfpv3 tls vfpv4 idiva idivt
CPU implementer\t: 0x41
CPU architecture: 7
CPU variant\t: 0x0
CPU part\t: 0xc07
CPU revision\t: 3

Hardware\t: Cloud Key
"""


def repeated(processor: str, count: int) -> str:
    return "".join(processor.replace("{number}", str(number)) for number in range(count))


@pytest.mark.parametrize(
    ("text", "model", "logical", "extensions"),
    [
        (repeated(EPYC, 2), "AMD EPYC", 2, ("sse4_2", "avx", "f16c", "fma", "avx2")),
        (repeated(PI_5, 4), "Cortex-A76", 4, ("neon", "fp16", "dotprod")),
        (repeated(ORIN, 6), "Cortex-A78AE", 6, ("neon", "fp16", "dotprod")),
        (ARMV7, "Cloud Key", 1, ("neon",)),
        (PI_5 + PI_5.replace("0xd0b", "0xd05"), "Cortex-A76 + Cortex-A55", 0, ("neon", "fp16", "dotprod")),
        (ORIN.replace("0xd42", "0xeee"), "ARMv8 Processor rev 1 (v8l)", 0, ("neon", "fp16", "dotprod")),
        ("CPU part\t: what\nCPU implementer\t: \n", "", 0, ()),
        ("", "", 0, ()),
    ],
)
def test_processor(text: str, model: str, logical: int, extensions: tuple[str, ...]) -> None:
    cpu = parse_cpuinfo(text)
    assert (cpu.model, cpu.logical, cpu.extensions) == (model, logical, extensions)


def test_memory() -> None:
    text = "MemTotal:       24684096 kB\nMemFree:        22830764 kB\nMemAvailable:   24234956 kB\nHugePages_Free: 0\n"
    assert parse_meminfo(text) == Memory(24684096 * 1024, 24234956 * 1024)
    before_linux_3_14 = "MemTotal: 1000 kB\nMemFree: 100 kB\nBuffers: 20 kB\nCached: 3 kB\nSwapCached: 500 kB\n"
    assert parse_meminfo(before_linux_3_14) == Memory(1000 * 1024, 123 * 1024)
    assert parse_meminfo("") is None


def test_memory_of_a_jetson(recorded: Recorded) -> None:
    memory = parse_meminfo(recorded("jetpack4-tx2", "meminfo"))
    assert memory == Memory(8038788 * 1024, 5642288 * 1024)


def test_free_blocks(recorded: Recorded) -> None:
    assert parse_free_blocks(recorded("jetpack6-orin-nano", "buddyinfo")) == FreeBlocks(2**21, 8)
    server = (
        "Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      3 \n"
        "Node 0, zone    DMA32      1      1      4      2      5      4      3      3      4      2    752 \n"
        "Node 1, zone   Normal   2309  17532  20921   8010   2613   1666    598    148     30     20     45 \n"
    )
    assert parse_free_blocks(server) == FreeBlocks(2**22, 3 + 752 + 45)
    assert parse_free_blocks(server, page_bytes=65536) == FreeBlocks(2**26, 800)
    assert parse_free_blocks("Node 0, zone   Normal   0   0   0 \n") is None
    assert parse_free_blocks("") is None


@pytest.mark.parametrize(
    ("text", "limit"),
    [("max\n", None), ("536870912\n", 2**29), ("9223372036854771712\n", None), ("", None), ("-1", None)],
)
def test_memory_limit(text: str, limit: int | None) -> None:
    assert parse_memory_limit(text) == limit


@pytest.mark.parametrize(
    ("version", "pair"),
    [("2.13.0+cpu", (2, 13)), ("2.5.0a0+872d972e41.nv24.08", (2, 5)), ("10.3.0.30", (10, 3)), ("dev", (0, 0))],
)
def test_versions(version: str, pair: tuple[int, int]) -> None:
    assert version_pair(version) == pair


@pytest.mark.parametrize(
    ("architectures", "capability", "covered"),
    [
        (["sm_75", "sm_80", "sm_86"], (8, 6), True),
        (["sm_80"], (8, 7), True),
        (["sm_87"], (8, 6), False),
        (["sm_80", "sm_90"], (10, 0), False),
        (["sm_80", "compute_90"], (12, 0), True),
        (["compute_90"], (8, 9), False),
        (["sm_90a"], (9, 0), True),
        (["sm_100a"], (10, 3), False),
        (["sm_100f"], (10, 3), True),
        (["sm_100"], (10, 0), True),
        (["gfx90a", ""], (9, 0), False),
        ([], (8, 0), False),
    ],
)
def test_whether_code_runs_on_a_gpu(architectures: list[str], capability: tuple[int, int], covered: bool) -> None:
    assert covers(architectures, capability) is covered
