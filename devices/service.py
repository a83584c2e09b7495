"""The systemd unit that runs a bundle on a device: its text, and its start, from which there is a way back."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetta.devices.remote import Remote, RemoteError
from edgetta.errors import EdgettaError, UsageError
from edgetta.printable import printable

TEMPLATE = Path(__file__).parent / "edgetta.service"

OWN_USER = "edgetta"
"""Who runs a service of the machine where root logs in: made there if need be, with no rights and no shell."""

START_SECONDS = 900
"""How long a service may take until frames come: engines may be built first. Its unit says the same."""

MEMORY = "75%"
"""Of the machine's memory, at most, where no budget says better."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@:-]{0,199}")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")

SANDBOX = """\
ProtectSystem=strict
ReadWritePaths={data} {releases}
ProtectHome=read-only
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectHostname=yes
RestrictNamespaces=yes
CapabilityBoundingSet=
"""
"""What the manager of the machine can do beyond what a user's own can. Cameras and GPUs stay within reach."""


@dataclass(frozen=True)
class Service:
    """A unit of systemd.

    Attributes:
        name: without ".service".
        system: for the whole machine (needs root, through sudo), else of the user.
        run_as: of one for the whole machine: who runs it; "" is who logs in, but `OWN_USER` where that is root.

    Raises `UsageError` for names that are none, such as those that systemctl would take for an option.
    """

    name: str
    system: bool = False
    run_as: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"--name {self.name!r} is no name of a service: begin with a letter or a digit, and use letters, "
                "digits, '-', '_' and '.'"
            )
        if self.run_as and (not _USER.fullmatch(self.run_as) or self.run_as == "root"):
            raise UsageError(f"--run-as {self.run_as!r}: name an ordinary user of the device")

    def user(self, login: str) -> str:
        """Who runs it, where `login` logs in."""
        if not self.system:
            return login
        return self.run_as or (OWN_USER if login == "root" else login)

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


def start(
    remote: Remote, service: Service, text: str, home: str, switch: Switch, watch_seconds: int, owner: str = ""
) -> None:
    """Stop the service, switch to a release, start the service with a new unit, and watch that it lives.

    Whatever fails in between, and on Ctrl-C: the link, the unit and the running of before are restored.

    Args:
        remote: the connection.
        service: its name and kind.
        text: the new unit's file.
        home: the user's home there.
        switch: how the release is switched to, and back.
        watch_seconds: how long the service is watched.
        owner: shell lines, run with the right to, that give the service's user what is the service's.

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
        if owner:
            _run(remote, service, owner)
        _install(remote, service, text, home)
        # It says when frames are coming, which may take minutes: that is watched, not waited for.
        _run(remote, service, f"{service.systemctl} --no-block restart {service.unit}")
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
        _run(remote, service, f"{service.systemctl} --no-block restart {service.unit}")


def _watch(remote: Remote, service: Service, seconds: int) -> None:
    """See it start, and live for some seconds then: failing, and being started again, are no life; a good end is."""
    starting = lived = 0
    while True:
        state = _state(remote, service)
        active, result = state.get("ActiveState"), state.get("Result")
        if active == "inactive" and result == "success":
            return
        fresh = result == "success" and state.get("NRestarts", "0") == "0"
        if active == "activating" and fresh and starting < START_SECONDS:
            starting += 1
            time.sleep(1)
            continue
        if active != "active" or state.get("NRestarts", "0") != "0":
            printed = remote.run(f"{service.opening}{service.journal} -n 20 -o cat --no-pager").out.splitlines()
            # What edgetta itself says is worth more than what systemd says of it.
            said = [line for line in printed if line.startswith("edgetta: ")] or [
                line for line in printed if line.strip()
            ]
            why = said[-1].removeprefix("edgetta: ").removeprefix("error: ") if said else f"{active} ({result})"
            raise RemoteError(f"{service.unit} does not live on {remote.address.target}: {why}")
        if lived == seconds:
            return
        lived += 1
        time.sleep(1)


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


def unit_text(
    service: Service,
    command: Sequence[str],
    login: str,
    folder: str,
    memory: str = MEMORY,
    groups: Sequence[str] = (),
) -> str:
    """The unit's file.

    Args:
        service: its name and kind.
        command: the program and its arguments; the program with its whole path.
        login: who logs in there.
        folder: where the releases lie, with its whole path; its folder `data` is the working folder.
        memory: the most that it may take: bytes, or a share of the machine's.
        groups: of that machine, which the service's user joins, to reach cameras and GPUs.

    Raises:
        UsageError: a word that would be a line of its own in the file, or a path that is not whole.
    """
    for word in (*command, login, folder, memory, *groups):
        if not word.isprintable():
            raise UsageError(f"{printable(word)!r} holds a control character, which no unit of systemd may")
    if not command[0].startswith("/") or not folder.startswith("/"):
        raise UsageError(f"{printable(command[0])} or {printable(folder)} is no whole path")
    user = service.user(login)
    if service.system and not _USER.fullmatch(user):
        raise UsageError(f"{printable(user)!r} is no name of an ordinary user; name one with --run-as")
    place = folder.replace("%", "%%")
    sandbox = SANDBOX.format(data=_path(f"{folder}/data"), releases=_path(f"{folder}/releases"))
    joins = f"SupplementaryGroups={' '.join(groups)}\n" if groups else ""
    return TEMPLATE.read_text().format(
        description=f"edgetta: {service.name}",
        command=" ".join(_quoted(word) for word in command),
        folder=place,
        memory=memory,
        user=f"User={user}\n{joins}" if service.system else "",
        sandbox=sandbox if service.system else "",
        wanted_by="multi-user.target" if service.system else "default.target",
    )


def _path(path: str) -> str:
    """A path in a list of paths: `%` means nothing, spaces and quotes stay."""
    path = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{path}"' if set(path) & set(" \t'\";") else path


def _quoted(word: str) -> str:
    """A word of ExecStart: `%` and `$` mean nothing, spaces and quotes stay."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return word if word and not set(word) & set(" \t'\";") else f'"{word}"'
