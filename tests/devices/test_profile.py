"""Profiles of devices: the files' schema, their sources, and which of them fits a machine."""

from __future__ import annotations

import re
from typing import Any, get_args

import pytest

from edgetta.devices import profile
from edgetta.devices.profile import (
    FOLDER,
    Confidence,
    DeviceProfile,
    Family,
    Figure,
    JetPack,
    load_profile,
    matching_profile,
    profiles,
)
from edgetta.errors import UsageError

ASKED_FOR = [
    "nano",
    "tx2",
    "xavier-nx",
    "agx-xavier",
    "orin-nano-4gb",
    "orin-nano-8gb",
    "orin-nano-8gb-super",
    "orin-nx-8gb",
    "orin-nx-16gb",
    "agx-orin-32gb",
    "agx-orin-64gb",
    "thor",
    "raspberry-pi-4",
    "raspberry-pi-5",
    "generic-x86",
    "generic-arm",
]
SHARED = ("jetpacks.toml", "traps.toml")
REQUIRED = {"title", "family", "architecture", "device_tree", "jetpacks", "traps"} | {
    "memory_gib",
    "system_memory_gib",
    "processor",
}
OPTIONAL = {"bandwidth_gb_s", "compute_capability", "power_modes"}


def raw(name: str) -> dict[str, Any]:
    return profile._read(name)


def figures(value: Any) -> list[dict[str, Any]]:
    """Every table with a source, however deep."""
    if isinstance(value, dict):
        return [value] if "source" in value else [found for child in value.values() for found in figures(child)]
    return []


def test_every_device_has_its_profile() -> None:
    assert set(profiles()) == set(ASKED_FOR)
    assert list(profiles()) == sorted(profiles())


@pytest.mark.parametrize("name", ASKED_FOR)
def test_schema(name: str) -> None:
    data = raw(f"profiles/{name}.toml")
    assert set(data) >= REQUIRED and set(data) <= REQUIRED | OPTIONAL, set(data) ^ REQUIRED
    found = load_profile(name)
    assert found.family in get_args(Family) and found.architecture in ("aarch64", "x86_64")
    assert 2 * 2**30 <= found.memory_bytes <= 256 * 2**30
    assert 0 < found.system_memory.value < found.memory_bytes
    assert found.bandwidth is None or 5 < found.bandwidth.value < 1000
    assert found.traps and all(trap.value[-1] not in ".!" for trap in found.traps)
    if found.family == "jetson":
        assert found.compute_capability is not None and re.fullmatch(r"\d+\.\d", found.compute_capability.value)
        assert found.power_modes is not None and len(set(found.power_modes.value)) == len(found.power_modes.value) > 1
        assert found.jetpacks and all(isinstance(release, JetPack) for release in found.jetpacks)
        releases = [float(release.release) for release in found.jetpacks]
        assert releases == sorted(releases)
    else:
        assert found.compute_capability is None and found.power_modes is None and found.jetpacks == ()
    assert bool(found.device_tree) is (found.family != "generic")


def test_every_figure_has_a_source_and_says_how_sure_it_is() -> None:
    sources = raw("sources.toml")
    tables = [raw(f"profiles/{name}.toml") for name in ASKED_FOR] + [raw(name) for name in SHARED]
    used = {figure["source"] for table in tables for figure in figures(table)}
    assert used == set(sources), "a source is missing, or nobody uses it"
    for table in tables:
        for figure in figures(table):
            assert figure["confidence"] in get_args(Confidence)
            # What stands only in our own words must not pass for a reading.
            assert (figure["source"] == "edgetta") is (figure["confidence"] == "assumed")
            assert figure["source"] != "general-recall" or figure["confidence"] == "unverified"


def test_every_trap_and_release_is_used() -> None:
    tables = [raw(f"profiles/{name}.toml") for name in ASKED_FOR]
    assert {trap for table in tables for trap in table["traps"]} == set(raw("traps.toml"))
    assert {release for table in tables for release in table["jetpacks"]} == set(raw("jetpacks.toml"))


