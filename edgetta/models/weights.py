"""Reading trained weights from a file, without ever running what is in it, and putting them strictly into a network.

Three kinds of file: `.safetensors`, `.npz` (without pickle) and torch checkpoints (weights only). Checkpoints come
wrapped (`state_dict`, `model`, `net`) and prefixed (`module.`); names that the projects spell differently are mapped
by an explicit table. Whatever is then missing or unexpected is an error that lists the names.
"""

from __future__ import annotations

import argparse
import difflib
import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgetta.errors import EdgettaError, one_line
from edgetta.models.checkpoint_settings import CheckpointSettings, read_settings
from edgetta.models.normalise import Constants

# From this torch on, weights_only=True keeps its promise; before, a file could still run code (CVE-2025-32434).
SAFE_TORCH = (2, 6)
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "last")
PREFIXES = ("module.", "model.", "net.", "_orig_mod.", "1.")
# Input normalisation by the names that projects give it: this project's data, RobustBench, RiFT's wrapper, others.
CONSTANTS = (
    ("input_mean", "input_std"),
    ("mu", "sigma"),
    ("mean", "std"),
    ("0.mean", "0.std"),
    ("normalize.mean", "normalize.std"),
)
# Weights that published checkpoints carry and no forward pass uses (wide ResNets of TRADES, RiFT and RobustBench).
DEAD_PREFIXES = ("sub_block1.",)
SHOWN = 2  # names given per kind in an error
_CONSTANT_NAMES = frozenset(name for pair in CONSTANTS for name in pair)


@dataclass(frozen=True)
class Weights:
    """What a weight file holds, unwrapped: tensors by name, the string arrays of an .npz, what training was told."""

    source: str
    tensors: Mapping[str, Tensor]
    text: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    settings: CheckpointSettings = field(default_factory=CheckpointSettings)


def read_weights(path: str | Path) -> Weights:
    """Read `.safetensors`, `.npz`, or a torch checkpoint, never unpickling arbitrary objects.

    Raises EdgettaError where the file is absent, damaged, of another kind, holds no tensors, or needs code to be read.
    """
    path = Path(path)
    if not path.is_file():
        raise EdgettaError(f"weights {path}: no such file")
    _refuse_other_files(path)
    text: dict[str, tuple[str, ...]] = {}
    if path.suffix == ".safetensors":
        raw: dict[str, Any] = _read_safetensors(path)
    elif path.suffix == ".npz":
        raw, text = _read_npz(path)
    else:
        raw = _read_checkpoint(path)
    return Weights(str(path), _unwrapped(path, raw), text, read_settings(raw))


