"""A bundle onto a device: copy, check and test it there, switch to it in one step, run it, or leave all as it was.

On the device:

    PATH/releases/20261127-101500.042-1a2b3c4d/bundle/      one folder per deployment; what it learns lies beside it
    PATH/current -> releases/20261127-101500.042-1a2b3c4d   what the service runs; switched by renaming a link
"""

from __future__ import annotations

import datetime
import json
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgetta.devices.remote import Remote, RemoteError
from edgetta.devices.service import MEMORY, OWN_USER, Service, Switch, start, unit_text
from edgetta.errors import EdgettaError
from edgetta.sources.secret import has_secret

SOURCE = "source"
"""A file beside the bundle, which only the service's user reads: an address with a password."""

SIGNER = "signer.pub"
"""A file beside the bundle: the key whose signature is required at every start."""

ALLOWANCE = 1.25
"""Of the memory that a loaded bundle takes: the budget is above it, and no two starts take the same."""

PROGRAMS = ("edgetta", "$folder/.venv/bin/edgetta", "$HOME/.local/bin/edgetta", "$HOME/.venv/bin/edgetta")
"""Where edgetta is looked for on a device: sessions over ssh often have a shorter PATH than those at a screen."""

SPARE_BYTES = 64 * 2**20
"""What must remain free on the device beside the bundle: its state, and what the system needs."""


@dataclass(frozen=True)
class DeploySettings:
    """What is deployed how.

    Attributes:
        path: the folder on the device; relative to the user's home.
        program: the edgetta of the device; None looks in the usual places.
        service: the systemd unit; None installs none.
        source: what `edgetta run` takes its frames from; needed with a service.
        run_options: more options of `edgetta run`.
        build: build TensorRT engines there, where there is a TensorRT.
        precision: of these engines, "fp32" or "fp16"; None for the default of `edgetta build`.
        keep: releases that stay on the device, the current one included.
        watch_seconds: how long the new service must live before the deployment counts as good.
        secret: the source is not for everybody's eyes, whatever it looks like.
        signer: the file of a public key; the service starts only with a bundle that its owner signed.
        budget_bytes: of the plan that the service keeps, where it has one: its memory is limited accordingly.
    """

    path: str = "edgetta"
    program: str | None = None
    service: Service | None = None
    source: str | None = None
    run_options: tuple[str, ...] = ()
    build: bool = True
    precision: str | None = None
    keep: int = 3
    watch_seconds: int = 20
    budget_bytes: int | None = None
    signer: Path | None = None
    secret: bool = False

    @property
    def hides_source(self) -> bool:
        """Whether the source goes into a file that only the service's user reads."""
        return self.source is not None and (self.secret or has_secret(self.source))


@dataclass(frozen=True)
class Device:
    """What was found at the other end.

    Attributes:
        user, home, machine: of the session there.
        folder: the whole path of `DeploySettings.path`.
        program: the whole path of edgetta there.
        version: what it says of itself.
        free_bytes: on the disk of the folder.
        current: the release that `current` points to; "" where there is none.
        systemd: whether there is a systemctl.
        groups: of those whose members reach cameras and GPUs, the ones that it has.
        resident_bytes: what a process takes that has loaded the bundle and tested it; 0 where it did not say.
    """

    user: str
    home: str
    machine: str
    folder: str
    program: str
    version: str
    free_bytes: int
    current: str
    systemd: bool
    groups: tuple[str, ...] = ()
    resident_bytes: int = 0


@dataclass(frozen=True)
class Shipment:
    """The bundle that is sent: its files, as (name in the bundle, file here), and the SHA-256 that names it."""

    files: tuple[tuple[str, Path], ...]
    identity: str

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for _, path in self.files)


Say = Callable[[str], object]
"""Is told what is being done, a line at a time."""


