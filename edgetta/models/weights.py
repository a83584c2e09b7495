"""Reading trained weights from a file, without ever running what is in it, and putting them strictly into a network.

Three kinds of file: `.safetensors`, `.npz` (without pickle) and torch checkpoints (weights only). Checkpoints come
wrapped (`state_dict`, `model`, `net`) and prefixed (`module.`); names that the projects spell differently are mapped
by an explicit table. Whatever is then missing or unexpected is an error that lists the names.
"""

from __future__ import annotations

import difflib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgetta.errors import EdgettaError

# From this torch on, weights_only=True keeps its promise; before, a file could still run code (CVE-2025-32434).
SAFE_TORCH = (2, 6)
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "last")
PREFIXES = ("module.", "model.", "net.", "_orig_mod.")
# Normalisation constants by the names that projects give them: (mean, std).
NORMALISATION_NAMES = (("input_mean", "input_std"), ("mu", "sigma"), ("mean", "std"), ("0.mean", "0.std"))
# Weights that some published checkpoints carry and no forward pass uses.
DEAD_PREFIXES = ("sub_block1.",)


@dataclass(frozen=True)
class Weights:
    """What a weight file holds: tensors by their unwrapped names, and the input normalisation if it says one."""

    source: str
    tensors: Mapping[str, Tensor]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    text: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # string arrays of an .npz


def read_weights(path: str | Path) -> Weights:
    """Read `.safetensors`, `.npz`, or a torch checkpoint, never unpickling arbitrary objects.

    Raises EdgettaError where the file is absent, damaged, of another kind, holds no tensors, or needs code to be read.
    """
    path = Path(path)
    if not path.is_file():
        raise EdgettaError(f"weights {path}: no such file")
    text: dict[str, tuple[str, ...]] = {}
    if path.suffix == ".safetensors":
        raw: dict[str, Any] = _read_safetensors(path)
    elif path.suffix == ".npz":
        raw, text = _read_npz(path)
    else:
        raw = _read_checkpoint(path)
    return _tidy(path, raw, text)


def put_weights(network: nn.Module, weights: Weights) -> None:
    """Copy every tensor into the network, in place; every name and shape must match.

    Raises EdgettaError that lists missing and unexpected names, each with its nearest match, and shapes that differ.
    """
    wanted, given = network.state_dict(), dict(weights.tensors)
    for name in wanted:
        if name.endswith("num_batches_tracked"):
            given.setdefault(name, wanted[name])
    missing = [n for n in wanted if n not in given]
    unexpected = [n for n in given if n not in wanted]
    shapes = [n for n in wanted if n in given and wanted[n].shape != given[n].shape]
    if missing or unexpected or shapes:
        raise EdgettaError(_mismatch(network, weights.source, missing, unexpected, shapes, wanted, given))
    network.load_state_dict({name: given[name] for name in wanted})


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise EdgettaError(f"weights {path}: not a readable safetensors file ({error})") from error


def _read_npz(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
    tensors: dict[str, Any] = {}
    text: dict[str, tuple[str, ...]] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                array = archive[name]
                if array.dtype.kind == "U":
                    text[name] = tuple(str(line) for line in array.reshape(-1))
                elif array.dtype.kind in "fiub":
                    tensors[name] = torch.from_numpy(np.ascontiguousarray(array))
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise EdgettaError(f"weights {path}: not a readable .npz of plain arrays ({error})") from error
    return tensors, text


def _read_checkpoint(path: Path) -> dict[str, Any]:
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if release < SAFE_TORCH:
        raise EdgettaError(
            f"weights {path}: torch {torch.__version__} cannot read checkpoints safely (2.6 or newer can); "
            "convert the file to .safetensors on another machine"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EdgettaError(
            f"weights {path}: not a checkpoint of plain tensors ({first[:200]}). Files that hold whole Python objects "
            "are refused: save `model.state_dict()` instead, or convert to .safetensors where you trust the file"
        ) from error
    if not isinstance(content, Mapping):
        raise EdgettaError(f"weights {path}: holds a {type(content).__name__}, not a dictionary of tensors")
    return dict(content)


def _tidy(path: Path, raw: dict[str, Any], text: dict[str, tuple[str, ...]]) -> Weights:
    """Unwrap, strip prefixes, drop dead weights, take the normalisation out."""
    while True:
        inner = next((raw[k] for k in WRAPPERS if isinstance(raw.get(k), Mapping)), None)
        if inner is None:
            break
        raw = dict(inner)
    tensors = {str(name): value for name, value in raw.items() if isinstance(value, Tensor)}
    if not tensors:
        known = ", ".join(sorted(str(k) for k in raw)[:8]) or "nothing"
        raise EdgettaError(f"weights {path}: no tensors in it (it holds {known})")
    mean = std = None
    while True:
        for mean_name, std_name in NORMALISATION_NAMES:
            if mean_name in tensors and std_name in tensors:
                mean = tuple(tensors.pop(mean_name).flatten().tolist())
                std = tuple(tensors.pop(std_name).flatten().tolist())
        prefix = next((p for p in (*PREFIXES, "1.") if tensors and all(n.startswith(p) for n in tensors)), None)
        if prefix is None:
            break
        tensors = {name[len(prefix) :]: value for name, value in tensors.items()}
    tensors = {n: t for n, t in tensors.items() if not n.startswith(DEAD_PREFIXES)}
    return Weights(str(path), tensors, mean, std, text)


def _mismatch(
    network: nn.Module,
    source: str,
    missing: list[str],
    unexpected: list[str],
    shapes: list[str],
    wanted: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
) -> str:
    lines = [f"weights {source} do not fit {type(network).__name__}:"]
    lines += _listed("missing from the file", missing, list(given))
    lines += _listed("in the file, unknown to the network", unexpected, list(wanted))
    if shapes:
        lines.append(f"  {len(shapes)} of another shape:")
        lines += [f"    {n}: network {tuple(wanted[n].shape)}, file {tuple(given[n].shape)}" for n in shapes[:8]]
        lines.append("  another width or number of classes? Give `width` or `num_classes`")
    return "\n".join(lines)


def _listed(title: str, names: list[str], others: list[str]) -> list[str]:
    if not names:
        return []
    lines = [f"  {len(names)} {title}:"]
    for name in names[:8]:
        near = difflib.get_close_matches(name, others, n=1, cutoff=0.6)
        lines.append(f"    {name}" + (f" (nearest: {near[0]})" if near else ""))
    return lines + ([f"    and {len(names) - 8} more"] if len(names) > 8 else [])