def without_prefixes(weights: Weights, names: Collection[str]) -> Weights:
    """Strip what wrappers put before every name: `module.`, `model.`, `net.`, `1.` of a Sequential with normalisation.

    `names` are the network's. The prefix with which the file has most of them is stripped, and what lies outside it
    (a counter of averages, weights of a loss) is left out. Where it has none of them, a prefix that all names share is
    stripped, and the spelling is left to others.
    """
    tensors = dict(weights.tensors)
    wanted = set(names)
    found = {
        prefix: sum(name.removeprefix(prefix) in wanted for name in tensors if name.startswith(prefix))
        for prefix in _prefixes(tensors)
    }
    best = max(found, key=lambda prefix: (found[prefix], -len(prefix)))
    if best and found[best]:
        tensors = {name: value for name, value in tensors.items() if name in _CONSTANT_NAMES} | {
            name.removeprefix(best): value for name, value in tensors.items() if name.startswith(best)
        }
    while tensors and not any(name in names for name in tensors):
        bare = [name for name in tensors if name not in _CONSTANT_NAMES]
        prefix = next((p for p in PREFIXES if bare and all(name.startswith(p) for name in bare)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return replace(weights, tensors=tensors)


def _prefixes(names: Collection[str]) -> list[str]:
    """Every chain of known prefixes that some name begins with, "" among them."""
    chains = [""]
    for chain in chains:
        chains += [chain + p for p in PREFIXES if any(name.startswith(chain + p) for name in names)]
    return chains


def classes_of(weights: Weights, network: nn.Module) -> int | None:
    """The number of classes of the file's network, where its classifier alone is of another shape than this network's.

    `weights` without prefixes. The classifier is what differs in its first dimension, by the same number everywhere.
    """
    wanted = network.state_dict()
    other = [name for name, value in weights.tensors.items() if name in wanted and wanted[name].shape != value.shape]
    shapes = [(tuple(wanted[name].shape), tuple(weights.tensors[name].shape)) for name in other]
    if not shapes or any(not ours or not theirs or ours[1:] != theirs[1:] for ours, theirs in shapes):
        return None
    if len({ours[0] for ours, _ in shapes}) > 1 or len({theirs[0] for _, theirs in shapes}) > 1:
        return None
    classes = shapes[0][1][0]
    return classes if classes >= 2 else None


def put_weights(network: nn.Module, weights: Weights) -> Constants | None:
    """Copy every tensor into the network, in place; every name and shape must match.

    Returns the input normalisation (mean, std) if the file says one. Raises EdgettaError that counts missing and
    unexpected names and shapes that differ, with the first of each kind and its nearest match.
    """
    wanted, given = network.state_dict(), dict(weights.tensors)
    constants = None
    for pair in CONSTANTS:
        if all(name in given and name not in wanted for name in pair):
            mean, std = (tuple(given.pop(name).flatten().tolist()) for name in pair)
            constants = (mean, std)
    given = {name: value for name, value in given.items() if name in wanted or not name.startswith(DEAD_PREFIXES)}
    for name in wanted:
        if name.endswith("num_batches_tracked"):
            given.setdefault(name, wanted[name])
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    shapes = [name for name in wanted if name in given and wanted[name].shape != given[name].shape]
    if missing or unexpected or shapes:
        differences = [
            *_listed("missing from the file", missing, list(given)),
            *_listed("unknown to the network", unexpected, list(wanted)),
            *_of_another_shape(shapes, wanted, given),
        ]
        raise EdgettaError(
            f"weights {weights.source} do not fit {type(network).__name__}: {'; '.join(differences)}. "
            "Is it another network, width or number of classes?"
        )
    infinite = [name for name, value in given.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if infinite:
        raise EdgettaError(
            f"weights {weights.source}: {infinite[0]} has values that are not finite; the file is damaged"
        )
    for name in wanted:
        if wanted[name].is_floating_point() and not given[name].is_floating_point():
            raise EdgettaError(
                f"weights {weights.source}: {name} holds {_dtype(given[name])} where the network has floats; where "
                "they are codes of a quantised network, multiply them by their scales before saving"
            )
    network.load_state_dict({name: given[name] for name in wanted})
    return constants


def require_safe_torch(what: str) -> None:
    """Raise EdgettaError where this torch cannot be trusted to read a pickled file without running it."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < SAFE_TORCH:
        raise EdgettaError(
            f"{what}: torch {torch.__version__} cannot read it safely (2.6 or newer can); "
            "convert the weights to .safetensors on another machine"
        )


def _refuse_other_files(path: Path) -> None:
    """Raise EdgettaError that says what a file is that is certainly no weights."""
    try:
        with path.open("rb") as file:
            start = file.read(256)
        names = zipfile.ZipFile(path).namelist() if start.startswith(b"PK") else []
    except (OSError, zipfile.BadZipFile):
        return  # the reader says what is wrong
    text = start.lstrip().lower()
    what = ""
    if not start:
        what = "is empty; copy it again"
    elif start.startswith(b"version https://git-lfs"):
        what = "is a Git LFS pointer, not the weights; fetch them with `git lfs pull`"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml")):
        what = "is a web page; what was downloaded is not the weights"
    elif path.suffix == ".onnx":
        what = "is an ONNX network; give the torch checkpoint that it was made from"
    elif any("/code/__torch__" in name for name in names):
        what = "is a TorchScript program; save its weights with torch.save(torch.jit.load(FILE).state_dict(), OTHER)"
    elif any(name.endswith("serialized_exported_program.json") or "/models/" in name for name in names):
        what = "is a program of torch.export; give it as the model, with a name that ends in .pt2"
    if what:
        raise EdgettaError(f"weights {path}: the file {what}")


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
                    # ascontiguousarray makes a number without axes a list of one.
                    tensors[name] = torch.from_numpy(np.ascontiguousarray(array)).reshape(array.shape)
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise EdgettaError(f"weights {path}: not a readable .npz of plain arrays ({error})") from error
    return tensors, text


def _read_checkpoint(path: Path) -> dict[str, Any]:
    require_safe_torch(f"weights {path}")
    try:
        with torch.serialization.safe_globals(_harmless()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise EdgettaError(
            f"weights {path}: not a checkpoint of plain tensors{_object_in(error)}. Whole Python objects are refused, "
            "because reading them runs code: save `model.state_dict()` instead, or convert to .safetensors where you "
            "trust the file"
        ) from error
    except Exception as error:
        raise EdgettaError(
            f"weights {path}: no readable checkpoint ({one_line(error)}); it may be cut short, so copy it again"
        ) from error
    if not isinstance(content, Mapping):
        raise EdgettaError(f"weights {path}: holds a {type(content).__name__}, not a dictionary of tensors")
    return dict(content)


def _object_in(error: pickle.UnpicklingError) -> str:
    """What torch says it met; the rest of its message advises to read the file in spite of that."""
    found = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))
    return f" (it holds {found[1]})" if found else ""


def _harmless() -> list[Any]:
    """What training scripts store beside the weights and cannot run anything: their arguments, and numpy numbers."""
    scalar = np.float64(0).__reduce__()[0]
    numbers = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [argparse.Namespace, np.dtype, *numbers, *((scalar, name) for name in names)]


def _unwrapped(path: Path, raw: dict[str, Any]) -> dict[str, Tensor]:
    """The dictionary of tensors inside the dictionaries around it."""
    while True:
        inner = next((raw[key] for key in WRAPPERS if isinstance(raw.get(key), Mapping)), None)
        if inner is None:
            break
        raw = dict(inner)
    tensors = {str(name): _plain(path, name, value) for name, value in raw.items() if isinstance(value, Tensor)}
    if not tensors:
        held = ", ".join(sorted(str(key) for key in raw)[:8]) or "nothing"
        raise EdgettaError(f"weights {path}: no tensors in it (it holds {held})")
    return tensors


def _plain(path: Path, name: str, tensor: Tensor) -> Tensor:
    """A tensor as an ordinary one: dequantised, dense, and no float smaller than 16 bits.

    Raises EdgettaError where it has no values, or complex ones.
    """
    if tensor.is_meta:
        raise EdgettaError(f"weights {path}: {name} has a shape and no values (device meta); save the model with them")
    if tensor.is_complex():
        raise EdgettaError(f"weights {path}: {name} holds {_dtype(tensor)} numbers, which no layer here takes")
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    small = tensor.is_floating_point() and tensor.element_size() < 2
    return tensor.float() if small else tensor


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _of_another_shape(names: list[str], wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    shown = [f"{n} ({tuple(wanted[n].shape)}, in the file {tuple(given[n].shape)})" for n in names[:SHOWN]]
    return [f"{len(names)} of another shape: {_joined(shown, len(names))}"] if names else []


def _listed(title: str, names: list[str], others: list[str]) -> list[str]:
    shown = []
    for name in names[:SHOWN]:
        near = difflib.get_close_matches(name, others, n=1, cutoff=0.6)
        shown.append(name + (f" (nearest: {near[0]})" if near else ""))
    return [f"{len(names)} {title}: {_joined(shown, len(names))}"] if names else []


def _joined(shown: list[str], count: int) -> str:
    return ", ".join(shown) + (f" and {count - len(shown)} more" if count > len(shown) else "")
