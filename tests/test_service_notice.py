"""systemd hears when frames come, and that the process lives; without systemd nothing happens."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from edgetta.service_notice import ServiceNotice

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd's socket is one of Linux")


@pytest.mark.parametrize("abstract", [False, True])
def test_what_is_sent(tmp_path: Path, abstract: bool) -> None:
    address = f"@edgetta-{tmp_path.name}" if abstract else str(tmp_path / "notify")
    now = [0.0]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if abstract else address)
        manager.setblocking(False)
        notice = ServiceNotice({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "40000000"}, lambda: now[0])
        notice.ready()
        for _ in range(300):
            notice.alive()
            now[0] += 0.1
        heard = []
        with pytest.raises(BlockingIOError):
            while True:
                heard.append(manager.recv(100))
    assert heard == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1", b"WATCHDOG=1"]


def test_a_run_tells_that_frames_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from tests.cli.run.verb import picture, run

    np.save(tmp_path / "x.npy", picture(0, (8, 16, 16, 3)))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "60000000")
        assert run(tmp_path / "none.npy") == 1
        with pytest.raises(BlockingIOError):
            manager.recv(100)
        assert run(tmp_path / "x.npy", "--quiet") == 0
        assert [manager.recv(100) for _ in range(2)] == [b"READY=1", b"WATCHDOG=1"]


def test_nobody_listens(tmp_path: Path) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "none"), "WATCHDOG_USEC": "1"}, {"WATCHDOG_USEC": "x"}):
        notice = ServiceNotice(environment)
        notice.ready()
        notice.alive()
