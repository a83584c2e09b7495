"""Read a bundle: check every file, rebuild the graphs, and check that they fit together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edgetta.adaptation.adapter import AdaptConfig
from edgetta.adaptation.model import AdaptableModel, Gradient
from edgetta.adaptation.network import BatchNorm
from edgetta.bundle.files import BundleFiles, open_bundle
from edgetta.bundle.graphs import check_model, read_segment, read_source, read_tensors
from edgetta.bundle.malformed import malformed
from edgetta.bundle.manifest import KeptBytes, SegmentEntry
from edgetta.bundle.onnx_files import MAX_ONNX_BYTES, check_onnx
from edgetta.bundle.program_files import read_programs
from edgetta.bundle.reference import read_reference
from edgetta.engines.contract import ProgramSet
from edgetta.errors import BundleError, UsageError
from edgetta.memory.accuracy_costs import AccuracyCosts
from edgetta.memory.cost_model import CostModel
from edgetta.rate_law import RateLaw
from edgetta.segments.contract import SegmentGraphs
from edgetta.segments.onnx_agreement import read_agreeing
from edgetta.sources.resize import Resize

if TYPE_CHECKING:
    from edgetta.signature import Verifier


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every file was checked.

    path           as given: a folder, or a zip
    manifest       the content of `manifest.json`
    model          the derived graphs, engine-independent
    config         hyper-parameters of adaptation
    classes        names of the classes, None where they have none
    batch_norm     statistics policy that the meta-networks were warmed up with
    ema_images     time constant of running statistics, in images
    rate_law       which learning rate each batch size bears; None where it was not measured
    memory         by gradient mode: bytes kept between forward and backward
    cost_model     what a step takes in memory and time, as measured at export; None where it was not
    accuracy_costs what choices cost in accuracy, as measured when the model was prepared; None where it was not
    identity       SHA-256 that names this very bundle; state files are tied to it
    unlisted       files that lie in the bundle and are not part of it
    """

    path: Path
    manifest: Mapping[str, Any]
    model: AdaptableModel
    config: AdaptConfig
    classes: tuple[str, ...] | None
    batch_norm: BatchNorm
    ema_images: int
    preprocessing: Mapping[str, Any]
    rate_law: RateLaw | None
    memory: Mapping[Gradient, KeptBytes]
    cost_model: CostModel | None
    accuracy_costs: AccuracyCosts | None
    provenance: Mapping[str, Any]
    identity: str
    unlisted: tuple[str, ...]
    files: BundleFiles  # an extracted zip lives as long as this

    @property
    def name(self) -> str:
        return self.files.manifest.name

    @property
    def programs(self) -> ProgramSet:
        """The programs of the whole network, with what is shipped."""
        assert self.model.programs is not None  # read with the bundle
        return self.model.programs

    @property
    def has_batch_norm(self) -> bool:
        """Whether the backbone has BatchNorms, so that statistics are something to speak of."""
        segments = self.model.segments().values()
        return any(spec.normalised for spec in self.model.metas) or any(graphs.state for graphs in segments)

    @property
    def resize(self) -> Resize:
        """How pictures of any size become the model's input."""
        return Resize.from_json(self.preprocessing, self.model.input_shape[1:])

    def onnx(self, segment: str, direction: str = "forward") -> bytes:
        """The ONNX file of a segment ("stem", "part1", ..., "classifier", "source") in a direction, as it was checked.

        Raises `UsageError` where there is none, `BundleError` where it has changed since it was checked.
        """
        entry = self.entry(segment)
        if direction not in entry.onnx:
            raise UsageError(f"segment {segment!r} has no direction {direction!r}; it has {', '.join(entry.onnx)}")
        return bytes(self.files.read(entry.onnx[direction]))

    def meta_tensors(self) -> dict[str, Tensor]:
        """The shipped state of the network: meta-networks, running statistics, adaptable biases and weights."""
        tensors = read_tensors(self.files, self.files.manifest.meta_tensors)
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise BundleError(
                    f"tensor {name!r} in {self.files.manifest.meta_tensors} of bundle {self.path} holds values that "
                    "are not finite; export the bundle again"
                )
        return tensors

    def reference(self) -> dict[str, Tensor]:
        """Golden "images", "source_logits", "logits", and "gradient.NAME" of some parameters."""
        return read_reference(self.files, self.model)

    def entry(self, segment: str) -> SegmentEntry:
        """What the manifest says of a segment. Raises `UsageError` where there is none of that name."""
        manifest = self.files.manifest
        entries = {entry.name: entry for entry in (*manifest.segments, manifest.source)}
        if segment not in entries:
            raise UsageError(f"the bundle has no segment {segment!r}; it has {', '.join(entries)}")
        return entries[segment]


