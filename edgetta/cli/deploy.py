"""`edgetta deploy`: a bundle onto a device over ssh, tested and running there, or everything left as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgetta.errors import UsageError

if TYPE_CHECKING:
    from edgetta.cli.progress import Update
    from edgetta.devices.deployment import DeploySettings, Device, Shipment

EXAMPLES = """\b
Examples:
  edgetta deploy bundle/ nano@orin.local --source camera:0
  edgetta deploy bundle/ pi@10.0.0.7 --source rtsp://cam/1 -- --batch 16 --when "every 4"
  edgetta deploy bundle/ root@thor --system --source camera:0 --path /opt/doors --name doors
  edgetta deploy bundle/ nano@orin.local --no-service
  edgetta deploy bundle/ nano@orin.local --source camera:0 --dry-run

Going back by hand: ssh there, `ln -sfn releases/EARLIER PATH/current`, and restart the service.
"""


@click.command(epilog=EXAMPLES)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("target", metavar="[USER@]HOST")
@click.argument("run_options", metavar="[-- RUN OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--path",
    metavar="FOLDER",
    default="edgetta",
    show_default=True,
    help="Folder on the device, in the user's home or absolute.",
)
@click.option("--port", type=click.IntRange(1, 65535), help="Port of ssh, where it is not 22.")
@click.option(
    "--identity",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Private key to log in with; by default those that ssh finds.",
)
@click.option(
    "--ssh-option", "ssh_options", metavar="NAME=VALUE", multiple=True, help="An option of ssh, as after its -o."
)
@click.option(
    "--edgetta",
    "program",
    metavar="PROGRAM",
    help="The edgetta of the device; by default from its PATH, ~/.local/bin, or the .venv in --path.",
)
@click.option(
    "--source",
    metavar="SOURCE",
    help="Where the service takes frames from, as `edgetta run` names it; @FILE where it holds a password.",
)
@click.option(
    "--service/--no-service", default=True, help="Run the bundle as a systemd service (the default), or not."
)
@click.option("--system", is_flag=True, help="A service of the machine, through root or sudo, instead of the user's.")
@click.option(
    "--run-as",
    metavar="USER",
    default="",
    help="With --system: the ordinary user who runs it. Default: who logs in; where that is root, a user edgetta of "
    "its own.",
)
@click.option("--name", default="edgetta", show_default=True, help="Name of the service.")
@click.option(
    "--require-signature",
    metavar="KEY",
    type=click.Path(path_type=Path),
    help="Deploy the bundle only where the owner of this public key signed it; the device checks that at every start.",
)
@click.option("--build/--no-build", default=True, help="Build TensorRT engines there, where there is a TensorRT.")
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), help="Of these engines, as `edgetta build` has it.")
@click.option("--keep", type=click.IntRange(1), default=3, show_default=True, help="Releases that stay on the device.")
@click.option(
    "--watch",
    "watch_seconds",
    metavar="SECONDS",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    help="How long the service must live before the deployment counts as good.",
)
@click.option("--dry-run", is_flag=True, help="Check everything there and show what would be done; change nothing.")
def command(**values: Any) -> None:
    """Bring BUNDLE to a device over ssh, test it there, and run it as a service.

    The device needs sshd and an edgetta. The bundle is copied into a folder of its own and checked there, file by
    file and by its self-test; TensorRT engines are built where there is a TensorRT; then a link is switched in one
    step, and a systemd unit runs `edgetta run` on it. When anything fails, the device runs on with what it had.

    What stands after `--` goes to `edgetta run`. Predictions go to the journal, unless -o is among it. The service
    works in PATH/data. It may not gain rights, and with --system it writes nowhere else; its memory is limited, by
    --budget where that stands after `--`. A source that holds a password lies in a file of its own there.
    """
    from edgetta.bundle import read_bundle
    from edgetta.bundle.manifest import MANIFEST
    from edgetta.cli.verify import verifier
    from edgetta.devices.deployment import Shipment, deploy, examine, look_at
    from edgetta.devices.remote import Remote
    from edgetta.signature import SIGNATURE

    settings, address = _settings(values)
    # A damaged one, or one of somebody else, never leaves this machine.
    bundle = read_bundle(values["bundle"], verifier(values["require_signature"]))
    signature = () if bundle.files.signatures is None else (SIGNATURE,)
    names = (MANIFEST, *signature, *bundle.files.manifest.files)
    shipment = Shipment(tuple((name, bundle.files.folder / name) for name in names), bundle.identity)
    with Remote(address) as remote:
        device = look_at(remote, settings, shipment.bytes)
        _say(f"{address.target}: {device.machine}, {device.version}, {device.free_bytes / 2**30:.1f} GiB free")
        report = examine(remote, device)
        _show_warnings(report)
        if values["dry_run"]:
            _show_plan(settings, device, shipment)
            return
        with _copying(shipment) as update:
            release = deploy(remote, device, report, shipment, settings, _say, update)
        _show_end(remote, settings, device, release)


def _settings(values: dict[str, Any]) -> tuple[DeploySettings, Any]:
    """The options as settings, checked before anything is asked of the device."""
    from edgetta.devices.deployment import DeploySettings, writes_file
    from edgetta.devices.remote import Address
    from edgetta.devices.service import Service
    from edgetta.printable import printable
    from edgetta.sources.secret import read_source

    service = Service(values["name"], values["system"], values["run_as"])
    source = None if values["source"] is None else read_source(values["source"])
    for word in (source or "", values["path"], values["program"] or "", *values["run_options"]):
        if not word.isprintable():
            raise UsageError(f"{printable(word)!r} holds a control character: it cannot be part of a service")
    if values["run_as"] and not values["system"]:
        raise UsageError("--run-as is for a service of the machine: add --system")
    if values["service"] and values["source"] is None:
        raise UsageError("a service needs frames: add --source (camera:0, rtsp://..., a folder), or --no-service")
    if not values["service"] and (values["source"] is not None or values["run_options"] or values["system"]):
        raise UsageError("--source, --system and options of `edgetta run` are for a service: leave out --no-service")
    going_on = {"--append", "--resume", "--overwrite"}.intersection(values["run_options"])
    if writes_file(values["run_options"]) and not going_on:
        raise UsageError(
            "a service is started again and again, and `edgetta run` keeps an earlier file of predictions: "
            "add --append or --overwrite behind -o, or leave both out and read the journal"
        )
    if values["target"].startswith("-") or not values["target"].rpartition("@")[2]:
        raise UsageError(f"{values['target']!r} is no host: write user@host, or a name of your ssh configuration")
    if not values["path"].strip("/~ "):
        raise UsageError(f"--path {values['path']!r}: choose a folder of its own, such as edgetta or /opt/edgetta")
    identity: Path | None = values["identity"]
    if identity is not None and not identity.is_file():
        raise UsageError(f"--identity {identity}: there is no such file")
    address = Address(values["target"], values["port"], identity, tuple(values["ssh_options"]))
    settings = DeploySettings(
        path=values["path"].rstrip("/"),
        program=values["program"],
        service=service if values["service"] else None,
        source=source,
        run_options=tuple(values["run_options"]),
        build=values["build"],
        precision=values["precision"],
        keep=values["keep"],
        watch_seconds=values["watch_seconds"],
        budget_bytes=_budget(values["run_options"]),
        signer=values["require_signature"],
        secret=(values["source"] or "").startswith("@"),
    )
    return settings, address


def _budget(run_options: tuple[str, ...]) -> int | None:
    """The budget among the options of `edgetta run`; None where there is none."""
    from edgetta.memory.sizes import parse_size

    for at, option in enumerate(run_options):
        name, equals, value = option.partition("=")
        if name == "--budget" and (equals or at + 1 < len(run_options)):
            return parse_size(value if equals else run_options[at + 1])
    return None


@contextmanager
def _copying(shipment: Shipment) -> Iterator[Any]:
    from edgetta.cli.progress import progress_bar

    total = shipment.bytes
    with progress_bar("copying", total // 1024, unit="KiB") as update:

        def tell(sent: int, update: Update = update) -> None:
            update(sent // 1024)

        yield tell


def _say(line: str) -> None:
    from edgetta.cli.tables import print_line

    print_line(line)


def _show_warnings(report: dict[str, Any]) -> None:
    from edgetta.cli.tables import print_line

    for check in report["checks"]:
        if check["status"] == "warning":
            print_line(f"warning: {check['name']}: {check['value']} -> {check['remedy']}", style="yellow")


def _show_plan(settings: DeploySettings, device: Device, shipment: Shipment) -> None:
    from edgetta.devices.deployment import unit

    _say(f"would copy {len(shipment.files)} files, {shipment.bytes / 2**20:,.1f} MiB, to {device.folder}/releases")
    _say("would check every file and run the bundle's self-test there")
    _say(f"would switch {device.folder}/current from {device.current or 'nothing'} to the new release")
    if settings.service is not None:
        _say(f"would write {settings.service.folder(device.home)}/{settings.service.unit} and start it:")
        click.echo("\n" + unit(settings, device))
    _say("dry run: nothing was changed")


def _show_end(remote: Any, settings: DeploySettings, device: Device, release: str) -> None:
    from edgetta.cli.tables import print_line
    from edgetta.devices.service import linger

    if settings.service is None:
        _say(f"deployed {release}; run it there: {device.program} run {device.folder}/current/bundle SOURCE")
        return
    if not linger(remote, settings.service):
        remedy = f"`sudo loginctl enable-linger {device.user}` there"
        print_line(
            f"warning: {settings.service.unit} starts only when {device.user} logs in; {remedy}", style="yellow"
        )
    target = remote.address.target
    journal = settings.service.journal.removeprefix(settings.service.root)
    _say(f"deployed {release}; {settings.service.unit} runs. Watch it: ssh {target} {journal} -f")
