"""Examine the machine: what a bug report needs, what is missing, and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from edgetta.devices import packages, thermal
from edgetta.devices.jetson import (
    PowerMode,
    TegraRelease,
    parse_cuda_version,
    parse_device_tree_model,
    parse_power_mode,
    parse_power_mode_files,
    parse_tegra_release,
)
from edgetta.devices.machine import parse_cpuinfo, parse_free_blocks, parse_meminfo, parse_memory_limit
from edgetta.devices.power import find_rails, read_power, total_watts
from edgetta.devices.profile import DeviceProfile, matching_profile
from edgetta.devices.report import Check, Report

OLDEST_PYTHON = (3, 10)

LITTLE_MEMORY = 1 * 2**30
"""A step of WRN-40-2 at batch 64 takes 0.3 GiB, torch itself about as much."""

LITTLE_DISK = 1 * 2**30

LARGE_BLOCK = 2**21
"""A Jetson's driver wants memory in large pieces; where all free pieces are smaller, building engines fails."""

NEAR_THROTTLING = 5.0
"""Degrees below the point at which the kernel slows the device down."""

HOT = 85.0
"""Degrees at which devices that name no such point are called hot."""

CONTAINERS = "devices/containers"
"""Where the container recipes are."""


def examine(folder: Path | None = None) -> Report:
    """Look at everything. Imports torch, onnxruntime and the like where they are installed; takes a few seconds.

    Args:
        folder: the folder whose disk is examined; by default the current one.
    """
    jetson = jetson_model()
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("edgetta", check_edgetta),
        ("python", check_python),
        ("system", check_system),
        ("jetson", lambda: check_jetson(jetson)),
        ("profile", check_profile),
        ("power mode", lambda: check_power_mode(jetson)),
        ("power", check_power),
        ("temperature", check_temperature),
        ("processor", check_processor),
        ("memory", lambda: check_memory(jetson)),
        ("disk", lambda: check_disk(folder or Path.cwd())),
        ("torch", packages.check_torch),
        ("cuda", lambda: packages.check_cuda(jetson)),
        ("numpy", lambda: packages.check_needed("numpy", "numpy")),
        ("safetensors", lambda: packages.check_needed("safetensors", "safetensors")),
        ("pillow", lambda: packages.check_needed("PIL", "pillow")),
        ("onnxruntime", packages.check_onnxruntime),
        ("tensorrt", lambda: packages.check_tensorrt(jetson)),
        ("engines", packages.check_engines),
        ("onnx", lambda: packages.check_optional("onnx", "only for edgetta export: pip install 'edgetta[export]'")),
        ("onnxscript", lambda: packages.check_optional("onnxscript", "only for torch.onnx: pip install onnxscript")),
        ("opencv", packages.check_opencv),
    ]
    return Report(tuple(_guarded(name, check) for name, check in checks))


def check_edgetta() -> Check:
    import edgetta

    return Check("edgetta", "ok", edgetta.__version__, facts={"version": edgetta.__version__})


def check_python() -> Check:
    version = platform.python_version()
    value = f"{platform.python_implementation()} {version}"
    facts = {"version": version, "implementation": platform.python_implementation()}
    if sys.version_info[:2] < OLDEST_PYTHON:
        remedy = f"install Python {'.'.join(map(str, OLDEST_PYTHON))} or newer"
        release = tegra_release()
        if release is not None and release.jetpack_major in (4, 5):
            remedy = f"JetPack {release.jetpack} comes with this Python: run edgetta in its container, {CONTAINERS}"
        return Check("python", "problem", value, remedy, facts)
    return Check("python", "ok", value, facts=facts)


def check_system() -> Check:
    facts = {"system": platform.system(), "release": platform.release(), "machine": platform.machine()}
    return Check("system", "ok", platform.platform(), facts=facts)


