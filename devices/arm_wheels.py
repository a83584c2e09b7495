"""Are there Arm wheels for all that edgetta needs on a device? `python -m edgetta.devices.arm_wheels`, on any machine.

edgetta itself is pure Python: one wheel for all. pip is asked, for 64-bit Arm and each Python, which file it would
install for every direct dependency; nothing is installed, and nothing is built from source. What a Jetson takes
instead, NVIDIA's torch for its JetPack, is not asked for here.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

PYTHONS = ("3.10", "3.11", "3.12")
EXTRAS = ("onnxruntime", "serve")
"""What runs on devices; the other extras are for workstations."""

PLATFORMS = (*(f"manylinux_2_{minor}_aarch64" for minor in (28, 27, 26, 24, 17)), "manylinux2014_aarch64")
"""Systems with glibc 2.28 or newer: Debian 10, Ubuntu 20.04, and with them JetPack 5 and later."""


def requirements(lines: Iterable[str], extras: Iterable[str] = EXTRAS) -> list[str]:
    """The requirements of some extras, without their markers, which would be judged by the Python that runs here.

    Args:
        lines: as `importlib.metadata.requires` gives them: `onnxruntime>=1.16; extra == "onnxruntime"`.
        extras: those that count, beside what is always needed.
    """
    wanted = []
    for line in lines:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        if extra is None or extra[1] in extras:
            wanted.append(requirement.strip())
    return list(dict.fromkeys(wanted))


def arm_wheels(wanted: Iterable[str], python: str) -> dict[str, str]:
    """Package -> file that pip would install on 64-bit Arm.

    Raises:
        LookupError: there is none for a requirement; the message is pip's.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"]
        command += ["--ignore-installed", "--no-deps", "--only-binary=:all:", "--target", folder]
        command += ["--python-version", python, "--report", str(report)]
        for platform in PLATFORMS:
            command += ["--platform", platform]
        done = subprocess.run([*command, *wanted], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise LookupError(lines[-1] if lines else done.stderr.strip() or "pip fails")
        found = json.loads(report.read_text())["install"]
    return {item["metadata"]["name"]: item["download_info"]["url"].rpartition("/")[2] for item in found}


def main() -> int:
    """Print a table; exit code 1 where something has no wheel."""
    wanted = requirements(importlib.metadata.requires("edgetta") or ())
    missing = False
    for python in PYTHONS:
        print(f"Python {python}, 64-bit Arm:")
        try:
            files = arm_wheels(wanted, python)
        except LookupError as error:
            print(f"  {error}")
            missing = True
            continue
        for name, file in sorted(files.items()):
            print(f"  {name:26} {file}")
    print("something has no Arm wheel" if missing else "Arm wheels for every dependency")
    return int(missing)


if __name__ == "__main__":
    sys.exit(main())
