"""Core-set environments of this machine's own kind: a virtual environment each."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.versions.environments import Environment


def interpreter(version: str) -> str | None:
    """An interpreter of that version: on the PATH, or one that pyenv keeps."""
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    places = [*sorted(kept.glob(f"{version}.*/bin/python{version}")), shutil.which(f"python{version}")]
    for place in filter(None, places):
        told = subprocess.run([str(place), "--version"], capture_output=True, text=True)
        if told.returncode == 0 and f" {version}." in told.stdout:
            return str(place)
    return None


def prepare(environment: Environment, wheel: Path, folder: Path) -> list[str]:
    """Make the environment in `folder`; the command that is its Python.

    Raises RuntimeError where there is no such interpreter or a version cannot be installed.
    """
    python = interpreter(environment.python)
    if python is None:
        raise RuntimeError(f"there is no Python {environment.python} here")
    own = folder / "bin" / "python"
    if not own.exists():
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
    install = [str(own), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for options in ([*environment.packages, "pytest"], ["--no-deps", "--force-reinstall", str(wheel)]):
        done = subprocess.run([*install, *options], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return [str(own)]
