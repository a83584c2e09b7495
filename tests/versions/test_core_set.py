"""The core set, here: it holds in the environment of development, too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.versions.reference import write_reference


def test_the_core_set_holds_here(tmp_path: Path) -> None:
    write_reference(tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", "-c", os.devnull]
    command += ["--rootdir", str(tmp_path), str(Path(__file__).with_name("core_set.py"))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "EDGETTA_CORE": str(tmp_path)})
    assert done.returncode == 0 and "6 passed" in done.stdout, done.stdout
