"""A small bundle for the tests, written once per session, and ways to damage a copy of it."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgetta.adaptation.config import AdaptConfig
from edgetta.adaptation.content import ContentModel, fit_content
from edgetta.adaptation.signals import image_signals
from edgetta.bundle import read_bundle
from edgetta.bundle.manifest import seal
from edgetta.engines.contract import ProgramSet
from edgetta.errors import BundleError
from edgetta.export.bundle_writer import Shipment, write_bundle
from tests.adaptation.backbones import SmallNet, small_programs
from tests.adaptation.pictures import pictures

ENGINES = ("torch", "onnxruntime")
NAMES = ("zero", "one", "two", "three", "four")


def small_content(programs: ProgramSet) -> ContentModel:
    """A content model that explains little, of made-up source images around the statistics of training."""
    rng = np.random.default_rng(11)
    probabilities = rng.dirichlet(np.full(programs.classes, 0.3), 400)
    mean, deviation = programs.source.mean, np.sqrt(programs.source.variance)
    means = mean + 0.3 * deviation * rng.standard_normal((400, len(mean)))
    variances = programs.source.variance * np.exp(0.2 * rng.standard_normal((400, len(mean))))
    return fit_content(probabilities, means, variances, image_signals(pictures(400, 12)))


def write_small(path: Path, programs: ProgramSet | None = None, **options: Any) -> Path:
    """Write the small bundle at `path`."""
    programs = programs or small_programs()
    arguments: dict[str, Any] = {
        "name": "small",
        "config": AdaptConfig(learning_rate=3e-3, when="every 2", hold_back=False),
        "classes": NAMES,
        "provenance": {"weights": "seeded"},
        **options,
    }
    content = arguments.pop("content") if "content" in arguments else small_content(programs)
    write_bundle(path, Shipment(programs, SmallNet.cuts, "adaptive", content), **arguments)
    return path


@functools.cache
def whole_bundle() -> Path:
    """A small bundle that no test changes, written once and removed when the tests end."""
    folder = tempfile.mkdtemp(prefix="edgetta-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write_small(Path(folder) / "small")


def copy_of_it(path: Path) -> Path:
    """A copy to damage, at `path`."""
    return Path(shutil.copytree(whole_bundle(), path))


def refused(path: Path, *words: str) -> str:
    """The one line with which reading `path` fails; it must hold all of `words`."""
    with pytest.raises(BundleError) as error:
        read_bundle(path)
    line = str(error.value)
    assert "\n" not in line and len(line) < 1000
    for word in words:
        assert word in line, f"{word!r} is not in: {line}"
    return line


def names(bundle: Path) -> list[str]:
    """All files of a bundle that is a folder."""
    return sorted(file.relative_to(bundle).as_posix() for file in bundle.rglob("*") if file.is_file())


def edit_manifest(bundle: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as a forger would: sealed again."""
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    del manifest["manifest_sha256"]
    edit(manifest)
    (bundle / "manifest.json").write_bytes(seal(manifest))


def replace_file(bundle: Path, name: str, data: bytes) -> None:
    """Change a file as a forger would: with its size and hash in the manifest."""
    (bundle / name).write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_manifest(bundle, lambda manifest: manifest["files"].update({name: entry}))


def edit_graphs(bundle: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the JSON of a program as a forger would."""
    graphs = json.loads((bundle / name).read_bytes())
    edit(graphs)
    replace_file(bundle, name, json.dumps(graphs).encode())


def zipped(
    bundle: Path,
    path: Path,
    prefix: str = "",
    compression: int = zipfile.ZIP_STORED,
    more: Mapping[str, bytes] | None = None,
) -> Path:
    """A zip of the bundle, as a file manager makes it, and `more` files in it."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in names(bundle):
            archive.write(bundle / name, prefix + name)
        for name, data in (more or {}).items():
            archive.writestr(name, data)
    return path
