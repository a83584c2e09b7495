"""An sshd on 127.0.0.1 with keys of its own, and a device behind it: a home, an edgetta and a systemctl.

Needs no root, and lets nobody in but the key that it made. The programs are scripts that note how they were called.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edgetta.devices.remote import Address

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
REASON = "needs an sshd: install openssh-server"
PRIVILEGE_SEPARATION = Path("/run/sshd")

TOOLS = "awk cat cp df dirname find grep head id kill ln ls mkdir mv ps readlink rm sh sort tail tar tee tr true uname"
"""All that a device needs to have, beside systemd and edgetta: nothing else is on its PATH."""

EDGETTA = """\
#!/bin/sh
echo "edgetta $*" >> "{root}/calls"
case "$1" in
--version) echo "edgetta 0.1.0" ;;
doctor) cat "{root}/doctor.json" ;;
inspect) cat "{root}/inspect.err" >&2; exit "$(cat "{root}/inspect.code")" ;;
build) exit "$(cat "{root}/build.code")" ;;
esac
"""

SYSTEMCTL = """\
#!/bin/sh
echo "systemctl $*" >> "{root}/calls"
while :; do case "$1" in --*) shift ;; *) break ;; esac; done
case "$1" in
show) cat "{root}/service" ;;
stop) printf 'ActiveState=inactive\\nResult=success\\nNRestarts=0\\n' > "{root}/service" ;;
restart)
    readlink "{folder}/current" >> "{root}/started"
    if [ -s "{root}/service.next" ]; then cp "{root}/service.next" "{root}/service"; : > "{root}/service.next"
    else printf 'ActiveState=active\\nResult=success\\nNRestarts=0\\n' > "{root}/service"; fi ;;
daemon-reload) exit "$(cat "{root}/reload.code")" ;;
esac
"""

JOURNALCTL = '#!/bin/sh\ncat "{root}/journal"\n'
LOGINCTL = '#!/bin/sh\necho "loginctl $*" >> "{root}/calls"\nexit "$(cat "{root}/linger.code")"\n'


class Device:
    """The device: folders and files that its programs read and write, and how to reach it."""

    def __init__(self, root: Path, address: Address) -> None:
        self.root = root
        self.address = address
        self.home = root / "home"
        self.folder = self.home / "edgetta"
        self.units = self.home / ".config" / "systemd" / "user"
        for name, content in {
            "calls": "",
            "started": "",
            "journal": "",
            "inspect.err": "",
            "inspect.code": "0",
            "build.code": "0",
            "reload.code": "0",
            "linger.code": "0",
            "service": "ActiveState=inactive\nResult=success\nNRestarts=0\n",
            "service.next": "",
        }.items():
            (root / name).write_text(content)
        self.doctor()
        for name, text in {
            "edgetta": EDGETTA,
            "systemctl": SYSTEMCTL,
            "journalctl": JOURNALCTL,
            "loginctl": LOGINCTL,
        }.items():
            self.program(name, text)

    def program(self, name: str, text: str) -> Path:
        """Put a program on the device's PATH."""
        path = self.root / "bin" / name
        path.unlink(missing_ok=True)  # never write through the link to the system's own
        path.write_text(text.replace("{root}", str(self.root)).replace("{folder}", str(self.folder)))
        path.chmod(0o755)
        return path

    def without(self, name: str) -> None:
        """Take a program off the device."""
        (self.root / "bin" / name).unlink()

    def doctor(self, *checks: dict[str, Any], usable: bool = True) -> None:
        """What the doctor of the device finds."""
        (self.root / "doctor.json").write_text(json.dumps({"usable": usable, "checks": list(checks)}))

    def calls(self, program: str) -> list[str]:
        """How a program was called, in order."""
        lines = (self.root / "calls").read_text().splitlines()
        return [line.removeprefix(f"{program} ") for line in lines if line.startswith(f"{program} ")]

    def releases(self) -> list[str]:
        """Folders of releases, hidden ones included."""
        folder = self.folder / "releases"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def current(self) -> str | None:
        """What the link points to."""
        link = self.folder / "current"
        return str(link.readlink()) if link.is_symlink() else None


@contextmanager
def ssh_device(root: Path) -> Iterator[Device]:
    """Start sshd for one test; skips where there is none."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip(REASON)
    for name in ("home", "bin"):
        (root / name).mkdir()
    for name in TOOLS.split():
        (root / "bin" / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    for name in ("host_key", "key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / name)]
        subprocess.run(command, check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    host_key = " ".join((root / "host_key.pub").read_text().split()[:2])
    (root / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    settings = {
        "ListenAddress": f"127.0.0.1:{port}",
        "HostKey": root / "host_key",
        "AuthorizedKeysFile": root / "key.pub",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "PidFile": "none",
        "SetEnv": f"PATH={root}/bin HOME={root}/home",
    }
    (root / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    # Debian's start script makes this folder; an sshd that runs as root insists on it.
    made = os.geteuid() == 0 and not PRIVILEGE_SEPARATION.exists()
    if made:
        PRIVILEGE_SEPARATION.mkdir(mode=0o755)
    command = [SSHD, "-D", "-e", "-f", str(root / "sshd_config")]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        said = server.stderr.readline()
        if "listening" not in said:
            pytest.skip(f"sshd does not start: {said.strip()}")
        options = (f"UserKnownHostsFile={root}/known_hosts", "GlobalKnownHostsFile=/dev/null", "LogLevel=ERROR")
        yield Device(root, Address(f"{getpass.getuser()}@127.0.0.1", port, root / "key", options))
    finally:
        server.terminate()
        server.communicate()
        if made:
            PRIVILEGE_SEPARATION.rmdir()
