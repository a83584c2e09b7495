"""Write the programs of a network as a bundle: a folder, or a zip of it, all of it or nothing.

The files are described in `edgetta.bundle.manifest`. Weights are stored once, as safetensors, whichever programs read
them.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import secrets
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor

from edgetta import __version__
from edgetta.adaptation.config import AdaptConfig
from edgetta.adaptation.content import ContentModel
from edgetta.bundle import SelfTest, open_engine, processor_engines, read_bundle, self_test
from edgetta.bundle.manifest import FORMAT, MANIFEST, PROGRAMS, SCHEMA, seal
from edgetta.bundle.program_files import SHIPPED, SOURCE_MEAN, SOURCE_VARIANCE, describe_layout
from edgetta.bundle.reference import golden_run
from edgetta.engines.contract import ProgramSet
from edgetta.engines.torch import TorchEngine
from edgetta.errors import BundleError, EdgettaError, UsageError
from edgetta.memory.accuracy_costs import AccuracyCosts
from edgetta.memory.cost_model import CostModel
from edgetta.offline.source_statistics import synthetic_images
from edgetta.rate_law import RateLaw
from edgetta.segments.graph import Graph
from edgetta.signature import SIGNATURE
from edgetta.storage import atomic_write, storage_error

GOLDEN_IMAGES = 8
GOLDEN_ELEMENTS = 1 << 17  # in all; larger images are fewer, but two at least: the self-test runs at every start
PREPROCESSING = {"layout": "NCHW", "channels": "RGB", "range": [0, 1], "normalisation": "in the model"}
PROGRAMS_FOLDER = "programs"
CONTENT = "content.safetensors"
REFERENCE = "reference.npz"


@dataclass(frozen=True)
class Shipment:
    """What a bundle is made of: a network ready to be adapted.

    programs     with what is shipped
    cuts         module names after which the backbone was cut
    batch_norm   "adaptive": the frozen BatchNorms take statistics from the stream; "source": they are folded
    content      what content explains of the network's moments; None where no source images were given
    """

    programs: ProgramSet
    cuts: tuple[str, ...]
    batch_norm: Literal["adaptive", "source"] = "adaptive"
    content: ContentModel | None = None


def write_bundle(
    path: str | os.PathLike[str],
    shipment: Shipment,
    *,
    name: str,
    config: AdaptConfig,
    classes: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    rate_law: RateLaw | Mapping[str, Any] | None = None,
    accuracy_costs: AccuracyCosts | None = None,
    golden: Tensor | None = None,
    overwrite: bool = False,
    measure: Callable[[Path], CostModel | None] | None = None,
) -> dict[str, SelfTest]:
    """Write the bundle at `path`: a zip where the name ends in `.zip`, else a folder.

    name            of the model, for people
    config          hyper-parameters of adaptation on the device
    classes         names of the classes, in the order of the logits
    preprocessing   what must happen to a frame before it is an image in [0, 1]; added to `PREPROCESSING`
    provenance      where model, weights and warm-up came from; JSON-compatible
    rate_law        learning rate by batch size, or `to_json` of it
    accuracy_costs  what a plan's choices cost in accuracy, where it was measured
    golden          images (N, C, H, W) in [0, 1] for the self-test; synthetic ones when None. They are shipped
    overwrite       replace a bundle that is there; anything else that is there is never replaced
    measure         makes the cost model of the finished bundle at a path, which is then shipped with it

    It is built beside `path`, read back, self-tested on the engines that are here, and renamed: after a failure `path`
    is as it was. Returns what the self-test found, by engine.
    Raises `UsageError` for arguments that do not fit together or a path that is taken, `StorageError` when the disk is
    full and the like, `BundleError` when what was written fails its checks.
    """
    programs = shipment.programs
    if classes is not None and len(classes) != programs.classes:
        raise UsageError(f"{len(classes)} class names were given for a model with {programs.classes} classes")
    target = Path(os.path.realpath(path))
    zipped = target.suffix.lower() == ".zip"
    _check_target(target, zipped, overwrite)
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir()
        writer = _Writer(temporary)
        entry = writer.programs(programs)
        if shipment.content is not None:
            writer.write(CONTENT, save(shipment.content.arrays()))
        writer.write(REFERENCE, _reference(programs, golden))
        manifest = {
            "format": FORMAT,
            "schema": SCHEMA,
            "name": name,
            "versions": {"edgetta": __version__, "torch": str(torch.__version__)},
            "input": {"shape": list(programs.input_shape), "dtype": "float32"},
            "classes": {"count": programs.classes, "names": None if classes is None else list(classes)},
            "preprocessing": {**PREPROCESSING, **(preprocessing or {})},
            "cuts": list(shipment.cuts),
            "batch_norm": shipment.batch_norm,
            "adaptation": asdict(config),
            "rate_law": rate_law.to_json() if isinstance(rate_law, RateLaw) else rate_law,
            "accuracy_costs": None if accuracy_costs is None else accuracy_costs.to_json(),
            "cost_model": None,
            "programs": entry,
            "content": None if shipment.content is None else CONTENT,
            "reference": REFERENCE,
            "provenance": dict(provenance or {}),
            "files": writer.files,
        }
        writer.finish(manifest)
        tested = _check_what_was_written(temporary, target)
        costs = None if measure is None else measure(temporary)
        if costs is not None:
            (temporary / MANIFEST).unlink()
            writer.finish({**manifest, "cost_model": costs.to_json()})
        if zipped:
            atomic_write(target, lambda file: _zip(temporary, file))
        else:
            _put_in_place(temporary, target)
        return tested
    except OSError as error:
        raise storage_error(error, target) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Writer:
    """Writes files into a folder and remembers size and SHA-256 of each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, dict[str, Any]] = {}
        (folder / PROGRAMS_FOLDER).mkdir()

    def write(self, name: str, data: bytes) -> None:
        _write(self.folder / name, data)
        self.files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def programs(self, programs: ProgramSet) -> dict[str, Any]:
        """Write the files of the programs, with what is shipped; returns their entry in the manifest."""
        tensors: dict[str, Any] = {
            SHIPPED: programs.shipped,
            SOURCE_MEAN: programs.source.mean,
            SOURCE_VARIANCE: programs.source.variance,
        }
        graphs: dict[str, Graph] = {name: getattr(programs, name) for name in PROGRAMS}
        constants: dict[str, Tensor] = {}
        for graph in graphs.values():
            for name, tensor in graph.constants.items():
                if not _same(constants.setdefault(name, tensor), tensor):
                    raise EdgettaError(f"two programs give {name!r} different values; report this")
        tensors |= {name: tensor.numpy() for name, tensor in _owned(constants).items()}
        self.write(f"{PROGRAMS_FOLDER}/weights.safetensors", save(tensors))
        self.write(f"{PROGRAMS_FOLDER}/layout.json", _json(describe_layout(programs)))
        for name, graph in graphs.items():
            self.write(f"{PROGRAMS_FOLDER}/{name}.json", _json(graph.to_json()))
        return {
            "graphs": {name: f"{PROGRAMS_FOLDER}/{name}.json" for name in graphs},
            "layout": f"{PROGRAMS_FOLDER}/layout.json",
            "tensors": f"{PROGRAMS_FOLDER}/weights.safetensors",
        }

    def finish(self, manifest: Mapping[str, Any]) -> None:
        try:
            data = seal(manifest)
        except (TypeError, ValueError) as error:
            raise UsageError(f"provenance, preprocessing or rate law is not JSON: {error}") from error
        _write(self.folder / MANIFEST, data)