def look_at(remote: Remote, settings: DeploySettings, needed_bytes: int) -> Device:
    """Find out what deploying needs to know. Changes nothing.

    Raises:
        RemoteError: no edgetta there, no room for the bundle, a folder that cannot be written, no systemd.
    """
    target = remote.address.target
    answer = remote.run(_probe(settings), check=True)
    found = dict(line.partition("=")[::2] for line in answer.out.splitlines())
    device = Device(
        user=found.get("user", ""),
        home=found.get("home", ""),
        machine=found.get("machine", ""),
        folder=found.get("folder", ""),
        program=found.get("program", ""),
        version=found.get("version", ""),
        free_bytes=int(found.get("free_kib") or 0) * 1024,
        current=found.get("current", "").removeprefix("releases/"),
        systemd=found.get("systemd") == "1",
        groups=tuple(group for group in ("video", "render") if group in found.get("groups", "").split()),
    )
    if not device.program:
        where = settings.program or "on the PATH, in ~/.local/bin or in a .venv"
        raise RemoteError(
            f"{target} has no edgetta ({where}): copy its wheel there, then "
            f"`python3 -m venv --system-site-packages {settings.path}/.venv && "
            f"{settings.path}/.venv/bin/pip install edgetta-*.whl`, or say where it is with --edgetta"
        )
    if "current_is_no_link" in found:
        raise RemoteError(f"{device.folder}/current on {target} is no link: move it away, or choose another --path")
    if found.get("writable") != "1":
        raise RemoteError(f"{device.user} may not write {device.folder} on {target}: choose another --path")
    if device.free_bytes < needed_bytes + SPARE_BYTES:
        raise RemoteError(
            f"the disk of {target} is too full: {device.folder} has {_mib(device.free_bytes)} left and "
            f"{_mib(needed_bytes + SPARE_BYTES)} are needed; free some space there, or choose another --path"
        )
    if settings.service is not None and not device.systemd:
        raise RemoteError(f"{target} has no systemd to run a service: deploy with --no-service, and start it yourself")
    if settings.service is not None and settings.service.user(device.user) != device.user:
        _check_reachable(settings.service, device)
    return device


def _check_reachable(service: Service, device: Device) -> None:
    """A user of its own cannot look into the home of the one who logs in."""
    for what, path, option in (("the folder", device.folder, "--path"), ("edgetta", device.program, "--edgetta")):
        if path.startswith(f"{device.home}/"):
            raise RemoteError(
                f"the service runs as {service.user(device.user)}, who does not reach {what} {path} in the home of "
                f"{device.user}: choose one such as /opt/edgetta with {option}, or another user with --run-as"
            )


def examine(remote: Remote, device: Device) -> dict[str, Any]:
    """The report of `edgetta doctor` there, as JSON values.

    Raises:
        RemoteError: edgetta cannot run there; the message has the doctor's remedies.
    """
    target = remote.address.target
    answer = remote.run(shlex.join([device.program, "doctor", "--json"]))
    try:
        # A login shell may have something to say before.
        report: dict[str, Any] = json.loads(answer.out[answer.out.find("{") :])
        problems = [check for check in report["checks"] if check["status"] == "problem"]
    except (ValueError, KeyError, TypeError) as error:
        raise RemoteError(
            f"`{device.program} doctor` fails on {target}: {answer.complaint}; install edgetta there again"
        ) from error
    if problems:
        what = "; ".join(f"{check['name']}: {check['value']} -> {check['remedy']}" for check in problems)
        raise RemoteError(f"edgetta cannot run on {target}: {what}")
    return report


def run_command(settings: DeploySettings, device: Device) -> list[str]:
    """The command that the service runs."""
    current = f"{device.folder}/current"
    assert settings.source is not None
    source = f"@{current}/{SOURCE}" if settings.hides_source else settings.source
    command = [device.program, "run", f"{current}/bundle", source]
    command += ["--state", f"{current}/state.safetensors", "--quiet"]
    if settings.signer is not None:
        command += ["--require-signature", f"{current}/{SIGNER}"]
    if not writes_file(settings.run_options):
        command += ["-o", "-"]  # into the journal
    return [*command, *settings.run_options]


def writes_file(run_options: tuple[str, ...]) -> bool:
    """Whether options of `edgetta run` say where predictions go."""
    return any(option.startswith("-o") or option.split("=")[0] == "--output" for option in run_options)


def unit(settings: DeploySettings, device: Device) -> str:
    """The text of the systemd unit."""
    assert settings.service is not None
    memory = MEMORY
    if settings.budget_bytes is not None and device.resident_bytes:
        memory = str(int(ALLOWANCE * device.resident_bytes) + settings.budget_bytes + SPARE_BYTES)
    return unit_text(
        settings.service, run_command(settings, device), device.user, device.folder, memory, device.groups
    )


