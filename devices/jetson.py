"""What a Jetson says of itself, as values: release, power mode, board. Parsers of text alone."""

from __future__ import annotations

import re
from dataclasses import dataclass

# L4T release: JetPack release. NVIDIA's JetPack archive, as others list it; of the rest the generation is known.
JETPACK_OF_L4T = {
    "32.6.1": "4.6",
    "32.7.1": "4.6.1",
    "32.7.2": "4.6.2",
    "32.7.3": "4.6.3",
    "32.7.4": "4.6.4",
    "32.7.5": "4.6.5",
    "32.7.6": "4.6.6",
    "34.1.0": "5.0",
    "34.1.1": "5.0.1",
    "35.1.0": "5.0.2",
    "35.2.1": "5.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5.0": "5.1.3",
    "35.6.0": "5.1.4",
    "35.6.1": "5.1.5",
    "36.3.0": "6.0",
    "36.4.0": "6.1",
    "36.4.2": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.5.0": "6.2.2",
    "36.5.2": "6.2.3",
    "38.2.0": "7.0",
    "38.2.1": "7.0",
    "38.4.0": "7.1",
    "39.2.0": "7.2",
    "39.2.1": "7.2.1",
}
JETPACK_MAJOR_OF_L4T = {32: 4, 34: 5, 35: 5, 36: 6, 38: 7, 39: 7}


@dataclass(frozen=True)
class TegraRelease:
    """The release of Linux for Tegra, such as 36.4.3."""

    major: int
    revision: str

    @property
    def version(self) -> str:
        return f"{self.major}.{self.revision}"

    @property
    def jetpack_major(self) -> int | None:
        """The JetPack generation, such as 6; None for a release that is not in the table."""
        return JETPACK_MAJOR_OF_L4T.get(self.major)

    @property
    def jetpack(self) -> str | None:
        """The JetPack release, such as "6.2"; only its generation where this release is not in the table."""
        exact = JETPACK_OF_L4T.get(self.version) or JETPACK_OF_L4T.get(f"{self.version}.0")
        return exact or (str(self.jetpack_major) if self.jetpack_major is not None else None)


@dataclass(frozen=True)
class PowerMode:
    """A power mode of a Jetson. The same number means other modes on other boards: the name is what counts."""

    name: str
    number: int | None


def parse_tegra_release(text: str) -> TegraRelease | None:
    """Read /etc/nv_tegra_release: `# R36 (release), REVISION: 4.3, GCID: ...`."""
    match = re.search(r"R(\d+)\s*\([^)]*\),\s*REVISION:\s*(\d+(?:\.\d+)*)", text)
    return TegraRelease(int(match[1]), match[2]) if match else None


def parse_power_mode(text: str) -> PowerMode | None:
    """Read what `nvpmodel -q` prints: a line `NV Power Mode: 25W` and the mode's number on the next."""
    match = re.search(r"NV Power Mode\s*:[ \t]*(\S[^\r\n]*?)[ \t]*\r?(?:\n\s*(\d+)\s*$|\n|$)", text, re.MULTILINE)
    return PowerMode(match[1], int(match[2]) if match[2] else None) if match else None


def parse_power_mode_files(status: str, configuration: str) -> PowerMode | None:
    """Read the mode from /var/lib/nvpmodel/status (`pmode:0002 fmode:cool`) and its name from /etc/nvpmodel.conf.

    For where `nvpmodel -q` needs root, or is not there: a container that mounts the two files.
    """
    match = re.search(r"pmode:(\d+)", status)
    if match is None:
        return None
    number = int(match[1])
    name = dict(parse_power_modes(configuration)).get(number)
    return PowerMode(name, number) if name is not None else None


def parse_power_modes(configuration: str) -> list[tuple[int, str]]:
    """Numbers and names of the modes in /etc/nvpmodel.conf: `< POWER_MODEL ID=2 NAME=MAXN_SUPER >`."""
    found = re.findall(r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=([^\s>]+)\s*>", configuration, re.MULTILINE)
    return [(int(number), name) for number, name in found]


def parse_cuda_version(text: str) -> str | None:
    """Read /usr/local/cuda/version.json of CUDA 11 and later, or its version.txt of CUDA 10."""
    match = re.search(r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([\d.]+)"', text) or re.search(
        r"CUDA Version (\d[\d.]*)", text
    )
    return match[1] if match else None


def parse_device_tree_model(raw: bytes) -> str:
    """Read /proc/device-tree/model, a string that ends with NUL."""
    return raw.split(b"\0")[0].decode("utf-8", "replace").strip()