def _reference(programs: ProgramSet, golden: Tensor | None) -> bytes:
    """Golden images, logits and gradients, in float64 on the torch engine, as the bytes of `reference.npz`."""
    shape = programs.input_shape
    if golden is None:
        count = max(2, min(GOLDEN_IMAGES, GOLDEN_ELEMENTS // math.prod(shape)))
        golden = next(synthetic_images(shape, count=count, batch=count))
    if golden.dim() != 4 or tuple(golden.shape[1:]) != shape or golden.shape[0] < 1:
        raise UsageError(f"golden images have shape {tuple(golden.shape)}, not (N, {shape})")
    images = golden.detach().cpu().float().numpy()
    found = golden_run(TorchEngine(programs, torch.float64, pack=False), images)
    for key, array in found.items():
        if not bool(np.isfinite(array).all()):
            raise UsageError(f"the network's {key} is not finite on the golden images; it cannot be shipped")
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"images": images, **{name: array.astype(np.float32) for name, array in found.items()}}
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that share no memory, as safetensors wants them: float32, but int8 stays int8."""
    return {
        k: t.detach().cpu().to(torch.int8 if t.dtype == torch.int8 else torch.float32, copy=True).contiguous()
        for k, t in tensors.items()
    }


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or torch.equal(a.float(), b.float())


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _check_target(target: Path, zipped: bool, overwrite: bool) -> None:
    """Raise `UsageError` unless `target` is free, an empty folder, or a bundle and nothing else."""
    if not target.exists():
        return
    if not overwrite:
        raise UsageError(f"{target} exists already; choose another path, or overwrite it explicitly")
    if target.is_dir() and not zipped and not any(target.iterdir()):
        return
    listed = _listed_files(target) if target.is_dir() != zipped else None
    if listed is None:
        raise UsageError(f"{target} is not a bundle and will not be overwritten; choose another path")
    if not zipped:
        present = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_symlink() or not p.is_dir()}
        for other in sorted(present - listed):
            raise UsageError(f"{target} holds {other!r}, which is not part of the bundle; move it away first")


def _listed_files(target: Path) -> set[str] | None:
    """Names of the files of the bundle at `target`, `manifest.json` among them; None where there is no bundle."""
    try:
        if target.is_dir():
            raw = (target / MANIFEST).read_bytes()
        else:
            with zipfile.ZipFile(target) as archive:
                raw = archive.read(MANIFEST)
        data = json.loads(raw)
        return {*data["files"], MANIFEST, SIGNATURE} if data["format"] == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None


def _check_what_was_written(temporary: Path, target: Path) -> dict[str, SelfTest]:
    """A bundle that fails on the machine that wrote it would fail on every device."""
    try:
        bundle = read_bundle(temporary)
        return {engine: self_test(bundle, open_engine(bundle, engine)) for engine in processor_engines()}
    except BundleError as error:
        raise BundleError(str(error).replace(str(temporary), str(target))) from error


def _put_in_place(temporary: Path, target: Path) -> None:
    """Rename the finished folder to `target`; an earlier bundle is put back if that fails."""
    if not target.exists():
        temporary.rename(target)
        return
    earlier = target.with_name(f"{temporary.name}.old")
    target.rename(earlier)
    try:
        temporary.rename(target)
    except BaseException:
        with suppress(OSError):
            earlier.rename(target)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def _zip(folder: Path, file: BinaryIO) -> None:
    """Stored, not compressed (weights hardly shrink), in sorted order and without dates: same content, same bytes."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    names.sort(key=lambda name: name != MANIFEST)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as out:
        for name in names:
            out.writestr(zipfile.ZipInfo(name), (folder / name).read_bytes())