def deploy(
    remote: Remote,
    device: Device,
    report: dict[str, Any],
    shipment: Shipment,
    settings: DeploySettings,
    say: Say,
    progress: Callable[[int], object] | None = None,
) -> str:
    """Bring the bundle onto the device and switch to it.

    Whatever fails, and on Ctrl-C, the device is left as it was: what was copied is removed, and the release and the
    service from before run on.

    Returns:
        The name of the release.

    Raises:
        RemoteError: one line with what failed and where things are now.
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    release = f"{now:%Y%m%d-%H%M%S}.{now.microsecond // 1000:03}-{shipment.identity[:8]}"
    partial = f"{device.folder}/releases/.{release}.partial"
    try:
        say(f"copying {len(shipment.files)} files, {_mib(shipment.bytes)}")
        remote.run(f"mkdir -p {shlex.quote(partial)}/bundle", check=True)
        remote.send(shipment.files, f"{partial}/bundle", progress)
        say("checking every file, and testing the bundle there")
        device = replace(device, resident_bytes=_verify(remote, device, f"{partial}/bundle"))
        if settings.signer is not None:
            remote.send([(SIGNER, settings.signer)], partial)
        if settings.source is not None and settings.hides_source:
            file = shlex.quote(f"{partial}/{SOURCE}")
            remote.run(f"umask 077 && printf '%s\\n' {shlex.quote(settings.source)} > {file}", check=True)
        if settings.build:
            _build(remote, device, report, f"{partial}/bundle", settings.precision, say)
        finished = f"{device.folder}/releases/{release}"
        remote.run(f"mv -T {shlex.quote(partial)} {shlex.quote(finished)}", check=True)
    except BaseException:
        with suppress(EdgettaError):
            remote.run(f"rm -rf {shlex.quote(partial)}")
        raise
    say(f"switching from {device.current or 'nothing'} to {release}")
    if settings.service is None:
        remote.run(switch_link(device.folder, f"releases/{release}"), check=True)
    else:
        switch = Switch(
            f"mkdir -p {shlex.quote(device.folder)}/data\n"
            f"{_same_state(device, release)}{switch_link(device.folder, f'releases/{release}')}",
            switch_link(device.folder, f"releases/{device.current}")
            if device.current
            else f"rm -f {shlex.quote(device.folder)}/current",
        )
        text = unit(settings, device)
        try:
            owner = _ownership(settings.service, device, finished)
            start(remote, settings.service, text, device.home, switch, settings.watch_seconds, owner)
        except BaseException:
            with suppress(EdgettaError):
                remote.run(f"rm -rf {shlex.quote(finished)}")
            raise
    _remove_old(remote, device, release, settings.keep)
    return release


def switch_link(folder: str, release: str) -> str:
    """A shell line that makes `current` point to a release; at every moment it points to the old one or to the new."""
    current = shlex.quote(f"{folder}/current")
    new = shlex.quote(f"{folder}/.current.new")
    return f"ln -sfn {shlex.quote(release)} {new} && mv -fT {new} {current}"


def _same_state(device: Device, release: str) -> str:
    """A shell line that takes along what was learnt, where the same bundle was the current one."""
    if device.current.rpartition("-")[2] != release.rpartition("-")[2]:
        return ""
    earlier = shlex.quote(f"{device.folder}/releases/{device.current}")
    new = shlex.quote(f"{device.folder}/releases/{release}")
    names = " ".join(f"state.safetensors{suffix}" for suffix in ("", ".1", ".2"))
    return f"for name in {names}; do [ ! -f {earlier}/$name ] || cp {earlier}/$name {new}/ || exit 1; done\n"


def _ownership(service: Service, device: Device, finished: str) -> str:
    """Shell lines that make the service's user, and give it the folders that it writes; the bundle stays as it is."""
    user = service.user(device.user)
    if user == device.user:
        return ""
    made = ""
    if user == OWN_USER:
        made = f"id -u {user} >/dev/null 2>&1 || $root useradd --system --no-create-home --shell /bin/false {user}\n"
    release, data = shlex.quote(finished), shlex.quote(f"{device.folder}/data")
    learnt = f"{release}/state.safetensors* {release}/{SOURCE}"
    folder = shlex.quote(device.folder)
    return (
        f"{made}$root chmod go+rx {folder} {folder}/releases {release} || exit 1\n"
        f"$root chmod -R go+rX {release}/bundle || exit 1\n"
        f"$root chown {user} {release} {data} || exit 1\n"
        f'for file in {learnt}; do [ ! -f "$file" ] || $root chown {user} "$file" || exit 1; done\n'
    )


