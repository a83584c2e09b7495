"""What is known of a device: one TOML file each in profiles/, every figure with its source and how sure it is.

What profiles share stands beside that folder: jetpacks.toml (the software of each JetPack), traps.toml, and
sources.toml, the texts behind the short names of sources. A profile advises: it gives `edgetta plan` a memory budget
and `edgetta doctor` something to compare with. Nothing is ever refused because of one.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args

from edgetta.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent

Confidence = Literal["vendor", "second-hand", "derived", "unverified", "assumed"]
"""How sure a figure is.

vendor: read in the maker's own words or files. second-hand: told by others who name the maker, or found by them on a
device. derived: calculated from such figures. unverified: from memory, or from one place that names no source.
assumed: our own advice, until somebody measures.
"""

Family = Literal["jetson", "raspberry-pi", "generic"]

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Figure(Generic[_Value]):
    """A value, where it is from, and how sure it is."""

    value: _Value
    source: str
    confidence: Confidence


@dataclass(frozen=True)
class JetPack:
    """The software of a JetPack release: what it brings, and the torch and ONNX Runtime that others found to work."""

    release: str
    l4t: Figure[str]
    ubuntu: Figure[str]
    python: Figure[str]
    cuda: Figure[str]
    tensorrt: Figure[str]
    torch: Figure[str]
    onnxruntime: Figure[str]


@dataclass(frozen=True)
class DeviceProfile:
    """A device. Bytes are bytes, bandwidth is in 10^9 bytes per second.

    Attributes:
        name: the file's name, e.g. "orin-nano-8gb".
        title: as people call it.
        family: "jetson", "raspberry-pi" or "generic".
        architecture: "aarch64" or "x86_64", as `platform.machine()` has it.
        device_tree: texts of which one stands in /proc/device-tree/model of such a device; none for generic ones.
        memory: main memory. On a Jetson CPU and GPU share it.
        system_memory: what the system and its desktop take before edgetta starts.
        bandwidth: of that memory, at the highest clock; None where it differs too much.
        processor: cores and their kind.
        compute_capability: of the GPU, such as "8.7"; None without a CUDA GPU.
        power_modes: names as `nvpmodel -q` prints them; none where there are none.
        jetpacks: releases that exist for the device, oldest first.
        traps: what people stumbled over.
    """

    name: str
    title: str
    family: Family
    architecture: str
    device_tree: tuple[str, ...]
    memory: Figure[int]
    system_memory: Figure[int]
    bandwidth: Figure[float] | None
    processor: Figure[str]
    compute_capability: Figure[str] | None
    power_modes: Figure[tuple[str, ...]] | None
    jetpacks: tuple[JetPack, ...]
    traps: tuple[Figure[str], ...]

    @property
    def memory_bytes(self) -> int:
        """Bytes of main memory."""
        return self.memory.value

    @property
    def suggested_budget_bytes(self) -> int:
        """A memory budget to start from: half of what the system leaves, the other half for camera, engine and CUDA.

        Advice, not a measurement: `edgetta doctor` on the device tells what is free there.
        """
        return max(self.memory.value - self.system_memory.value, 0) // 2


@cache
def profiles() -> Mapping[str, DeviceProfile]:
    """All profiles by name, in alphabetical order."""
    shared = _Shared(_read("jetpacks.toml"), _read("traps.toml"), _read("sources.toml"))
    names = sorted(path.stem for path in (FOLDER / "profiles").glob("*.toml"))
    return {name: _profile(name, _read(f"profiles/{name}.toml"), shared) for name in names}


def load_profile(name: str) -> DeviceProfile:
    """The profile of that name, such as "orin-nano-8gb".

    Raises:
        UsageError: there is none; the message names the nearest, or all.
    """
    known = profiles()
    wanted = name.strip().lower().replace("_", "-").replace(" ", "-")
    if wanted in known:
        return known[wanted]
    near = difflib.get_close_matches(wanted, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    raise UsageError(f"no device profile {name!r}; {hint}")


def matching_profile(model: str, memory_bytes: int | None, architecture: str) -> DeviceProfile | None:
    """The profile that fits a machine best, or None.

    Args:
        model: the text of /proc/device-tree/model; "" where there is none.
        memory_bytes: main memory as the kernel counts it, which is less than what is soldered on; None if unknown.
        architecture: as `platform.machine()` has it.
    """
    known = profiles().values()
    if not model:
        fits = [profile for profile in known if profile.family == "generic" and profile.architecture == architecture]
        return fits[0] if fits else None
    model = model.lower()
    # The longest text wins: an Orin Nano Super is an Orin Nano, too.
    by_length = {
        profile: max((len(text) for text in profile.device_tree if text.lower() in model), default=0)
        for profile in known
    }
    longest = max(by_length.values())
    fits = [profile for profile, length in by_length.items() if length == longest and length > 0]
    if memory_bytes is None:
        return fits[0] if len(fits) == 1 else None
    large_enough = [profile for profile in fits if profile.memory_bytes >= memory_bytes]
    return min(large_enough or fits, key=lambda profile: abs(profile.memory_bytes - memory_bytes), default=None)


@dataclass(frozen=True)
class _Shared:
    """Tables that profiles point into."""

    jetpacks: Mapping[str, Any]
    traps: Mapping[str, Any]
    sources: Mapping[str, str]


def _read(name: str) -> dict[str, Any]:
    with (FOLDER / name).open("rb") as file:
        return tomllib.load(file)


def _profile(name: str, data: dict[str, Any], shared: _Shared) -> DeviceProfile:
    where = f"device profile {name}"

    def figure(key: str) -> Figure[Any]:
        return _figure(data[key], shared.sources, f"{where}: {key}")

    def size(key: str) -> Figure[int]:
        found = figure(key)
        return Figure(int(found.value * 2**30), found.source, found.confidence)

    modes = figure("power_modes") if "power_modes" in data else None
    return DeviceProfile(
        name=name,
        title=data["title"],
        family=data["family"],
        architecture=data["architecture"],
        device_tree=tuple(data["device_tree"]),
        memory=size("memory_gib"),
        system_memory=size("system_memory_gib"),
        bandwidth=figure("bandwidth_gb_s") if "bandwidth_gb_s" in data else None,
        processor=figure("processor"),
        compute_capability=figure("compute_capability") if "compute_capability" in data else None,
        power_modes=Figure(tuple(modes.value), modes.source, modes.confidence) if modes is not None else None,
        jetpacks=tuple(_jetpack(release, shared) for release in data["jetpacks"]),
        traps=tuple(_figure(shared.traps[trap], shared.sources, f"trap {trap}") for trap in data["traps"]),
    )


def _jetpack(release: str, shared: _Shared) -> JetPack:
    data = shared.jetpacks[release]
    figures = {key: _figure(value, shared.sources, f"JetPack {release}: {key}") for key, value in data.items()}
    return JetPack(release=release, **figures)


def _figure(data: Mapping[str, Any], sources: Mapping[str, str], where: str) -> Figure[Any]:
    """A figure of a file: `{ value = 8, source = "name of a source", confidence = "vendor" }`."""
    if set(data) != {"value", "source", "confidence"}:
        raise ValueError(f"{where}: a figure has value, source and confidence, not {', '.join(data)}")
    if data["confidence"] not in get_args(Confidence):
        raise ValueError(f"{where}: confidence is one of {', '.join(get_args(Confidence))}, not {data['confidence']}")
    if data["source"] not in sources:
        raise ValueError(f"{where}: sources.toml has no {data['source']!r}")
    return Figure(data["value"], sources[data["source"]], data["confidence"])
