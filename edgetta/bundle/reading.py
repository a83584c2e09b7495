"""Read a bundle: check every file, rebuild the programs, and check that they fit together. Nothing imports torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgetta.adaptation.config import AdaptConfig
from edgetta.adaptation.content import ContentModel
from edgetta.bundle.files import BundleFiles, open_bundle
from edgetta.bundle.malformed import malformed
from edgetta.bundle.program_files import read_programs
from edgetta.bundle.reference import read_reference
from edgetta.engines.contract import Array, ProgramSet
from edgetta.errors import BundleError, one_line
from edgetta.memory.accuracy_costs import AccuracyCosts
from edgetta.memory.cost_model import CostModel
from edgetta.rate_law import RateLaw
from edgetta.sources.resize import Resize
from edgetta.tensor_file import parse_tensors

MAX_CONTENT_BYTES = 1 << 30

if TYPE_CHECKING:
    from edgetta.signature import Verifier


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every file was checked.

    path           as given: a folder, or a zip
    manifest       the content of `manifest.json`
    programs       of the whole network, with what is shipped
    content        what content explains of the network's moments; None where no source images were given
    config         hyper-parameters of adaptation
    classes        names of the classes, None where they have none
    cuts           module names after which the backbone was cut
    batch_norm     "adaptive": the frozen BatchNorms take statistics from the stream; "source": they are folded
    rate_law       which learning rate each batch size bears; None where it was not measured
    cost_model     what a step takes in memory and time, as measured at export; None where it was not
    accuracy_costs what choices cost in accuracy, as measured when the model was prepared; None where it was not
    identity       SHA-256 that names this very bundle; state files are tied to it
    unlisted       files that lie in the bundle and are not part of it
    """

    path: Path
    manifest: Mapping[str, Any]
    programs: ProgramSet
    content: ContentModel | None
    config: AdaptConfig
    classes: tuple[str, ...] | None
    cuts: tuple[str, ...]
    batch_norm: Literal["adaptive", "source"]
    preprocessing: Mapping[str, Any]
    rate_law: RateLaw | None
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
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.programs.input_shape

    @property
    def class_count(self) -> int:
        return self.programs.classes

    @property
    def has_batch_norm(self) -> bool:
        """Whether the backbone has BatchNorms, so that statistics are something to speak of."""
        layers = self.programs.statistics.shapes
        return any(not name.startswith("metas.") or name.endswith(".norm") for name in layers)

    @property
    def resize(self) -> Resize:
        """How pictures of any size become the model's input."""
        return Resize.from_json(self.preprocessing, self.input_shape[1:])

    @property
    def precision(self) -> Literal["fp32", "int8"]:
        """What the backbone's convolutions and linear layers compute in."""
        return "int8" if self.programs.predict.quantised else "fp32"

    def kept_bytes(self, images: int) -> int:
        """Bytes that lie between the forward and the backward of an update on so many images."""
        return sum(residual.kept_bytes(images) for residual in self.programs.residuals)

    def reference(self) -> dict[str, Array]:
        """Golden "images", "logits", "mixed_logits", and "gradient.NAME" of some parameters."""
        return read_reference(self.files, self.programs)


def read_bundle(path: str | os.PathLike[str], signed_by: Verifier | None = None) -> Bundle:
    """Open the bundle at `path`, a folder or a zip, and check all of it; with `signed_by`, that this key signed it.

    Raises `BundleError`, in one line that names the file and the remedy: a file that is missing, damaged, of another
    size, a link, or of a name that leaves the bundle; another schema; graphs, tensors and manifest that disagree.
    """
    files = open_bundle(Path(path), signed_by)
    try:
        with malformed(Path(path)):
            return assembled(files)
    except BaseException:
        files.discard()
        raise


def assembled(files: BundleFiles) -> Bundle:
    """Rebuild the programs from verified files, and check that everything fits together."""
    manifest = files.manifest
    programs = read_programs(files, manifest.programs, manifest.input_shape, manifest.classes)
    return Bundle(
        path=files.path,
        manifest=manifest.data,
        programs=programs,
        content=_content(files, programs),
        config=manifest.config,
        classes=manifest.class_names,
        cuts=manifest.cuts,
        batch_norm=manifest.batch_norm,
        preprocessing=manifest.preprocessing,
        rate_law=manifest.rate_law,
        cost_model=manifest.cost_model,
        accuracy_costs=manifest.accuracy_costs,
        provenance=manifest.provenance,
        identity=manifest.identity,
        unlisted=files.unlisted,
        files=files,
    )


def _content(files: BundleFiles, programs: ProgramSet) -> ContentModel | None:
    name = files.manifest.content
    if name is None:
        return None
    where = f"{name} in bundle {files.path}"
    if files.manifest.files[name].size > MAX_CONTENT_BYTES:
        raise BundleError(f"{where} is larger than the {MAX_CONTENT_BYTES} bytes allowed; export the bundle again")
    try:
        arrays = parse_tensors(files.read(name), ("F32", "F16", "I32"))[0]
        model = ContentModel.from_arrays(arrays, programs.statistics.size, programs.classes)
        if len(model.spread) not in (2 * programs.input_shape[0], 2 * programs.input_shape[0] + 2):
            raise ValueError("the content model knows signals of other images")
    except (ValueError, KeyError) as error:
        raise BundleError(f"{where} cannot be used: {one_line(error)}; export the bundle again") from error
    return model
