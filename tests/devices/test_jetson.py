"""Parsers of what a Jetson says, on recorded outputs of several JetPacks."""

from __future__ import annotations

import pytest

from edgetta.devices.jetson import (
    PowerMode,
    TegraRelease,
    parse_cuda_version,
    parse_device_tree_model,
    parse_power_mode,
    parse_power_mode_files,
    parse_power_modes,
    parse_tegra_release,
)
from tests.devices.conftest import Recorded


@pytest.mark.parametrize(
    ("device", "l4t", "jetpack", "major"),
    [
        ("jetpack4-nano", "32.5.0", "4", 4),
        ("jetpack4-tx2", "32.5.1", "4", 4),
        ("jetpack5-agx-orin", "35.4.1", "5.1.2", 5),
        ("jetpack6-orin-nano", "36.4.3", "6.2", 6),
        ("jetpack6-agx-orin", "36.4.4", "6.2.1", 6),
        ("jetpack7-thor", "39.2.0", "7.2", 7),
    ],
)
def test_recorded_releases(recorded: Recorded, device: str, l4t: str, jetpack: str, major: int) -> None:
    release = parse_tegra_release(recorded(device, "nv_tegra_release"))
    assert release is not None
    assert (release.version, release.jetpack, release.jetpack_major) == (l4t, jetpack, major)


@pytest.mark.parametrize(
    ("device", "mode"),
    [
        ("jetpack4-nano", PowerMode("MAXN", 0)),
        ("jetpack5-agx-orin", PowerMode("MAXN", 0)),
        ("jetpack6-orin-nano", PowerMode("15W", 0)),
        ("jetpack6-agx-orin", PowerMode("MAXN", 0)),
        ("jetpack7-thor", PowerMode("120W", 1)),
    ],
)
def test_recorded_power_modes(recorded: Recorded, device: str, mode: PowerMode) -> None:
    assert parse_power_mode(recorded(device, "nvpmodel")) == mode


def test_a_release_with_two_numbers_is_that_with_a_zero() -> None:
    assert TegraRelease(36, "3").jetpack == "6.0"
    assert TegraRelease(99, "1").jetpack_major is None


@pytest.mark.parametrize(
    ("text", "release", "version", "jetpack"),
    [
        (
            "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
            "DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n",
            TegraRelease(36, "4.3"),
            "36.4.3",
            "6.2",
        ),
        (
            "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, DATE: Tue Aug  1 2023",
            TegraRelease(35, "4.1"),
            "35.4.1",
            "5.1.2",
        ),
        ("# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref", TegraRelease(32, "7.1"), "32.7.1", "4.6.1"),
        ("# R38 (release), REVISION: 2.2", TegraRelease(38, "2.2"), "38.2.2", "7"),
        ("# R99 (release), REVISION: 1", TegraRelease(99, "1"), "99.1", None),
    ],
)
def test_tegra_release(text: str, release: TegraRelease, version: str, jetpack: str | None) -> None:
    parsed = parse_tegra_release(text)
    assert parsed == release
    assert (parsed.version, parsed.jetpack) == (version, jetpack)


def test_no_tegra_release() -> None:
    assert parse_tegra_release("") is None
    assert parse_tegra_release("Ubuntu 22.04") is None


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Power Mode: 25W\n1\n", PowerMode("25W", 1)),
        ("NV Fan Mode:quiet\nNV Power Mode: MAXN_SUPER\n2\n", PowerMode("MAXN_SUPER", 2)),
        ("NV Fan Mode:cool\nNV Power Mode: MODE_30W_4CORE\n5\n", PowerMode("MODE_30W_4CORE", 5)),
        (
            "NVPM VERB: parsing done for /etc/nvpmodel.conf\nNVPM VERB: Current mode: NV Power Mode: MODE_15W_6CORE\n"
            "2\nNVPM VERB: PARAM CPU_ONLINE: ARG CORE_0: PATH /sys/devices/system/cpu/cpu0/online: REAL_VAL: 1",
            PowerMode("MODE_15W_6CORE", 2),
        ),
        (
            "NV Fan Mode:quiet\nNV Power Mode: MODE_15W_DESKTOP\n7\n"
            "NVPM ERROR: Error opening /sys/kernel/nvpmodel_emc_cap/emc_iso_cap: 13\n",
            PowerMode("MODE_15W_DESKTOP", 7),
        ),
        ("NV Power Mode: MAXN\r\n0\r\n", PowerMode("MAXN", 0)),
        ("NV Power Mode: Max Performance", PowerMode("Max Performance", None)),
        ("NVPM ERROR: Error opening /var/lib/nvpmodel/status", None),
        ("NV Power Mode:\n", None),
        ("", None),
    ],
)
def test_power_mode(text: str, mode: PowerMode | None) -> None:
    assert parse_power_mode(text) == mode


def test_device_tree() -> None:
    raw = b"NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0"
    assert parse_device_tree_model(raw) == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert parse_device_tree_model(b"\xff\0more") == "�"
    assert parse_device_tree_model(b"") == ""


CONFIGURATION = """\
# MAXN is the NONE power model to release all constraints
< PARAM TYPE=CLOCK NAME=GPU >
MAX_FREQ /sys/devices/17000000.ga10b/devfreq/17000000.ga10b/max_freq
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
# < POWER_MODEL ID=9 NAME=OLD >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< PM_CONFIG DEFAULT=1 >
"""


def test_power_mode_from_files() -> None:
    assert parse_power_modes(CONFIGURATION) == [(0, "15W"), (1, "25W"), (2, "MAXN_SUPER")]
    assert parse_power_mode_files("pmode:0002 fmode:cool\n", CONFIGURATION) == PowerMode("MAXN_SUPER", 2)
    assert parse_power_mode_files("pmode:0009", CONFIGURATION) is None
    assert parse_power_mode_files("", CONFIGURATION) is None
    assert parse_power_mode_files("pmode:0000", "") is None


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            '{\n  "cuda" : {\n    "name" : "CUDA SDK",\n    "version" : "12.6.11"\n  },\n  "cuda_cudart" : {}\n}',
            "12.6.11",
        ),
        ("CUDA Version 10.2.300\n", "10.2.300"),
        ("{}", None),
        ("", None),
    ],
)
def test_cuda_version(text: str, version: str | None) -> None:
    assert parse_cuda_version(text) == version