def check_processor() -> Check:
    cpu = parse_cpuinfo(_text("/proc/cpuinfo"))
    model = cpu.model or platform.processor() or "unknown"
    usable = packages.usable_cores()
    cores = cpu.logical or os.cpu_count() or 1
    facts = {"model": model, "cores": cores, "usable_cores": usable, "extensions": list(cpu.extensions)}
    value = f"{model}, {usable} of {cores} cores, {' '.join(cpu.extensions) or 'vector extensions unknown'}"
    if cpu.flags and not {"avx2", "neon"} & set(cpu.extensions):
        return Check("processor", "warning", value, "neither AVX2 nor NEON: expect a slow device", facts)
    return Check("processor", "ok", value, facts=facts)


def check_memory(jetson: str | None = None) -> Check:
    memory = parse_meminfo(_text("/proc/meminfo"))
    if memory is None:
        return Check("memory", "ok", f"unknown on {platform.system()}")
    limits = (_text("/sys/fs/cgroup/memory.max"), _text("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
    limit = next((limit for limit in map(parse_memory_limit, limits) if limit is not None), None)
    blocks = parse_free_blocks(_text("/proc/buddyinfo"), os.sysconf("SC_PAGE_SIZE"))
    facts = {
        "total_bytes": memory.total,
        "available_bytes": memory.available,
        "limit_bytes": limit,
        "largest_free_block_bytes": blocks.bytes if blocks else None,
        "largest_free_blocks": blocks.count if blocks else None,
    }
    value = f"{_gib(memory.available)} available of {_gib(memory.total)}"
    if blocks is not None:
        value += f", largest free blocks {blocks.count} x {blocks.bytes // 1024:,} KiB"
    available = memory.available
    if limit is not None and limit < memory.total:
        value += f", this container may use {_gib(limit)}"
        available = min(available, limit)
    if available < LITTLE_MEMORY:
        remedy = "close other programs, or use a smaller batch or `local` gradients"
        if jetson is not None:
            remedy += "; without a desktop (`sudo systemctl set-default multi-user.target`) more is free"
        return Check("memory", "warning", value, remedy, facts)
    if jetson is not None and blocks is not None and blocks.bytes < LARGE_BLOCK:
        return Check("memory", "warning", value, "free memory is in small pieces: restart the device", facts)
    return Check("memory", "ok", value, facts=facts)


def check_disk(folder: Path) -> Check:
    usage = shutil.disk_usage(folder)
    value = f"{_gib(usage.free)} free of {_gib(usage.total)}"
    facts = {"free_bytes": usage.free, "total_bytes": usage.total}
    if usage.free < LITTLE_DISK:
        return Check("disk", "warning", value, "free some space: state, bundles and engines are written here", facts)
    return Check("disk", "ok", value, facts=facts)


def jetson_model() -> str | None:
    """The model of a Jetson, such as "NVIDIA Jetson Orin Nano Developer Kit"; None on any other machine."""
    model = parse_device_tree_model(_bytes("/proc/device-tree/model"))
    tegra = _text("/etc/nv_tegra_release")
    if "jetson" in model.lower() or tegra:
        return model or "Jetson of an unknown model"
    return None


def tegra_release() -> TegraRelease | None:
    """The release of Linux for Tegra that runs here; None on any other machine, and in a container that hides it."""
    return parse_tegra_release(_text("/etc/nv_tegra_release"))


def power_mode() -> PowerMode | None:
    """The power mode that is set; None where there is none, or where it cannot be read."""
    try:
        done = subprocess.run(
            ["nvpmodel", "-q"], capture_output=True, text=True, timeout=5, check=False, stdin=subprocess.DEVNULL
        )
        mode = parse_power_mode(done.stdout)
    except (OSError, subprocess.SubprocessError):
        mode = None
    return mode or parse_power_mode_files(_text("/var/lib/nvpmodel/status"), _text("/etc/nvpmodel.conf"))


def device_profile() -> DeviceProfile | None:
    """The profile that fits this machine; None where none does."""
    memory = parse_meminfo(_text("/proc/meminfo"))
    model = parse_device_tree_model(_bytes("/proc/device-tree/model"))
    return matching_profile(model, memory.total if memory else None, platform.machine())


def check_jetson(model: str | None) -> Check:
    if model is None:
        return Check("jetson", "absent", "no", facts={"model": None})
    release = tegra_release()
    cuda = parse_cuda_version(_text("/usr/local/cuda/version.json") or _text("/usr/local/cuda/version.txt"))
    if release is None:
        remedy = "in a container, mount /etc/nv_tegra_release, so that a bug report names the release"
        return Check("jetson", "warning", f"{model}, L4T unknown", remedy, {"model": model, "cuda_toolkit": cuda})
    jetpack = f" (JetPack {release.jetpack})" if release.jetpack else ""
    facts = {"model": model, "l4t": release.version, "jetpack": release.jetpack, "cuda_toolkit": cuda}
    value = f"{model}, L4T {release.version}{jetpack}, {f'CUDA {cuda}' if cuda else 'no CUDA toolkit'}"
    return Check("jetson", "ok", value, facts=facts)


def check_profile() -> Check:
    profile = device_profile()
    if profile is None:
        return Check("profile", "absent", "none fits this machine", facts={"name": None})
    facts = {
        "name": profile.name,
        "title": profile.title,
        "suggested_budget_bytes": profile.suggested_budget_bytes,
        "bandwidth_gb_s": profile.bandwidth.value if profile.bandwidth else None,
        "traps": [trap.value for trap in profile.traps] if profile.family != "generic" else [],
    }
    if profile.family == "generic":
        return Check("profile", "ok", f"{profile.name}: nothing more is known of this machine", facts=facts)
    bandwidth = f", {profile.bandwidth.value:g} GB/s" if profile.bandwidth else ""
    budget = f"start with a budget of {_gib(profile.suggested_budget_bytes)}"
    return Check("profile", "ok", f"{profile.name} ({profile.title}{bandwidth}); {budget}", facts=facts)


def check_power_mode(jetson: str | None) -> Check:
    if jetson is None:
        return Check("power mode", "absent", "none: not a Jetson")
    mode = power_mode()
    if mode is None:
        remedy = "try `sudo nvpmodel -q`, and say the mode by hand in a bug report"
        return Check("power mode", "warning", "unknown: nvpmodel does not tell", remedy)
    facts = {"mode": mode.name, "number": mode.number}
    if mode.name.upper().startswith("MAXN"):
        return Check("power mode", "ok", mode.name, facts=facts)
    return Check("power mode", "ok", mode.name, "faster modes: `nvpmodel -p --verbose` lists them", facts)


def check_power() -> Check:
    power = read_power(find_rails())
    total = total_watts(power)
    facts = {"rails_watts": power, "total_watts": total}
    if not power:
        return Check("power", "absent", "no sensor that edgetta knows: no energy per frame here", facts=facts)
    rails = ", ".join(f"{label} {watts:.2f} W" for label, watts in power.items())
    return Check("power", "ok", rails if total is None else f"{total:.2f} W ({rails})", facts=facts)


def check_temperature() -> Check:
    zones = thermal.read_zones()
    hottest = thermal.hottest(zones)
    facts = {"celsius": {zone.name: zone.celsius for zone in zones}}
    if hottest is None:
        return Check("temperature", "absent", "no sensor that can be read", facts=facts)
    value = f"{hottest.celsius:.0f} °C ({hottest.name})"
    margins = [
        zone for zone in zones if zone.celsius >= (zone.throttles_at or HOT + NEAR_THROTTLING) - NEAR_THROTTLING
    ]
    if margins:
        names = ", ".join(zone.name for zone in margins)
        remedy = f"near the point where it slows down ({names}): better cooling, or a lower power mode"
        return Check("temperature", "warning", value, remedy, facts)
    return Check("temperature", "ok", value, facts=facts)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:
        # Whatever else is broken here, the rest of the report is what its reader needs.
        return Check(name, "warning", f"could not be examined: {type(error).__name__}: {error}")


def _bytes(path: str) -> bytes:
    """A small system file; empty where there is none."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _text(path: str) -> str:
    return _bytes(path).decode("utf-8", "replace")


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
