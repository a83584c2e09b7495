"""What a line of `tegrastats` says: memory, the largest free block, temperatures, power. Formats of JetPack 4 to 7."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgetta.devices.machine import FreeBlocks

# `NC` is a channel that is not connected; the short names are those of an AGX Xavier.
_RAIL = re.compile(r"\b((?:VDD|VDDQ|VIN|POM)(?:_\w+)?|GPU|CPU|SOC|CV|VDDRQ|SYS5V) (-?\d+)(?:mW)?/-?\d+")


@dataclass(frozen=True)
class Tegrastats:
    """One line. Bytes, degrees Celsius, watts; None and empty for what the line does not have.

    Attributes:
        memory_used, memory_total: of main memory, which CPU and GPU share.
        free_blocks: the largest free blocks ("lfb").
        temperatures: by sensor; those that are switched off (-256 degrees) are left out.
        power: by rail, the value of the moment and not the average behind it.
    """

    memory_used: int | None
    memory_total: int | None
    free_blocks: FreeBlocks | None
    temperatures: Mapping[str, float]
    power: Mapping[str, float]


def parse_tegrastats(line: str) -> Tegrastats | None:
    """Read one line; None for one that is none.

    JetPack 4 writes power as `POM_5V_IN 1750/1628`, later ones as `VDD_IN 4304mW/4304mW`, some with a third value.
    """
    memory = re.search(r"\bRAM (\d+)/(\d+)MB", line)
    blocks = re.search(r"\blfb (\d+)x(\d+)([kM])B", line)
    temperatures = {name: float(value) for name, value in re.findall(r"\b([A-Za-z]\w*)@(-?\d+(?:\.\d+)?)C\b", line)}
    power = {name: int(value) / 1000 for name, value in _RAIL.findall(line)}
    if memory is None and not temperatures and not power:
        return None
    unit = {"k": 2**10, "M": 2**20}
    return Tegrastats(
        memory_used=int(memory[1]) * 2**20 if memory else None,
        memory_total=int(memory[2]) * 2**20 if memory else None,
        free_blocks=FreeBlocks(int(blocks[2]) * unit[blocks[3]], int(blocks[1])) if blocks else None,
        temperatures={name: value for name, value in temperatures.items() if value > -200},
        power=power,
    )
