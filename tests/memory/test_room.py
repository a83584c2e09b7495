"""The room for more memory: MemAvailable, and the limits of control groups of both versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgetta.memory.room import Room, RoomMeter

MIB = 1 << 20


class System:
    """A /proc and a tree of control groups, as files in a folder."""

    def __init__(self, folder: Path, available: int | None = 1000 * MIB) -> None:
        self.folder = folder
        self.proc = folder / "proc"
        (self.proc / "self").mkdir(parents=True)
        self._mounts: list[str] = []
        self._memberships: list[str] = []
        if available is not None:
            (self.proc / "meminfo").write_text(f"MemTotal: 9000000 kB\nMemAvailable: {available // 1024} kB\n")

    def mount(self, version: int, root: str, membership: str) -> Path:
        """A hierarchy, with the group `root` at its mount point and this process in the group `membership`."""
        point = self.folder / f"v{version}"
        point.mkdir()
        kind, options = ("cgroup2", "rw") if version == 2 else ("cgroup", "rw,memory")
        self._mounts.append(f"35 31 0:32 {root} {point} rw,relatime - {kind} {kind} {options}")
        self._memberships.append(f"0::{membership}" if version == 2 else f"4:cpu,memory:{membership}")
        return point

    def group(self, folder: Path, version: int, limit: int | str, used: int, reclaimable: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        names = ("memory.max", "memory.current", "inactive_file")
        if version == 1:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\nactive_file 7\n{names[2]} {reclaimable}\n")

    def read(self) -> Room | None:
        (self.proc / "self/mountinfo").write_text("\n".join(["22 1 8:1 / / rw - ext4 /dev/root rw", *self._mounts]))
        (self.proc / "self/cgroup").write_text("\n".join(["3:cpuset:/", *self._memberships]))
        return RoomMeter(self.proc).read()


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


def test_without_groups_it_is_what_the_system_has(system: System) -> None:
    assert system.read() == Room(1000 * MIB, "MemAvailable")


@pytest.mark.parametrize("version", [1, 2])
def test_a_limit_of_a_group(system: System, version: int) -> None:
    point = system.mount(version, "/", "/service")
    system.group(point / "service", version, 300 * MIB, 250 * MIB, reclaimable=30 * MIB)
    assert system.read() == Room(80 * MIB, str(point / "service")), "clean file pages count as free"


@pytest.mark.parametrize("version", [1, 2])
def test_a_limit_of_a_group_above(system: System, version: int) -> None:
    point = system.mount(version, "/", "/slice/service")
    system.group(point / "slice/service", version, 300 * MIB, 250 * MIB)
    system.group(point / "slice", version, 400 * MIB, 390 * MIB)
    assert system.read() == Room(10 * MIB, str(point / "slice"))


@pytest.mark.parametrize(("version", "none"), [(1, 9223372036854771712), (2, "max")])
def test_a_group_without_limit(system: System, version: int, none: int | str) -> None:
    point = system.mount(version, "/", "/service")
    system.group(point / "service", version, none, 250 * MIB)
    assert system.read() == Room(1000 * MIB, "MemAvailable")


@pytest.mark.parametrize("version", [1, 2])
def test_the_system_may_have_less_than_the_group(system: System, version: int) -> None:
    point = system.mount(version, "/", "/service")
    system.group(point / "service", version, 3000 * MIB, 50 * MIB)
    assert system.read() == Room(1000 * MIB, "MemAvailable")


@pytest.mark.parametrize("version", [1, 2])
def test_in_a_container_the_mount_point_is_the_own_group(system: System, version: int) -> None:
    point = system.mount(version, "/docker/abc", "/docker/abc")
    system.group(point, version, 300 * MIB, 250 * MIB)
    assert system.read() == Room(50 * MIB, str(point))


@pytest.mark.parametrize("version", [1, 2])
def test_in_a_container_that_shows_paths_of_the_host(system: System, version: int) -> None:
    point = system.mount(version, "/", "/docker/abc")
    system.group(point, version, 300 * MIB, 250 * MIB)
    assert system.read() == Room(50 * MIB, str(point))


def test_more_taken_than_allowed_leaves_nothing(system: System) -> None:
    point = system.mount(2, "/", "/service")
    system.group(point / "service", 2, 100 * MIB, 130 * MIB)
    assert system.read() == Room(0, str(point / "service"))


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    assert RoomMeter(tmp_path).read() is None
    assert System(tmp_path / "other", available=None).read() is None


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="this system has no /proc/meminfo")
def test_here_it_is_part_of_what_the_machine_has() -> None:
    room = RoomMeter().read()
    assert room is not None and 0 <= room.available < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