def read_bundle(path: str | os.PathLike[str], signed_by: Verifier | None = None) -> Bundle:
    """Open the bundle at `path`, a folder or a zip, and check all of it; with `signed_by`, that this key signed it.

    Raises `BundleError`, in one line that names the file and the remedy: a file that is missing, damaged, of another
    size, a link, or of a name that leaves the bundle; a newer schema; graphs, tensors and manifest that disagree.
    """
    files = open_bundle(Path(path), signed_by)
    try:
        with malformed(Path(path)):
            return assembled(files)
    except BaseException:
        files.discard()
        raise


def assembled(files: BundleFiles) -> Bundle:
    """Rebuild graphs and model from verified files, and check that they fit together."""
    path, manifest = files.path, files.manifest
    segments = {entry.name: read_segment(files, entry) for entry in manifest.segments}
    model = AdaptableModel(
        segments["stem"],
        tuple(segments[f"part{k}"] for k in range(1, len(manifest.metas) + 1)),
        segments["classifier"],
        read_source(files, manifest.source),
        manifest.metas,
        manifest.cuts,
        manifest.input_shape,
        manifest.classes,
        manifest.batch_norm,
        read_programs(files, manifest.programs, manifest.input_shape, manifest.classes),
    )
    check_model(model, path)
    for entry in manifest.segments:
        _check_onnx_files(files, entry, segments[entry.name])
    _check_onnx_files(files, manifest.source, SegmentGraphs(model.source, None, None))
    if manifest.batch_norm == "source" and manifest.policy not in ("auto", "source"):
        raise BundleError(
            f"bundle {path}: folded BatchNorms cannot follow policy {manifest.policy!r}; export it again"
        )
    return Bundle(
        path=path,
        manifest=manifest.data,
        model=model,
        config=manifest.config,
        classes=manifest.class_names,
        batch_norm=manifest.policy,
        ema_images=manifest.ema_images,
        preprocessing=manifest.preprocessing,
        rate_law=manifest.rate_law,
        memory=manifest.memory,
        cost_model=manifest.cost_model,
        accuracy_costs=manifest.accuracy_costs,
        provenance=manifest.provenance,
        identity=manifest.identity,
        unlisted=files.unlisted,
        files=files,
    )


def _check_onnx_files(files: BundleFiles, entry: SegmentEntry, segment: SegmentGraphs) -> None:
    """An ONNX file takes weights from the segment's tensor file alone, and is its graph, node by node."""
    graphs = {"forward": segment.forward, "backward": segment.backward, "recompute": segment.recompute}
    weights = files.manifest.files[entry.tensors].size
    for direction, name in entry.onnx.items():
        where = f"{name} in bundle {files.path}"
        if files.manifest.files[name].size > MAX_ONNX_BYTES:
            raise BundleError(f"{where} is larger than the {MAX_ONNX_BYTES} bytes allowed; export the bundle again")
        if Path(name).parent != Path(entry.tensors).parent:
            raise BundleError(f"{where} must lie beside {entry.tensors}; export the bundle again")
        graph, data = graphs[direction], bytes(files.read(name))
        try:
            if graph is None:
                raise ValueError("there is none")
            read_agreeing(data, graph)
        except ValueError as error:
            raise BundleError(
                f"{where} is not the {direction} graph of {entry.graphs}: {error}; export the bundle again"
            ) from error
        check_onnx(data, Path(entry.tensors).name, weights, where)
