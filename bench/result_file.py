"""Result files of benches: rows with the machine, versions, settings and date that they belong to."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import edgetta
from edgetta.devices.machine import parse_cpuinfo
from edgetta.storage import atomic_write_json

_PACKAGES = ("torch", "numpy", "onnxruntime", "onnx", "scipy", "scikit-learn", "timm")


def environment() -> dict[str, Any]:
    """Machine, versions and date, as every result file has them."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    model = parse_cpuinfo(cpuinfo.read_text()).model if cpuinfo.exists() else ""
    versions = {"edgetta": edgetta.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "machine": {
            "processor": model or platform.processor() or platform.machine(),
            "architecture": platform.machine(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "versions": versions,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }


def write_results(path: Path, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """Write rows to a JSON file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_json(path, {**environment(), "settings": dict(settings), "rows": [dict(row) for row in rows]})
