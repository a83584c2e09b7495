"""Machine, versions and date: what stands beside every figure."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import edgetta
from edgetta.devices.machine import parse_cpuinfo

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