def test_bandwidth_of_orins_is_clock_times_width() -> None:
    """What is said to be derived is derived: NVIDIA's clock caps, two transfers per clock."""
    for name, megahertz, bits in (
        ("orin-nano-4gb", 2133, 64),
        ("orin-nano-8gb", 2133, 128),
        ("orin-nano-8gb-super", 3199, 128),
    ):
        bandwidth = load_profile(name).bandwidth
        assert bandwidth is not None and bandwidth.confidence == "derived"
        assert bandwidth.value == pytest.approx(megahertz * 1e6 * 2 * bits / 8 / 1e9, rel=2e-3)


def test_budget_is_half_of_what_the_system_leaves() -> None:
    nano = load_profile("orin-nano-8gb")
    assert nano.memory_bytes == 8 * 2**30
    assert nano.suggested_budget_bytes == (8 * 2**30 - 3 * 2**29) // 2
    assert all(0 < p.suggested_budget_bytes < p.memory_bytes / 2 for p in profiles().values())


@pytest.mark.parametrize("spelled", ["orin-nano-8gb", "Orin Nano 8GB", "ORIN_NANO_8GB", " orin-nano-8gb "])
def test_names_are_forgiving(spelled: str) -> None:
    assert load_profile(spelled).name == "orin-nano-8gb"


def test_unknown_name() -> None:
    with pytest.raises(UsageError, match=r"no device profile 'orin-nano-16gb'; did you mean '"):
        load_profile("orin-nano-16gb")
    with pytest.raises(UsageError, match=r"no device profile 'zx81'; there are agx-orin-32gb, .*, xavier-nx$"):
        load_profile("zx81")


@pytest.mark.parametrize(
    ("model", "megabytes", "name"),
    [
        ("NVIDIA Jetson Nano Developer Kit", 3964, "nano"),
        ("NVIDIA Jetson Orin Nano Developer Kit", 7620, "orin-nano-8gb"),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", 7620, "orin-nano-8gb-super"),
        ("NVIDIA Jetson Orin Nano Developer Kit", 3440, "orin-nano-4gb"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", 15368, "orin-nx-16gb"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit Super", 7620, "orin-nx-8gb"),
        ("NVIDIA Jetson AGX Orin Developer Kit", 30698, "agx-orin-32gb"),
        ("NVIDIA Jetson AGX Orin Developer Kit", 62841, "agx-orin-64gb"),
        ("NVIDIA Jetson Xavier NX Developer Kit", 6860, "xavier-nx"),
        ("NVIDIA Jetson AGX Thor Developer Kit", 125000, "thor"),
        ("quill", 7852, "tx2"),
        ("Raspberry Pi 5 Model B Rev 1.0", 16000, "raspberry-pi-5"),
        ("Raspberry Pi 4 Model B Rev 1.4", 1900, "raspberry-pi-4"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", None, None),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", None, "orin-nano-8gb-super"),
        ("Radxa ROCK 5B", 7900, None),
    ],
)
def test_matching(model: str, megabytes: int | None, name: str | None) -> None:
    found = matching_profile(model, None if megabytes is None else megabytes * 2**20, "aarch64")
    assert (found.name if found else None) == name


def test_a_machine_without_a_device_tree_is_generic() -> None:
    names = [matching_profile("", 2**33, machine) for machine in ("x86_64", "aarch64", "riscv64")]
    assert [found.name if found else None for found in names] == ["generic-x86", "generic-arm", None]


@pytest.mark.parametrize(
    ("figure", "complaint"),
    [
        ({"value": 1, "source": "pypi"}, "has value, source and confidence"),
        ({"value": 1, "source": "pypi", "confidence": "certain"}, "confidence is one of vendor,"),
        ({"value": 1, "source": "hearsay", "confidence": "vendor"}, "no 'hearsay'"),
    ],
)
def test_a_figure_that_hides_where_it_is_from_is_refused(figure: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        profile._figure(figure, {"pypi": "PyPI"}, "here")


def test_profiles_cannot_be_changed() -> None:
    found = load_profile("thor")
    assert isinstance(found, DeviceProfile) and isinstance(found.memory, Figure)
    with pytest.raises(AttributeError):
        found.memory.value = 1  # type: ignore[misc]
    assert (FOLDER / "profiles" / "thor.toml").is_file()
