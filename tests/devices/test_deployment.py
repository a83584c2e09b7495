"""Deploying over a real ssh: releases, the switch, the service; whatever fails leaves the device as it was."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgetta.devices.deployment import (
    DeploySettings,
    Shipment,
    _ownership,
    deploy,
    examine,
    look_at,
    run_command,
    unit,
)
from edgetta.devices.deployment import Device as FoundDevice
from edgetta.devices.remote import Remote, RemoteError
from edgetta.devices.service import Service, linger
from edgetta.errors import UsageError
from tests.devices.ssh_server import Device, ssh_device

SERVICE = DeploySettings(service=Service("edgetta"), source="camera:0", watch_seconds=0)
PLAIN = DeploySettings()
FAILED = "ActiveState=failed\nResult=exit-code\nNRestarts=0\n"
RESTARTING = "ActiveState=activating\nResult=exit-code\nNRestarts=1\n"


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    with ssh_device(tmp_path) as device:
        yield device


@pytest.fixture
def shipment(tmp_path: Path) -> Shipment:
    return make_shipment(tmp_path / "bundle", "a" * 64)


def make_shipment(folder: Path, identity: str) -> Shipment:
    (folder / "segments").mkdir(parents=True)
    (folder / "manifest.json").write_text(identity)
    (folder / "segments" / "weights.bin").write_bytes(b"w" * 5000)
    return Shipment(tuple((name, folder / name) for name in ("manifest.json", "segments/weights.bin")), identity)


def run(device: Device, shipment: Shipment, settings: DeploySettings) -> tuple[str, list[str]]:
    """Deploy as the verb does; the release and what was said."""
    said: list[str] = []
    with Remote(device.address) as remote:
        found = look_at(remote, settings, shipment.bytes)
        release = deploy(remote, found, examine(remote, found), shipment, settings, said.append)
    return release, said


def snapshot(device: Device) -> tuple[Any, ...]:
    """All that a deployment must leave alone when it fails."""
    service = device.units / "edgetta.service"
    text = service.read_text() if service.exists() else None
    return device.releases(), device.current(), text, (device.root / "service").read_text()


def test_what_is_found(device: Device, shipment: Shipment) -> None:
    with Remote(device.address) as remote:
        found = look_at(remote, SERVICE, shipment.bytes)
    assert found.folder == str(device.folder) and found.home == str(device.home)
    assert found.program == str(device.root / "bin" / "edgetta") and found.version == "edgetta 0.1.0"
    assert found.free_bytes > 0 and found.current == "" and found.systemd
    assert device.releases() == [], "looking changes nothing"


def test_first_deployment_without_a_service(device: Device, shipment: Shipment) -> None:
    release, said = run(device, shipment, PLAIN)
    assert release.endswith("-aaaaaaaa") and device.releases() == [release]
    assert device.current() == f"releases/{release}"
    bundle = device.folder / "current" / "bundle"
    assert (bundle / "segments" / "weights.bin").read_bytes() == b"w" * 5000
    assert (bundle / "manifest.json").read_text() == "a" * 64
    assert device.calls("systemctl") == []
    tested = next(call for call in device.calls("edgetta") if call.startswith("inspect"))
    assert tested.startswith("inspect --test --json ") and tested.endswith(".partial/bundle"), (
        "tested before it is switched to"
    )
    assert said[0] == "copying 2 files, 0.0 MiB" and said[-1] == f"switching from nothing to {release}"


def test_a_service(device: Device, shipment: Shipment) -> None:
    release, _ = run(device, shipment, replace(SERVICE, run_options=("--batch", "16", "--label", "a b")))
    text = (device.units / "edgetta.service").read_text()
    line = next(line for line in text.splitlines() if line.startswith("ExecStart="))
    program, current = device.root / "bin" / "edgetta", device.folder / "current"
    assert line == (
        f"ExecStart={program} run {current}/bundle camera:0 --state {current}/state.safetensors "
        '--quiet -o - --batch 16 --label "a b"'
    )
    assert "WantedBy=default.target" in text and "User=" not in text
    assert device.calls("systemctl")[-4:-1] == [
        "--user daemon-reload",
        "--user enable --quiet edgetta.service",
        "--user --no-block restart edgetta.service",
    ]
    assert (device.root / "started").read_text() == f"releases/{release}\n", "switched before it is started"


def test_own_output_replaces_the_journal(device: Device, shipment: Shipment) -> None:
    with Remote(device.address) as remote:
        found = look_at(remote, SERVICE, shipment.bytes)
    for options in (("-o", "rows.csv"), ("--output", "rows.csv"), ("--output=rows.csv",)):
        command = run_command(replace(SERVICE, run_options=options), found)
        assert command[-len(options) :] == list(options) and "-" not in command


def test_the_second_one_replaces_the_first(device: Device, shipment: Shipment, tmp_path: Path) -> None:
    first, _ = run(device, shipment, SERVICE)
    (device.folder / "current" / "state.safetensors").write_text("learnt")
    second, said = run(device, make_shipment(tmp_path / "other", "b" * 64), SERVICE)
    assert device.releases() == [first, second] and device.current() == f"releases/{second}"
    assert said[-1] == f"switching from {first} to {second}"
    assert not (device.folder / "current" / "state.safetensors").exists(), "state belongs to its bundle"
    verbs = [
        call.removeprefix("--user ").removeprefix("--no-block ")
        for call in device.calls("systemctl")
        if "show" not in call
    ]
    assert verbs[3:] == [
        "stop edgetta.service",
        "daemon-reload",
        "enable --quiet edgetta.service",
        "restart edgetta.service",
    ], "the running one saves its state before the switch"


def test_the_same_bundle_keeps_what_it_learnt(device: Device, shipment: Shipment) -> None:
    first, _ = run(device, shipment, SERVICE)
    (device.folder / "current" / "state.safetensors").write_text("learnt")
    second, _ = run(device, shipment, SERVICE)
    assert device.releases() == [first, second]
    assert (device.folder / "current" / "state.safetensors").read_text() == "learnt"


def test_old_releases_go(device: Device, shipment: Shipment) -> None:
    for day in range(1, 6):
        (device.folder / "releases" / f"2026010{day}-000000-cccccccc").mkdir(parents=True)
    release, _ = run(device, shipment, replace(PLAIN, keep=2))
    assert device.releases() == ["20260105-000000-cccccccc", release]


@pytest.mark.parametrize("state", [FAILED, RESTARTING])
def test_a_service_that_does_not_live_is_rolled_back(
    device: Device, shipment: Shipment, tmp_path: Path, state: str
) -> None:
    first, _ = run(device, shipment, SERVICE)
    before = snapshot(device)
    (device.root / "service.next").write_text(state)
    (device.root / "journal").write_text("Started\nedgetta: error: there is no camera 0\nMain process exited\n")
    with pytest.raises(RemoteError) as error:
        run(device, make_shipment(tmp_path / "other", "b" * 64), replace(SERVICE, source="camera:1"))
    assert "edgetta.service does not live on" in str(error.value)
    assert str(error.value).endswith(": there is no camera 0; the device is as it was")
    assert snapshot(device) == before and device.releases() == [first]
    started = (device.root / "started").read_text().splitlines()
    assert started[-1] == f"releases/{first}", "the earlier release runs again"


def test_a_first_service_that_does_not_live_leaves_nothing(device: Device, shipment: Shipment) -> None:
    before = snapshot(device)
    (device.root / "service.next").write_text(FAILED)
    with pytest.raises(RemoteError, match=r"failed \(exit-code\); the device is as it was$"):
        run(device, shipment, SERVICE)
    assert (device.releases(), device.current()) == ([], None) == before[:2]
    assert not (device.units / "edgetta.service").exists()
    assert "--user disable --quiet edgetta.service" in device.calls("systemctl")


def test_a_service_that_is_watched(device: Device, shipment: Shipment, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails a while after its start, as programs do that take long to load."""
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            (device.root / "service").write_text(RESTARTING)

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(RemoteError, match="does not live"):
        run(device, shipment, replace(SERVICE, watch_seconds=9))
    assert waited == [1, 1, 1]


