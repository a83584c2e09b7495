"""`edgetta deploy` as a user sees it: a real bundle over a real ssh, to a device that plays its part or is real."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetta.bundle import read_bundle
from edgetta.cli import main
from tests.devices.ssh_server import Device, ssh_device
from tests.small_bundle import copy_of_it, names, whole_bundle, zipped


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    with ssh_device(tmp_path) as device:
        yield device


def arguments(device: Device, *more: str, bundle: Path | None = None) -> list[str]:
    address = device.address
    words = ["deploy", str(bundle or whole_bundle()), address.target, "--port", str(address.port)]
    words += ["--identity", str(address.identity), "--watch", "0"]
    for option in address.options:
        words += ["--ssh-option", option]
    return [*words, *more]


def refused(capsys: pytest.CaptureFixture[str], words: list[str], code: int) -> str:
    """The one line with which the verb fails."""
    assert main(words) == code
    lines = capsys.readouterr().err.strip().splitlines()
    error = "\n".join(line for line in lines if not line.endswith("so far"))  # progress of what takes long
    assert error.startswith("edgetta: error: ") and "\n" not in error
    return error


def test_service(device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    device.doctor({"name": "memory", "status": "warning", "value": "0.5 GiB", "remedy": "close [other] programs"})
    assert main(arguments(device, "--source", "camera:0", "--", "-o", "rows.csv", "--overwrite")) == 0
    (release,) = device.releases()
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "edgetta 0.1.0" in lines[0] and "GiB free" in lines[0]
    assert lines[1] == "warning: memory: 0.5 GiB -> close [other] programs"
    assert lines[-1] == (
        f"deployed {release}; edgetta.service runs. Watch it: "
        f"ssh {device.address.target} journalctl --user -u edgetta.service -f"
    )
    assert "camera:0 --state" in (device.units / "edgetta.service").read_text()
    assert "--quiet -o rows.csv --overwrite\n" in (device.units / "edgetta.service").read_text()
    bundle = read_bundle(device.folder / "current" / "bundle")
    assert bundle.identity == read_bundle(whole_bundle()).identity, "whole, and verified file by file"


def test_a_service_that_ends_with_the_session(device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    (device.root / "linger.code").write_text("1")
    assert main(arguments(device, "--source", "camera:0", "--name", "doors")) == 0
    assert "warning: doors.service starts only when" in capsys.readouterr().out
    assert (device.units / "doors.service").is_file()


def test_zips_and_strays(device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What arrives is the bundle and no more."""
    archive = zipped(whole_bundle(), tmp_path / "small.zip", more={"notes.txt": b"mine"})
    assert main(arguments(device, "--no-service", bundle=archive)) == 0
    assert names(device.folder / "current" / "bundle") == names(whole_bundle())
    assert "run it there: " in capsys.readouterr().out


def test_dry_run(device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(device, "--source", "camera:0", "--dry-run")) == 0
    out = capsys.readouterr().out
    assert f"to {device.folder}/releases" in out and "from nothing to the new release" in out
    assert "ExecStart=" in out and out.strip().endswith("dry run: nothing was changed")
    assert not device.folder.exists() and not device.units.exists()
    assert [call.split()[0] for call in device.calls("edgetta")] == ["--version", "doctor"]
    assert device.calls("systemctl") == []


def test_failures_have_one_line_each(device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device.program("df", "#!/bin/sh\necho Filesystem\necho /dev/mmcblk0p1 100 100 0 100% /\n")
    assert "is too full" in refused(capsys, arguments(device, "--no-service"), 1)
    device.without("edgetta")
    assert "has no edgetta" in refused(capsys, arguments(device, "--no-service"), 1)
    other = ("--identity", str(device.root / "host_key"))
    assert "refuses the key" in refused(capsys, arguments(device, "--no-service", *other), 1)
    assert "does not take ssh" in refused(capsys, arguments(device, "--no-service", "--port", "1"), 1)
    damaged = copy_of_it(tmp_path / "damaged")
    (damaged / "reference.npz").write_bytes(b"x")
    assert "reference.npz" in refused(capsys, arguments(device, "--no-service", bundle=damaged), 4)
    assert not device.folder.exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("me@pi",), "a service needs frames: add --source"),
        (("me@pi", "--no-service", "--source", "camera:0"), "leave out --no-service"),
        (("me@pi", "--no-service", "--", "--batch", "3"), "leave out --no-service"),
        (("me@pi", "--source", "camera:0", "--name", "a b"), "is no name of a service"),
        (("me@pi", "--source", "camera:0", "--name", "-Hevil"), "is no name of a service"),
        (("me@pi", "--source", "camera:0\nUser=root"), "holds a control character"),
        (("me@pi", "--source", "camera:0", "--", "--batch", "1\n"), "holds a control character"),
        (("me@pi", "--source", "camera:0", "--run-as", "x"), "add --system"),
        (("me@pi", "--source", "camera:0", "--system", "--run-as", "root"), "name an ordinary user"),
        (("me@pi", "--source", "@nowhere"), "cannot read the source from nowhere"),
        (("me@pi", "--source", "camera:0", "--", "-orows.csv"), "add --append or --overwrite behind -o"),
        (("me@", "--no-service"), "is no host"),
        (("-oProxyCommand=sh", "--no-service"), "No such option"),
        (("me@pi", "--no-service", "--path", "~/"), "choose a folder of its own"),
        (("me@pi", "--no-service", "--identity", "nowhere"), "there is no such file"),
    ],
)
def test_usage(words: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is asked of a device."""
    assert line in refused(capsys, ["deploy", "bundle", *words], 2)


def test_with_the_real_edgetta(device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    """This very program at the other end: its doctor examines, its self-test passes on every engine that is here."""
    root = Path(__file__).parents[2]
    command = shlex.join([sys.executable, "-m", "edgetta"])
    device.program("edgetta", f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(root))} exec {command} "$@"\n')
    assert main(arguments(device, "--no-service")) == 0
    assert device.current() is not None
    # Damaged on the way: the edgetta there notices before anything is switched.
    before = device.current()
    tar = device.root / "bin" / "tar"
    real = tar.resolve()
    device.program("tar", f'#!/bin/sh\n{real} "$@" && echo x >> "$4/reference.npz"\n')
    line = refused(capsys, arguments(device, "--no-service"), 1)
    assert "the bundle does not work on" in line and "reference.npz" in line
    assert device.current() == before and len(device.releases()) == 1
