"""Import, export and run where there is neither glibc nor /proc, as on macOS and Windows: simulated in a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.tiny_model import CUTS, pictures, write_model

ELSEWHERE = """
import builtins, ctypes, io, os, platform, sys
from pathlib import Path

import numpy, onnx, onnxruntime, PIL.Image, torch, torch.export, torch.onnx  # what is compiled for this system

def missing(path):
    return str(path).startswith(("/proc", "/sys"))

def guarded(real):
    def call(path, *rest, **named):
        if isinstance(path, (str, os.PathLike)) and missing(path):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return real(path, *rest, **named)
    return call

def no_library(*rest, **named):
    raise TypeError("bad argument type for built-in operation")  # what Windows says of CDLL(None)

builtins.open = io.open = guarded(open)
os.open, os.stat, os.listdir, os.scandir = map(guarded, (os.open, os.stat, os.listdir, os.scandir))
ctypes.CDLL = no_library
del os.sched_getaffinity
for name in ("fcntl", "resource", "termios"):
    sys.modules[name] = None  # importing it fails
platform.system, platform.libc_ver = lambda: "Windows", lambda *rest: ("", "")
assert not any(Path(place).exists() for place in ("/proc/meminfo", "/sys"))

from edgetta.cli import main

for arguments in {commands!r}:
    code = main(arguments)
    print(arguments[0], code, flush=True)
"""


def test_export_and_run_need_neither_glibc_nor_proc(tmp_path: Path) -> None:
    np.save(tmp_path / "frames.npy", pictures(40)[0])
    bundle, rows = str(tmp_path / "bundle"), tmp_path / "rows.jsonl"
    options = ["--cuts", CUTS, "--input-size", "8", "--no-measure", "--quiet"]
    run = ["run", bundle, str(tmp_path / "frames.npy"), "--batch", "20", "--quiet", "--state", str(tmp_path / "state")]
    commands = [
        ["export", write_model(tmp_path), "-o", bundle, *options],
        ["inspect", "--test", bundle],
        [*run, "-o", str(rows)],
        ["doctor"],
    ]
    code = ELSEWHERE.replace("{commands!r}", repr(commands))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    told = [line for line in done.stdout.splitlines() if line.split(" ")[0] in ("export", "inspect", "run")]
    assert told[:1] == ["export 0"] and "run 0" in told, done.stdout + done.stderr
    assert len(rows.read_text().splitlines()) == 40
    assert "Traceback" not in done.stderr and "doctor" in done.stdout, done.stderr