def test_a_service_that_takes_long_to_start(
    device: Device, shipment: Shipment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It loads, and builds engines perhaps, before it says that frames come; that it lives is watched from then on."""
    starting = "ActiveState=activating\nResult=success\nNRestarts=0\n"
    (device.root / "service.next").write_text(starting)
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 100:
            (device.root / "service").write_text(starting.replace("activating", "active"))

    monkeypatch.setattr(time, "sleep", sleep)
    run(device, shipment, replace(SERVICE, watch_seconds=3))
    assert len(waited) == 103
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    (device.root / "service.next").write_text(starting)
    monkeypatch.setattr("edgetta.devices.service.START_SECONDS", 5)
    with pytest.raises(RemoteError, match=r"does not live on .*: activating \(success\)"):
        run(device, shipment, replace(SERVICE, watch_seconds=3))
    (device.root / "service.next").write_text("ActiveState=activating\nResult=exit-code\nNRestarts=0\n")
    with pytest.raises(RemoteError, match="does not live"):
        run(device, shipment, replace(SERVICE, watch_seconds=3))


def test_a_source_that_ends_is_no_failure(device: Device, shipment: Shipment) -> None:
    (device.root / "service.next").write_text("ActiveState=inactive\nResult=success\nNRestarts=0\n")
    release, _ = run(device, shipment, SERVICE)
    assert device.current() == f"releases/{release}"


def test_a_unit_that_cannot_be_installed(device: Device, shipment: Shipment) -> None:
    device.program(
        "systemctl", "#!/bin/sh\n[ \"$2\" = show ] && exit 0\necho 'Failed to connect to bus' >&2\nexit 1\n"
    )
    with pytest.raises(RemoteError, match=r"Failed to connect to bus; log in there once"):
        run(device, shipment, SERVICE)
    assert device.releases() == [] and device.current() is None


@pytest.mark.parametrize("settings", [PLAIN, SERVICE])
def test_a_bundle_that_fails_its_test_there(
    device: Device, shipment: Shipment, tmp_path: Path, settings: DeploySettings
) -> None:
    run(device, shipment, settings)
    before = snapshot(device)
    (device.root / "inspect.code").write_text("4")
    (device.root / "inspect.err").write_text("edgetta: error: bundle fails its self-test: logits differ\n")
    with pytest.raises(
        RemoteError, match=r"the bundle does not work on .*: bundle fails its self-test: logits differ$"
    ):
        run(device, make_shipment(tmp_path / "other", "b" * 64), settings)
    assert snapshot(device) == before


def test_a_disk_that_fills_up(device: Device, shipment: Shipment, tmp_path: Path) -> None:
    run(device, shipment, SERVICE)
    before = snapshot(device)
    device.program(
        "tar", "#!/bin/sh\ncat >/dev/null\necho 'tar: w: Cannot write: No space left on device' >&2\nexit 2\n"
    )
    with pytest.raises(RemoteError, match="its disk is full"):
        run(device, make_shipment(tmp_path / "other", "b" * 64), SERVICE)
    assert snapshot(device) == before


def test_ctrl_c_while_copying(device: Device, shipment: Shipment, tmp_path: Path) -> None:
    run(device, shipment, SERVICE)
    before = snapshot(device)

    def interrupt(sent: int) -> None:
        raise KeyboardInterrupt

    other = make_shipment(tmp_path / "other", "b" * 64)
    with Remote(device.address) as remote:
        found = look_at(remote, SERVICE, other.bytes)
        with pytest.raises(KeyboardInterrupt):
            deploy(remote, found, {"checks": []}, other, SERVICE, lambda line: None, interrupt)
    assert snapshot(device) == before


def test_a_file_that_goes_away_while_it_is_copied(device: Device, shipment: Shipment) -> None:
    missing = replace(shipment, files=(*shipment.files, ("gone", shipment.files[0][1].parent / "gone")))
    with Remote(device.address) as remote:
        found = look_at(remote, PLAIN, 1)
        with pytest.raises(FileNotFoundError):
            deploy(remote, found, {"checks": []}, missing, PLAIN, lambda line: None)
    assert device.releases() == []


def test_no_edgetta(device: Device, shipment: Shipment) -> None:
    device.without("edgetta")
    with pytest.raises(RemoteError, match=r"has no edgetta .*: copy its wheel there, then `python3 -m venv"):
        run(device, shipment, PLAIN)
    with pytest.raises(RemoteError, match=r"has no edgetta \(/opt/x/edgetta\)"):
        run(device, shipment, replace(PLAIN, program="/opt/x/edgetta"))
    assert not device.folder.exists()


def test_edgetta_in_the_folder(device: Device, shipment: Shipment) -> None:
    """Sessions over ssh do not have a user's PATH."""
    place = device.folder / ".venv" / "bin"
    place.mkdir(parents=True)
    shutil.move(device.root / "bin" / "edgetta", place / "edgetta")
    with Remote(device.address) as remote:
        assert look_at(remote, PLAIN, 1).program == str(place / "edgetta")


def test_too_little_room(device: Device, shipment: Shipment) -> None:
    device.program(
        "df", "#!/bin/sh\necho Filesystem 1024-blocks Used Available\necho /dev/mmcblk0p1 100 50 5120 1% /\n"
    )
    with pytest.raises(
        RemoteError, match=r"the disk of .* is too full: .* has 5\.0 MiB left and 64\.0 MiB are needed"
    ):
        run(device, shipment, PLAIN)
    assert not device.folder.exists()


def test_no_systemd(device: Device, shipment: Shipment) -> None:
    device.without("systemctl")
    with pytest.raises(RemoteError, match="has no systemd to run a service: deploy with --no-service"):
        run(device, shipment, SERVICE)
    run(device, shipment, PLAIN)


def test_current_that_is_a_folder(device: Device, shipment: Shipment) -> None:
    (device.folder / "current").mkdir(parents=True)
    with pytest.raises(RemoteError, match="is no link: move it away"):
        run(device, shipment, PLAIN)


def test_a_shell_that_greets(device: Device) -> None:
    device.program("edgetta", "#!/bin/sh\necho Welcome to Ubuntu\necho\ncat '{root}/doctor.json'\n")
    with Remote(device.address) as remote:
        assert examine(remote, look_at(remote, PLAIN, 1)) == {"usable": True, "checks": []}


def test_a_doctor_that_finds_problems(device: Device, shipment: Shipment) -> None:
    fine = {"name": "numpy", "status": "ok", "value": "2", "remedy": "", "facts": {}}
    bad = {"name": "torch", "status": "problem", "value": "not installed", "remedy": "pip install torch", "facts": {}}
    device.doctor(fine, bad, usable=False)
    with pytest.raises(RemoteError, match=r"edgetta cannot run on .*: torch: not installed -> pip install torch$"):
        run(device, shipment, PLAIN)
    (device.root / "doctor.json").write_text("Traceback ...\n")
    with pytest.raises(RemoteError, match=r"doctor` fails on .*: Traceback \.\.\.; install edgetta there again"):
        run(device, shipment, PLAIN)
    assert not device.folder.exists()


def test_engines(device: Device, shipment: Shipment) -> None:
    """Built where the doctor found TensorRT itself, by an edgetta that can; a failure says how to do without."""
    run(device, shipment, PLAIN)
    assert not any(call.startswith("build") for call in device.calls("edgetta"))
    device.doctor(
        {"name": "tensorrt", "status": "ok", "value": "10.3", "remedy": "", "facts": {"package": "tensorrt"}}
    )
    _, said = run(device, shipment, PLAIN)
    assert "building TensorRT engines there, which takes minutes" in said
    assert device.calls("edgetta")[-1].startswith("build /") and device.calls("edgetta")[-1].endswith(
        "/bundle --quiet"
    )
    run(device, shipment, replace(PLAIN, precision="fp16"))
    assert device.calls("edgetta")[-1].endswith("/bundle --quiet --precision fp16")
    (device.root / "build.code").write_text("2")  # an edgetta without this verb
    _, said = run(device, shipment, PLAIN)
    assert any("cannot build TensorRT engines" in line for line in said)
    device.program("edgetta", EDGETTA_WHOSE_BUILD_FAILS)
    with pytest.raises(RemoteError, match=r"engines cannot be built on .*: out of memory; --no-build does without"):
        run(device, shipment, PLAIN)
    run(device, shipment, replace(PLAIN, build=False))


EDGETTA_WHOSE_BUILD_FAILS = """\
#!/bin/sh
case "$*" in
doctor*) cat "{root}/doctor.json" ;;
"build --help") ;;
build*) echo 'edgetta: error: out of memory' >&2; exit 1 ;;
esac
"""


def test_a_service_of_the_machine(device: Device) -> None:
    """Needs root, so that only its words are tested: who runs it, where it is, and that sudo never asks."""
    service = Service("doors", system=True)
    with Remote(device.address) as remote:
        found = look_at(remote, PLAIN, 1)
    text = unit(DeploySettings(service=service, source="rtsp://cam/1?a=50%&b=$x"), found)
    user = "edgetta" if found.user == "root" else found.user
    assert f"\nUser={user}\n" in text and "WantedBy=multi-user.target" in text
    assert "rtsp://cam/1?a=50%%&b=$$x" in text, "systemd takes neither % nor $ as its own"
    assert service.folder("~") == "/etc/systemd/system" and service.systemctl == "$root systemctl"
    assert 'root="sudo -n"' in service.opening


def test_starting_with_the_machine(device: Device) -> None:
    with Remote(device.address) as remote:
        assert linger(remote, Service("edgetta"))
        assert device.calls("loginctl") == ["enable-linger"]
        (device.root / "linger.code").write_text("1")
        assert not linger(remote, Service("edgetta")) and linger(remote, Service("edgetta", system=True))


HARDENED = (
    "NoNewPrivileges=yes",
    "RestrictSUIDSGID=yes",
    "UMask=0077",
    "MemoryMax=75%",
    "WatchdogSec=180",
    "Type=notify",
)
SANDBOXED = ("ProtectSystem=strict", "PrivateTmp=yes", "ProtectHome=read-only", "CapabilityBoundingSet=")


def found_device(**changes: Any) -> FoundDevice:
    """A device as `look_at` finds it."""
    facts: dict[str, Any] = {"user": "nano", "home": "/home/nano", "machine": "aarch64", "folder": "/opt/edgetta"}
    facts |= {"program": "/opt/edgetta/.venv/bin/edgetta", "version": "edgetta 0.1.0", "free_bytes": 1 << 40}
    return FoundDevice(**{**facts, "current": "", "systemd": True, "groups": ("video",), **changes})


def test_units_have_no_more_rights_than_they_need() -> None:
    text = unit(SERVICE, found_device())
    assert all(f"\n{line}\n" in text for line in HARDENED) and "User=" not in text and "PrivateTmp" not in text
    for user, expected in (("nano", "nano"), ("root", "edgetta")):
        system = replace(SERVICE, service=Service("edgetta", system=True))
        text = unit(system, found_device(user=user))
        assert all(f"\n{line}\n" in text for line in (*HARDENED, *SANDBOXED))
        assert f"\nUser={expected}\nSupplementaryGroups=video\nWorkingDirectory=/opt/edgetta/data\n" in text
        assert "\nReadWritePaths=/opt/edgetta/data /opt/edgetta/releases\n" in text
    text = unit(replace(SERVICE, service=Service("edgetta", True, "camera")), found_device(user="root"))
    assert "\nUser=camera\n" in text


def test_memory_is_limited_by_the_plan() -> None:
    device = found_device(resident_bytes=400 << 20)
    assert f"\nMemoryMax={(500 + 256 + 64) << 20}\n" in unit(replace(SERVICE, budget_bytes=256 << 20), device)
    assert "\nMemoryMax=75%\n" in unit(replace(SERVICE, budget_bytes=256 << 20), found_device())


@pytest.mark.parametrize(
    "changes",
    [
        {"source": "camera:0\nExecStartPre=/bin/sh -c evil"},
        {"source": "camera:0\r"},
        {"run_options": ("--batch", "1\n[Service]\nUser=root")},
        {"run_options": ("\x1b[2J",)},
    ],
)
def test_a_line_end_is_no_way_into_the_unit(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="holds a control character"):
        unit(replace(SERVICE, **changes), found_device())


@pytest.mark.parametrize(
    "changes",
    [{"folder": "/opt/e\nUser=root"}, {"program": "edgetta"}, {"program": "-/bin/true"}, {"folder": "opt"}],
)
def test_what_the_device_says_is_no_way_into_the_unit(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        unit(SERVICE, found_device(**changes))
    with pytest.raises(UsageError, match="no name of an ordinary user"):
        unit(replace(SERVICE, service=Service("a", system=True)), found_device(user="evil$(id)"))


@pytest.mark.parametrize("name", ["-Hevil", "--user", "", ".", "a b", "a\nb", "a/b", "a" * 300])
def test_names_that_are_options_or_none(name: str) -> None:
    with pytest.raises(UsageError, match="is no name of a service"):
        Service(name)


@pytest.mark.parametrize("user", ["root", "-x", "A B", "a;b"])
def test_users_that_are_none(user: str) -> None:
    with pytest.raises(UsageError, match="ordinary user"):
        Service("edgetta", True, user)


def test_passwords_lie_in_a_file_of_their_own(device: Device, shipment: Shipment) -> None:
    source = "rtsp://viewer:p%40ss'word@cam/1"
    release, _ = run(device, shipment, replace(SERVICE, source=source))
    file = device.folder / "releases" / release / "source"
    assert file.read_text() == source + "\n" and file.stat().st_mode & 0o777 == 0o600
    text = (device.units / "edgetta.service").read_text()
    assert "ss'word" not in text and f" @{device.folder}/current/source " in text
    assert not any("ss'word" in call for call in (device.root / "calls").read_text().splitlines())


def test_a_source_that_came_from_a_file_stays_in_one() -> None:
    command = run_command(replace(SERVICE, source="rtsp://cam/hidden-path", secret=True), found_device())
    assert "@/opt/edgetta/current/source" in command and not any("hidden" in word for word in command)


def test_a_user_of_its_own_needs_a_place_that_it_reaches(device: Device, shipment: Shipment) -> None:
    settings = replace(SERVICE, service=Service("edgetta", True, "camera"))
    with Remote(device.address) as remote, pytest.raises(RemoteError, match=r"runs as camera, .* choose one such as"):
        look_at(remote, settings, shipment.bytes)


def test_the_service_owns_what_it_writes_and_not_the_bundle() -> None:
    script = _ownership(Service("edgetta", system=True), found_device(user="root"), "/opt/edgetta/releases/r")
    assert "id -u edgetta >/dev/null 2>&1 || $root useradd --system --no-create-home" in script
    assert "$root chown edgetta /opt/edgetta/releases/r /opt/edgetta/data" in script
    assert "chown -R" not in script and "$root chmod -R go+rX /opt/edgetta/releases/r/bundle" in script
    assert _ownership(Service("edgetta", system=True), found_device(), "/opt/edgetta/releases/r") == ""


def test_every_save_is_taken_along_and_old_partial_releases_go(device: Device, shipment: Shipment) -> None:
    first, _ = run(device, shipment, SERVICE)
    for suffix in ("", ".1", ".2"):
        (device.folder / "current" / f"state.safetensors{suffix}").write_text(f"learnt{suffix}")
    old, young = (device.folder / "releases" / f"{name}.partial" for name in ("old", "young"))
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (0, 0))
    second, _ = run(device, shipment, SERVICE)
    for suffix in ("", ".1", ".2"):
        assert (device.folder / "current" / f"state.safetensors{suffix}").read_text() == f"learnt{suffix}"
    assert young.exists() and not old.exists() and set(device.releases()) == {first, second, "young.partial"}
    assert (device.folder / "data").is_dir()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze, which looks at the units")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    place = tmp_path / 'a folder; with "quotes", 5 % and $HOME'
    for name in ("data", "releases"):
        (place / name).mkdir(parents=True)
    device = found_device(program="/bin/true", folder=str(place), user="root", groups=("video",))
    settings = replace(SERVICE, service=Service("odd", True), run_options=("--label", ";", "a b\\", "%n", "$x"))
    file = tmp_path / "odd.service"
    file.write_text(unit(settings, device))
    done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if "odd.service" in line]
    assert (done.returncode, complaints) == (0, [])