def _probe(settings: DeploySettings) -> str:
    """A script that prints what there is, as name=value lines."""
    programs = [shlex.quote(settings.program)] if settings.program else [f'"{program}"' for program in PROGRAMS]
    return f"""\
folder={shlex.quote(settings.path.removeprefix("~/"))}
case "$folder" in /*) ;; *) folder="$HOME/$folder" ;; esac
echo "home=$HOME"
echo "user=$(id -un)"
echo "machine=$(uname -m)"
echo "folder=$folder"
for program in {" ".join(programs)}; do
    if found=$(command -v "$program"); then
        case "$found" in /*) ;; *) found="$PWD/$found" ;; esac
        echo "program=$found"
        echo "version=$("$found" --version 2>/dev/null | tail -n 1)"
        break
    fi
done
there=$folder
while [ ! -d "$there" ]; do there=$(dirname "$there"); done
[ -w "$there" ] && echo writable=1
echo "free_kib=$(df -Pk "$there" | tail -n 1 | awk '{{print $4}}')"
if [ -L "$folder/current" ]; then echo "current=$(readlink "$folder/current")"
elif [ -e "$folder/current" ]; then echo current_is_no_link=1; fi
command -v systemctl >/dev/null && echo systemd=1
groups=
for group in video render; do grep -q "^$group:" /etc/group 2>/dev/null && groups="$groups $group"; done
echo "groups=$groups"
exit 0
"""


def _verify(remote: Remote, device: Device, bundle: str) -> int:
    """Test the bundle there. Returns the memory that this took, 0 where it is not told."""
    answer = remote.run(shlex.join([device.program, "inspect", "--test", "--json", bundle]))
    if answer.code != 0:
        words = answer.complaint.removeprefix("edgetta: ").removeprefix("error: ")
        raise RemoteError(f"the bundle does not work on {remote.address.target}: {words}")
    with suppress(ValueError, TypeError, KeyError):
        return max(0, int(json.loads(answer.out[answer.out.find("{") :])["peak_resident_bytes"]))
    return 0


def _build(
    remote: Remote, device: Device, report: dict[str, Any], bundle: str, precision: str | None, say: Say
) -> None:
    """Build engines, where the doctor found a TensorRT and the edgetta there can build them. They are kept in the
    user's cache folder under what they depend on, so that the same bundle finds them under any path."""
    checks = {check["name"]: check for check in report["checks"]}
    if checks.get("tensorrt", {}).get("facts", {}).get("package") != "tensorrt":
        return
    if remote.run(f"{shlex.join([device.program, 'build', '--help'])} >/dev/null 2>&1").code != 0:
        say("the edgetta there cannot build TensorRT engines: it runs on its other engines")
        return
    say("building TensorRT engines there, which takes minutes")
    options = [] if precision is None else ["--precision", precision]
    answer = remote.run(shlex.join([device.program, "build", bundle, "--quiet", *options]))
    if answer.code != 0:
        words = answer.complaint.removeprefix("edgetta: ").removeprefix("error: ")
        raise RemoteError(f"engines cannot be built on {remote.address.target}: {words}; --no-build does without")


def _remove_old(remote: Remote, device: Device, release: str, keep: int) -> None:
    """Remove all but the newest releases. Those that cannot be removed do no harm."""
    releases = f"{shlex.quote(device.folder)}/releases"
    others = f"ls -1 {releases} | grep -vxF {shlex.quote(release)} | sort -r | tail -n +{max(keep, 1)}"
    with suppress(RemoteError):
        # What a deployment that was killed began, half a day ago or more, goes, too.
        remote.run(f"find {releases} -maxdepth 1 -name '*.partial' -mmin +720 -exec rm -rf '{{}}' +")
        remote.run(f'{others} | while read -r name; do rm -rf {releases}/"$name"; done')


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
