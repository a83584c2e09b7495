"""What Linux says of itself, as values. Parsers of text alone: recorded outputs can test them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

VECTOR_EXTENSIONS = (
    "sse4_2",
    "avx",
    "f16c",
    "fma",
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_tile",
)
ARM_EXTENSIONS = {
    "neon": "neon",
    "asimd": "neon",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "bf16": "bf16",
    "sve": "sve",
}

# (implementer, part) of /proc/cpuinfo, for kernels that name no model; Arm's "Main ID Register" documentation.
ARM_CORES = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD83): "Neoverse-V3AE",
    (0x4E, 0x003): "NVIDIA Denver 2",
    (0x4E, 0x004): "NVIDIA Carmel",
}


@dataclass(frozen=True)
class Cpu:
    """The processor as the kernel describes it.

    Attributes:
        model: as the kernel or the table of Arm cores names it; several kinds are joined with " + ".
        logical: processors that the kernel lists.
        flags: the kernel's flags, unchanged.
    """

    model: str
    logical: int
    flags: frozenset[str]

    @property
    def extensions(self) -> tuple[str, ...]:
        """The vector extensions that matter for inference: avx2, neon and the like."""
        x86 = [name for name in VECTOR_EXTENSIONS if name in self.flags]
        arm = {name: None for flag, name in ARM_EXTENSIONS.items() if flag in self.flags}
        return (*x86, *arm)


@dataclass(frozen=True)
class Memory:
    """Bytes of main memory. On a Jetson the GPU shares them."""

    total: int
    available: int


@dataclass(frozen=True)
class FreeBlocks:
    """The largest blocks of free memory that are in one piece: their bytes, and how many of them there are."""

    bytes: int
    count: int


def parse_cpuinfo(text: str) -> Cpu:
    """Read /proc/cpuinfo of an x86 or Arm kernel. What it does not say is "" or 0."""
    names: dict[str, None] = {}
    arm_cores: dict[str, None] = {}
    flags: set[str] = set()
    logical = 0
    board = ""
    implementer = 0
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "processor" and value.isdigit():
            logical += 1
        elif key == "model name":
            names[value] = None
        elif key in ("flags", "Features"):
            flags.update(value.split())
        elif key == "CPU implementer":
            implementer = _hexadecimal(value)
        elif key == "CPU part":
            core = ARM_CORES.get((implementer, _hexadecimal(value)))
            if core:
                arm_cores[core] = None
        elif key in ("Model", "Hardware") and not board:
            board = value
    return Cpu(" + ".join(arm_cores or names) or board, logical, frozenset(flags))


def parse_meminfo(text: str) -> Memory | None:
    """Read /proc/meminfo; None where it holds no total."""
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    if "MemTotal" not in kib:
        return None
    # Kernels before 3.14 estimate nothing; this is what `free` used to show.
    estimate = kib.get("MemFree", 0) + kib.get("Buffers", 0) + kib.get("Cached", 0)
    return Memory(kib["MemTotal"] * 1024, kib.get("MemAvailable", estimate) * 1024)


def parse_free_blocks(text: str, page_bytes: int = 4096) -> FreeBlocks | None:
    """Read /proc/buddyinfo; None where it lists no zone.

    Its columns count free blocks of 1, 2, 4, ... pages; those of all zones are added.
    """
    zones = re.findall(r"^Node\s+\d+, zone\s+\w+\s+([\d ]+)$", text, re.MULTILINE)
    counts = [sum(column) for column in zip(*(map(int, zone.split()) for zone in zones), strict=False)]
    if not any(counts):
        return None
    order = max(order for order, count in enumerate(counts) if count)
    return FreeBlocks(page_bytes << order, counts[order])


def parse_memory_limit(text: str) -> int | None:
    """Read a control group's limit (`memory.max` or `memory.limit_in_bytes`) in bytes; None where there is none."""
    text = text.strip()
    # The first version of control groups writes "no limit" as a number near 2**63.
    return int(text) if text.isdigit() and int(text) < 2**60 else None


def version_pair(version: str) -> tuple[int, int]:
    """Major and minor number of a version such as `2.5.0a0+872d972e41.nv24.08`; (0, 0) for what is none."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def covers(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether code built for `architectures` (`sm_80`, `sm_90a`, `compute_90`) runs on a GPU of `capability`.

    Machine code runs on the same major and the same or a higher minor version, feature-specific code (`a`) on exactly
    its own, and intermediate code (`compute_XY`) on everything from XY on.
    """
    major, minor = capability
    for architecture in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
        if not match:
            continue
        built = (int(match[2]), int(match[3]))
        if match[4] == "a":
            if built == capability:
                return True
        elif match[1] == "compute":
            if built <= capability:
                return True
        elif built[0] == major and built[1] <= minor:
            return True
    return False


def _hexadecimal(value: str) -> int:
    try:
        return int(value, 16)
    except ValueError:
        return 0
