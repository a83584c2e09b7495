"""How much more memory this process may take now: what the system has left, and what control groups allow.

A container or a service with a memory limit is killed at that limit, however much the machine has free. Both versions
of control groups are read, every group up to the root, and what the kernel can take back at once (clean file pages)
counts as free, as it does in MemAvailable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Room:
    """Bytes that may still be taken, and what sets that bound: "MemAvailable", or the group's folder."""

    available: int
    bound: str


@dataclass(frozen=True)
class _Group:
    """The files of one control group with a memory controller."""

    folder: Path
    limit: str
    usage: str
    reclaimable: str  # the field of memory.stat that counts file pages not in active use, of all groups below, too


_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")


class RoomMeter:
    """Reads the room of this process; the groups are looked up once."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._meminfo = proc / "meminfo"
        self._groups = tuple(_groups(proc))

    def read(self) -> Room | None:
        """The room now; None where the system tells nothing of its memory."""
        rooms = [room for room in (self._of_system(), *map(_of_group, self._groups)) if room is not None]
        return min(rooms, key=lambda room: room.available, default=None)

    def _of_system(self) -> Room | None:
        with suppress(OSError):
            found = re.search(r"^MemAvailable:\s+(\d+) kB", self._meminfo.read_text(), re.MULTILINE)
            if found is not None:
                return Room(int(found[1]) * 1024, "MemAvailable")
        return None


def _of_group(group: _Group) -> Room | None:
    """The room in one group; None where it has no limit."""
    with suppress(OSError, ValueError):  # a group may be removed, and "max" is no number
        limit = int((group.folder / group.limit).read_text())
        if limit >= 1 << 60:  # version 1 writes a huge number where there is none
            return None
        used = int((group.folder / group.usage).read_text())
        stat = (group.folder / "memory.stat").read_text()
        found = re.search(rf"^{group.reclaimable} (\d+)$", stat, re.MULTILINE)
        return Room(max(0, limit - used + (int(found[1]) if found else 0)), str(group.folder))
    return None


def _groups(proc: Path) -> Iterator[_Group]:
    """Every group of this process with a memory controller, innermost first."""
    try:
        memberships = (proc / "self/cgroup").read_text().splitlines()
        mounts = (proc / "self/mountinfo").read_text().splitlines()
    except OSError:
        return
    for membership in memberships:
        number, controllers, path = membership.split(":", 2)
        version_2 = number == "0" and not controllers
        if not version_2 and "memory" not in controllers.split(","):
            continue
        files = _VERSION_2 if version_2 else _VERSION_1
        for root, point in _mounted(mounts, version_2):
            for folder in _upwards(path, root, point):
                if (folder / files[0]).is_file():
                    yield _Group(folder, *files)


def _mounted(mounts: list[str], version_2: bool) -> Iterator[tuple[str, Path]]:
    """Where the hierarchy is mounted: the group that stands at the mount point, and the point."""
    for mount in mounts:
        left, _, right = mount.partition(" - ")
        kind, _, rest = right.partition(" ")
        if kind == "cgroup2" if version_2 else (kind == "cgroup" and "memory" in rest.split(" ")[-1].split(",")):
            fields = left.split(" ")
            yield fields[3], Path(fields[4].replace("\\040", " "))


def _upwards(path: str, root: str, point: Path) -> Iterator[Path]:
    """The folder of a group, and those of the groups above it that can be seen."""
    inner = path.removeprefix(root.rstrip("/")) if path.startswith(root.rstrip("/") + "/") or path == root else path
    folder = point / inner.lstrip("/")
    while not folder.is_dir() and folder != point:  # in a container the path may be that of the host
        folder = folder.parent
    while True:
        yield folder
        if folder == point or point not in folder.parents:
            return
        folder = folder.parent
