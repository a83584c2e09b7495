"""The connection to a device: scripts run, files arrive whole, and every way of failing has its line."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgetta.devices import remote as module
from edgetta.devices.remote import Address, Remote, RemoteError, unreachable
from edgetta.errors import MissingDependencyError
from tests.devices.ssh_server import Device, ssh_device


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    with ssh_device(tmp_path) as device:
        yield device


def files_of(folder: Path, **content: bytes) -> list[tuple[str, Path]]:
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return [(f"below/{name}", folder / name) for name in content]


def test_scripts(device: Device) -> None:
    with Remote(device.address) as remote:
        answer = remote.run('echo "it\'s $HOME"; echo careful >&2; exit 3')
        assert (answer.code, answer.out, answer.err) == (3, f"it's {device.home}\n", "careful\n")
        assert answer.complaint == "careful"
        with pytest.raises(RemoteError, match=r"127\.0\.0\.1: no such thing$"):
            remote.run("echo no such thing >&2; false", check=True)
        assert remote.run("exit 7").complaint == "exit code 7"
        assert remote.run("cat <<'END'\n" + "x" * 300_000 + "\nEND\n").out == "x" * 300_000 + "\n", "no argument limit"


def test_one_connection_serves_all(device: Device) -> None:
    with Remote(device.address) as remote:
        ports = {remote.run('echo "$SSH_CONNECTION"').out for _ in range(3)}
        sockets = Path(remote._sockets or "")
        assert len(ports) == 1 and sockets.is_dir()
    assert not sockets.exists()


def test_files(device: Device, tmp_path: Path) -> None:
    files = files_of(tmp_path / "here", empty=b"", large=bytes(range(256)) * 5000)
    seen: list[int] = []
    target = device.home / "with space"
    target.mkdir()
    with Remote(device.address) as remote:
        remote.send(files, str(target), seen.append)
    assert (target / "below" / "large").read_bytes() == bytes(range(256)) * 5000
    assert (target / "below" / "empty").stat().st_mode & 0o777 == 0o644
    assert seen == [0, 1_280_000]


def test_a_full_disk(device: Device, tmp_path: Path) -> None:
    files = files_of(tmp_path / "here", weights=b"w" * 3_000_000)
    tar = "#!/bin/sh\nhead -c 1000 >/dev/null\necho 'tar: weights: Cannot write: No space left on device' >&2\n"
    device.program("tar", tar + "echo 'tar: Exiting with failure status due to previous errors' >&2\nexit 2\n")
    with Remote(device.address) as remote, pytest.raises(RemoteError, match="its disk is full; free some space there"):
        remote.send(files, str(device.home))


def test_a_folder_that_is_not_there(device: Device, tmp_path: Path) -> None:
    files = files_of(tmp_path / "here", a=b"1")
    with Remote(device.address) as remote, pytest.raises(RemoteError, match=r"cannot write /nowhere .*No such file"):
        remote.send(files, "/nowhere")


def test_a_key_that_is_not_let_in(device: Device, tmp_path: Path) -> None:
    shutil.copy(device.root / "host_key", tmp_path / "other")
    with pytest.raises(RemoteError) as error, Remote(replace(device.address, identity=tmp_path / "other")):
        pass
    assert "refuses the key: put yours there with `ssh-copy-id -p" in str(error.value)


def test_a_host_that_is_not_known(device: Device) -> None:
    options = ("UserKnownHostsFile=/dev/null", "GlobalKnownHostsFile=/dev/null")
    with pytest.raises(RemoteError, match="not known here yet: connect once with"):
        Remote(replace(device.address, options=options)).__enter__()


def test_a_host_whose_key_changed(device: Device) -> None:
    port = device.address.port
    key = " ".join((device.root / "key.pub").read_text().split()[:2])
    (device.root / "known_hosts").write_text(f"[127.0.0.1]:{port} {key}\n")
    with pytest.raises(RemoteError, match="is not the one that is known"):
        Remote(device.address).__enter__()


def test_a_port_where_nobody_listens(device: Device) -> None:
    with pytest.raises(RemoteError, match=r"does not take ssh at port 1: start sshd"):
        Remote(replace(device.address, port=1)).__enter__()


def test_a_connection_that_breaks(device: Device) -> None:
    """What runs there kills its own sshd, as a cable that is pulled."""
    with Remote(device.address) as remote, pytest.raises(RemoteError, match=r"the connection to .* failed"):
        remote.run('kill -9 "$(ps -o ppid= -p $$ | tr -d " ")"')


def test_no_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(MissingDependencyError, match="install OpenSSH's client"):
        Remote(Address("pi")).__enter__()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("ssh: Could not resolve hostname orin: Name or service not known", "there is no host orin: check the name"),
        ("ssh: connect to host orin port 22: Connection timed out", "cannot reach orin: is it on"),
        ("ssh: connect to host orin port 22: No route to host", "cannot reach orin: is it on"),
        ("ssh: connect to host orin port 22: Connection refused", "orin does not take ssh: start sshd there"),
        ("Permissions 0644 for 'k' are too open.\nUNPROTECTED PRIVATE KEY FILE!", "chmod 600 the key"),
        ("me@orin: Permission denied (publickey,password).", "me@orin refuses the key: put yours there"),
        (
            "Warning: Permanently added\nkex_exchange_identification: read: reset",
            "failed: kex_exchange_identification",
        ),
        ("", "the connection to me@orin failed: ssh gave no reason; try `ssh me@orin`"),
    ],
)
def test_lines(words: str, line: str) -> None:
    assert line in unreachable(Address("me@orin"), words)
