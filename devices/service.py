"""The systemd unit that runs a bundle on a device: its text, and its start, from which there is a way back."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetta.devices.remote import Remote, RemoteError
from edgetta.errors import EdgettaError

TEMPLATE = Path(__file__).parent / "edgetta.service"


@dataclass(frozen=True)
class Service:
    """A unit of systemd.

    Attributes:
        name: without ".service".
        system: for the whole machine (needs root, through sudo), else of the user.
    """

    name: str
    system: bool = False

    @property
    def unit(self) -> str:
        return f"{self.name}.service"

    def folder(self, home: str) -> str:
        """Where the unit's file belongs on the device."""
        return "/etc/systemd/system" if self.system else f"{home}/.config/systemd/user"

    def file(self, home: str) -> str:
        """The unit's file on the device, quoted for a shell."""
        return shlex.quote(f"{self.folder(home)}/{self.unit}")

    @property
    def systemctl(self) -> str:
        """The shell words that call systemctl for this kind of unit."""
        return f"{self.root}systemctl" if self.system else "systemctl --user"

    @property
    def root(self) -> str:
        """What goes before a command that must be root; "" for a user's unit."""
        return "$root " if self.system else ""

    @property
    def opening(self) -> str:
        """The first line of every script: how to be root, or where the user's manager listens."""
        if self.system:
            return '[ "$(id -u)" = 0 ] && root= || root="sudo -n"\n'
        return 'export XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/run/user/$(id -u)}"\n'

    @property
    def journal(self) -> str:
        """The words that show what it prints."""
        return f"{self.root}journalctl {'-u' if self.system else '--user -u'} {self.unit}"


@dataclass(frozen=True)
class Switch:
    """Shell lines that make a release the current one, and that undo it."""

    forward: str
    back: str


def start(remote: Remote, service: Service, text: str, home: str, switch: Switch, watch_seconds: int) -> None:
    """Stop the service, switch to a release, start the service with a new unit, and watch that it lives.

    Whatever fails in between, and on Ctrl-C: the link, the unit and the running of before are restored.

    Args:
        remote: the connection.
        service: its name and kind.
        text: the new unit's file.
        home: the user's home there.
        switch: how the release is switched to, and back.
        watch_seconds: how long the service is watched.

    Raises:
        RemoteError: what failed, and that all is as it was, or what is not.
    """
    file = service.file(home)
    before = remote.run(f"cat {file} 2>/dev/null")
    earlier_text = before.out if before.code == 0 else None
    # "activating" is a service that is about to be started again.
    was_active = _state(remote, service).get("ActiveState") in ("active", "activating", "reloading")
    try:
        if was_active:
            _run(remote, service, f"{service.systemctl} stop {service.unit}")
        remote.run(switch.forward, check=True)
        _install(remote, service, text, home)
        _run(remote, service, f"{service.systemctl} restart {service.unit}")
        _watch(remote, service, watch_seconds)
    except BaseException as error:
        try:
            _restore(remote, service, earlier_text, home, was_active, switch.back)
        except EdgettaError as second:
            raise RemoteError(f"{error}; and going back failed, too: {second}") from error
        if isinstance(error, RemoteError):
            raise RemoteError(f"{error}; the device is as it was") from error
        raise


def linger(remote: Remote, service: Service) -> bool:
    """Have a user's unit started with the machine, not only when the user logs in; whether that could be had."""
    return service.system or remote.run(f"{service.opening}loginctl enable-linger").code == 0


def _install(remote: Remote, service: Service, text: str, home: str) -> None:
    script = f"{service.root}mkdir -p {shlex.quote(service.folder(home))} && "
    script += f"printf %s {shlex.quote(text)} | {service.root}tee {service.file(home)} >/dev/null && "
    script += f"{service.systemctl} daemon-reload && {service.systemctl} enable --quiet {service.unit}"
    _run(remote, service, script)


def _restore(
    remote: Remote, service: Service, earlier_text: str | None, home: str, was_active: bool, back: str
) -> None:
    remote.run(f"{service.opening}{service.systemctl} stop {service.unit}")
    remote.run(back, check=True)
    if earlier_text is None:
        script = f"{service.systemctl} disable --quiet {service.unit}; {service.root}rm -f {service.file(home)}; "
        remote.run(f"{service.opening}{script}{service.systemctl} daemon-reload")
        return
    _install(remote, service, earlier_text, home)
    if was_active:
        _run(remote, service, f"{service.systemctl} restart {service.unit}")


def _watch(remote: Remote, service: Service, seconds: int) -> None:
    """See it live for some seconds: failing, and being started again, are no life; coming to a good end is."""
    for second in range(seconds + 1):
        if second:
            time.sleep(1)
        state = _state(remote, service)
        active, result = state.get("ActiveState"), state.get("Result")
        if active == "inactive" and result == "success":
            return
        if active != "active" or state.get("NRestarts", "0") != "0":
            printed = remote.run(f"{service.opening}{service.journal} -n 20 -o cat --no-pager").out.splitlines()
            # What edgetta itself says is worth more than what systemd says of it.
            said = [line for line in printed if line.startswith("edgetta: ")] or [
                line for line in printed if line.strip()
            ]
            why = said[-1].removeprefix("edgetta: ").removeprefix("error: ") if said else f"{active} ({result})"
            raise RemoteError(f"{service.unit} does not live on {remote.address.target}: {why}")


def _state(remote: Remote, service: Service) -> dict[str, str]:
    script = f"{service.systemctl} show -p ActiveState -p Result -p NRestarts {service.unit}"
    answer = remote.run(f"{service.opening}{script}")
    return dict(line.partition("=")[::2] for line in answer.out.splitlines())


def _run(remote: Remote, service: Service, script: str) -> None:
    answer = remote.run(f"{service.opening}{script}")
    if answer.code != 0:
        words = answer.complaint
        if service.system and "sudo" in words:
            words += "; deploy as root, or without --system, as a service of the user"
        elif "Failed to connect to bus" in words:
            words += "; log in there once, or `sudo loginctl enable-linger`, or deploy with --system"
        raise RemoteError(f"{remote.address.target}: {words}")


def unit_text(service: Service, command: Sequence[str], user: str, folder: str) -> str:
    """The unit's file.

    Args:
        service: its name and kind.
        command: the program and its arguments; the program with its whole path.
        user: who runs it, for a unit of the whole machine.
        folder: its working folder.
    """
    return TEMPLATE.read_text().format(
        description=f"edgetta: {service.name}",
        command=" ".join(_quoted(word) for word in command),
        folder=folder.replace("%", "%%"),
        user=f"User={user}\n" if service.system else "",
        wanted_by="multi-user.target" if service.system else "default.target",
    )


def _quoted(word: str) -> str:
    """A word of ExecStart: `%` and `$` mean nothing, spaces and quotes stay."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return word if word and not set(word) & set(" \t'\";") else f'"{word}"'
