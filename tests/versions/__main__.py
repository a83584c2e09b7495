"""Run the core set in every environment, and write what came out.

    python -m tests.versions [--only NAME] [--json bench/results/versions.json]

Rows of environments that are not run again stay. Ends with 1 where a test failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from edgetta.bench.result_file import write_results
from tests.versions import arm, native
from tests.versions.environments import ENVIRONMENTS, NOT_HERE, Environment
from tests.versions.reference import write_reference

ROOT = Path(__file__).parent.parent.parent
SHOWN = ("torch", "numpy", "onnxruntime", "onnx", "safetensors", "click", "rich", "pillow", "filelock")
THREADS = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
VERSIONS = (
    "import sys, json\nfrom importlib import metadata\nfound = {}\n"
    "for name in sys.argv[1:]:\n"
    "    try:\n        found[name] = metadata.version(name)\n"
    "    except metadata.PackageNotFoundError:\n        pass\n"
    "import platform\n"
    "print(json.dumps({'python': platform.python_version(), 'machine': platform.machine(), **found}))"
)


def measure(environment: Environment, wheel: Path, core: Path, work: Path) -> dict[str, Any]:
    """The row of one environment; where it cannot be had, the row says why."""
    emulated = environment.machine != "x86_64"
    row: dict[str, Any] = {
        "environment": environment.name,
        "stands_for": environment.stands_for,
        "how": "emulated by qemu-user, Arm wheels" if emulated else "virtual environment",
    }
    folder = work / environment.name.replace(", ", "-").replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        python = (arm if emulated else native).prepare(environment, wheel, folder)
    except RuntimeError as error:
        return {**row, "not_run": str(error)}
    variables = {**os.environ, **THREADS, "EDGETTA_CORE": str(core)}
    variables.pop("PYTHONPATH", None)
    told = subprocess.run([*python, "-c", VERSIONS, *SHOWN], capture_output=True, text=True, env=variables, cwd=folder)
    row["versions"] = json.loads(told.stdout)
    tests, report = folder / "core_set.py", folder / "report.xml"
    shutil.copy(Path(__file__).with_name("core_set.py"), tests)
    command = [*python, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", "-c", os.devnull]
    command += ["--rootdir", str(folder), f"--junitxml={report}", str(tests)]
    report.unlink(missing_ok=True)
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=folder)
    (folder / "output.txt").write_text(done.stdout + done.stderr)
    row["seconds"] = round(time.monotonic() - begun)
    if not report.is_file():
        return {**row, "failed": {"core set": (done.stderr or done.stdout).strip().splitlines()[-1]}}
    return {**row, **outcome(report)}


def outcome(report: Path) -> dict[str, Any]:
    """Passed tests, and the first line of what the others say."""
    found: dict[str, Any] = {"passed": [], "skipped": {}, "failed": {}}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.attrib["name"].removeprefix("test_")
        told = next(
            ((kind, case.find(kind)) for kind in ("failure", "error", "skipped") if case.find(kind) is not None), None
        )
        if told is None:
            found["passed"].append(name)
        else:
            kind, element = told
            message = (element.attrib.get("message", "") if element is not None else "").splitlines()
            found["skipped" if kind == "skipped" else "failed"][name] = message[0] if message else kind
    return found


def built_wheel(folder: Path) -> Path:
    """The package as it ships."""
    for old in folder.glob("*.whl"):
        old.unlink()
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("edgetta-*.whl")
    return wheel


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=__doc__)
    parser.add_argument("--only", action="append", help="an environment; may be given again", default=[])
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "versions", help="keeps the environments")
    parser.add_argument("--json", type=Path, default=ROOT / "bench" / "results" / "versions.json")
    given = parser.parse_args(arguments)
    unknown = set(given.only) - {environment.name for environment in ENVIRONMENTS}
    if unknown:
        parser.error(
            f"no environment {', '.join(sorted(unknown))}; there are {', '.join(e.name for e in ENVIRONMENTS)}"
        )
    work = given.work.resolve()
    core = work / "core"
    shutil.rmtree(core, ignore_errors=True)
    core.mkdir(parents=True)
    wheel = built_wheel(work)
    write_reference(core)
    earlier = json.loads(given.json.read_text())["rows"] if given.json.is_file() else []
    rows = {row["environment"]: row for row in earlier}
    for environment in ENVIRONMENTS:
        if not given.only or environment.name in given.only:
            row = rows[environment.name] = measure(environment, wheel, core, work)
            print(f"{environment.name}: {row.get('not_run') or summary(row)}", flush=True)
    ordered = [rows[e.name] for e in ENVIRONMENTS if e.name in rows]
    write_results(given.json, ordered, {"tolerance": 1e-4, "not_to_be_had": NOT_HERE})
    return 1 if any(row.get("failed") for row in ordered) else 0


def summary(row: dict[str, Any]) -> str:
    """One line of a row."""
    versions = " ".join(f"{name} {version}" for name, version in row["versions"].items())
    counts = ", ".join(f"{len(row.get(kind, ()))} {kind}" for kind in ("passed", "failed", "skipped"))
    told = "".join(f"\n  {name}: {text}" for name, text in {**row.get("failed", {}), **row.get("skipped", {})}.items())
    return f"{counts} in {row['seconds']} s ({versions}){told}"


if __name__ == "__main__":
    raise SystemExit(main())
