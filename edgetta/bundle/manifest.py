"""The manifest of a bundle: schema version 2, parsed strictly.

`manifest.json` ends with a line that holds the SHA-256 of everything before it, so that a damaged manifest is noticed
too. The hash guards against damage, not against a forger, who can compute it as well: whatever the manifest says is
checked against limits and against the files.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar, get_args

from edgetta.adaptation.config import AdaptConfig
from edgetta.bounded_json import parse_json
from edgetta.errors import BundleError, EdgettaError
from edgetta.memory.accuracy_costs import AccuracyCosts
from edgetta.memory.cost_model import CostModel
from edgetta.rate_law import RateLaw
from edgetta.signature import SIGNATURE
from edgetta.sources.resize import Resize
from edgetta.storage import StorageError, safe_name

FORMAT = "edgetta.bundle"
SCHEMA = 2
"""1 was one of frozen segments, with its meta-networks in torch."""
MANIFEST = "manifest.json"
PROGRAMS = ("predict", "measure", "forward", "backward", "recompute")

MAX_MANIFEST_BYTES = 8 << 20
MAX_FILES = 4096
MAX_TOTAL_BYTES = 16 << 30
MAX_TEXT_BYTES = 32 << 20  # of all JSON, which takes seconds to read by the ten million bytes
MAX_SIDE = 1 << 16
MAX_SETTING = 1 << 16  # a number among the settings of adaptation; images in a window above all

BatchNormForm = Literal["adaptive", "source"]

_SEAL = re.compile(rb',\n  "manifest_sha256": "([0-9a-f]{64})"\n}\n')
_SEAL_BYTES = len(',\n  "manifest_sha256": ""\n}\n') + 64
_SHA256 = re.compile(r"[0-9a-f]{64}")
_AGAIN = "copy the bundle again, or export it again"

_SETTING_TYPES: Mapping[type, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str,),
    type(None): (int, float, type(None)),
}
"""Types that a setting may have, by the type of its default."""

T = TypeVar("T")


@dataclass(frozen=True)
class FileEntry:
    """What the manifest promises about one file."""

    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class ProgramsEntry:
    """The files of the whole-network programs: a graph each, what they have in common, and the weights of all."""

    graphs: Mapping[str, str]
    layout: str
    tensors: str


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`, each field with the type that it must have.

    `data` is the whole of it as read, `identity` the SHA-256 that names this very bundle.
    """

    data: Mapping[str, Any]
    identity: str
    name: str
    edgetta: str
    torch: str
    input_shape: tuple[int, int, int]
    classes: int
    class_names: tuple[str, ...] | None
    preprocessing: Mapping[str, Any]
    programs: ProgramsEntry
    content: str | None
    cuts: tuple[str, ...]
    batch_norm: BatchNormForm
    config: AdaptConfig
    rate_law: RateLaw | None
    cost_model: CostModel | None
    accuracy_costs: AccuracyCosts | None
    provenance: Mapping[str, Any]
    reference: str
    files: Mapping[str, FileEntry]


def seal(data: Mapping[str, Any]) -> bytes:
    """The bytes of `manifest.json` for its content. Raises `ValueError` for what JSON cannot hold (NaN, infinity)."""
    body = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False).encode()[: -len("\n}")]
    return body + f',\n  "manifest_sha256": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()


def parse_manifest(raw: bytes, bundle: Path) -> Manifest:
    """Check the bytes of `manifest.json` of the bundle at `bundle` and give its fields types.

    Raises `BundleError`: not JSON, damaged, not a bundle's, of a newer schema, or a field that is missing or wrong.
    """
    where = f"{MANIFEST} of bundle {bundle}"
    try:
        data = parse_json(raw, MAX_MANIFEST_BYTES)
    except ValueError as error:
        raise BundleError(f"{where} is not JSON ({error}); {_AGAIN}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise BundleError(f"{where} is not a manifest of edgetta; give the path of a bundle made by `edgetta export`")
    found = _SEAL.fullmatch(raw[-_SEAL_BYTES:])
    intact = found is not None and hashlib.sha256(raw[:-_SEAL_BYTES]).hexdigest().encode() == found[1]
    schema = data.get("schema")
    if type(schema) is int and schema > SCHEMA and (intact or found is None):
        raise BundleError(
            f"bundle {bundle} has schema version {schema}, and this edgetta reads up to {SCHEMA}; "
            "update edgetta on this machine, or export the bundle with this version"
        )
    if found is None or not intact:
        raise BundleError(f"{where} is damaged or was edited (its SHA-256 differs); {_AGAIN}")
    if schema == 1 and type(schema) is int:
        raise BundleError(f"bundle {bundle} was made by an earlier edgetta (schema version 1); export it again")
    if schema != SCHEMA or type(schema) is not int:
        raise BundleError(f"{where} has no known schema version ({schema!r}); export the bundle again")
    try:
        return _typed(data, found[1].decode())
    except (KeyError, TypeError, ValueError, EdgettaError) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise BundleError(f"{where}: {what}; export the bundle again") from error


def _typed(data: dict[str, Any], identity: str) -> Manifest:
    image, classes = _get(data, "input", dict), _get(data, "classes", dict)
    shape = tuple(_integer(size, "input.shape", 1, MAX_SIDE) for size in _get(image, "shape", list))
    if len(shape) != 3:
        raise ValueError(f"input.shape must be (C, H, W), not {list(shape)}")
    count = _integer(classes.get("count"), "classes.count", 1, 1 << 24)
    names = classes.get("names")
    if names is not None:
        names = _texts(names, "classes.names")
        if len(names) != count:
            raise ValueError(f"classes.names has {len(names)} names for {count} classes")
    Resize.from_json(_get(data, "preprocessing", dict), (shape[1], shape[2]))  # read again by who resizes
    files = _files(_get(data, "files", dict))
    rate_law = None if data["rate_law"] is None else RateLaw.from_json(data["rate_law"])
    versions = _get(data, "versions", dict)
    return Manifest(
        data=data,
        identity=identity,
        name=_get(data, "name", str),
        edgetta=_get(versions, "edgetta", str),
        torch=_get(versions, "torch", str),
        input_shape=(shape[0], shape[1], shape[2]),
        classes=count,
        class_names=names,
        preprocessing=_get(data, "preprocessing", dict),
        programs=_programs(_get(data, "programs", dict), files),
        content=None if data["content"] is None else _listed(data["content"], files, ".safetensors"),
        cuts=_texts(data["cuts"], "cuts"),
        batch_norm=_one_of(data["batch_norm"], get_args(BatchNormForm), "batch_norm"),
        config=AdaptConfig.from_json(_bounded(_get(data, "adaptation", dict))),
        rate_law=rate_law,
        cost_model=CostModel.from_json(data["cost_model"]) if data.get("cost_model") is not None else None,
        accuracy_costs=_accuracy_costs(data.get("accuracy_costs")),
        provenance=_get(data, "provenance", dict),
        reference=_listed(data["reference"], files, ".npz"),
        files=files,
    )


def _accuracy_costs(data: Any) -> AccuracyCosts | None:
    return None if data is None else AccuracyCosts.from_json(data)


def _files(table: dict[str, Any]) -> dict[str, FileEntry]:
    if len(table) > MAX_FILES:
        raise ValueError(f"it lists {len(table)} files, more than the {MAX_FILES} allowed")
    entries: dict[str, FileEntry] = {}
    for name, entry in table.items():
        try:
            safe_name(name)
        except StorageError as error:
            raise ValueError(str(error)) from error
        if name in (MANIFEST, SIGNATURE) or not isinstance(entry, dict):
            raise ValueError(f"files: the entry of {name!r} is not allowed")
        digest = _get(entry, "sha256", str)
        if not _SHA256.fullmatch(digest):
            raise ValueError(f"files: the SHA-256 of {name!r} is not one")
        entries[name] = FileEntry(_integer(entry["bytes"], f"size of {name!r}", 0, MAX_TOTAL_BYTES), digest)
    if len({name.lower() for name in entries}) != len(entries):
        raise ValueError("files: two names differ in upper and lower case only")
    folders = {parent.as_posix() for name in entries for parent in PurePosixPath(name).parents}
    if folders.intersection(entries):
        raise ValueError(f"files: {sorted(folders.intersection(entries))[0]!r} is both a file and a folder")
    texts = sum(entry.size for name, entry in entries.items() if name.endswith(".json"))
    if texts > MAX_TEXT_BYTES:
        raise ValueError(f"its graphs add up to {texts} bytes of JSON, more than the {MAX_TEXT_BYTES} allowed")
    total = sum(entry.size for entry in entries.values())
    if total > MAX_TOTAL_BYTES:
        raise ValueError(f"its files add up to {total} bytes, more than the {MAX_TOTAL_BYTES} allowed")
    return entries


def _programs(entry: dict[str, Any], files: Mapping[str, FileEntry]) -> ProgramsEntry:
    graphs = _get(entry, "graphs", dict)
    if set(graphs) != set(PROGRAMS):
        raise ValueError(f"programs: graphs must name {', '.join(PROGRAMS)}")
    return ProgramsEntry(
        {name: _listed(graphs[name], files, ".json") for name in PROGRAMS},
        _listed(entry["layout"], files, ".json"),
        _listed(entry["tensors"], files, ".safetensors"),
    )


def _listed(name: Any, files: Mapping[str, FileEntry], suffix: str) -> str:
    if not isinstance(name, str) or name not in files:
        raise ValueError(f"it uses the file {name!r}, which its list of files does not have")
    if not name.endswith(suffix):
        raise ValueError(f"it uses the file {name!r} where one that ends in {suffix} belongs")
    return name


def _get(data: Mapping[str, Any], key: str, kind: type[T]) -> T:
    value = data[key]
    if not isinstance(value, kind):
        raise ValueError(f"{key!r} must be {kind.__name__}, not {type(value).__name__}")
    return value


def _integer(value: Any, what: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{what} must be a whole number from {low} to {high}, not {str(value)[:40]!r}")
    return value


def _one_of(value: Any, choices: tuple[Any, ...], what: str) -> Any:
    if value not in choices or isinstance(value, bool):
        raise ValueError(f"{what} must be one of {', '.join(map(str, choices))}, not {str(value)[:40]!r}")
    return value


def _texts(value: Any, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{what} must be a list of texts")
    return tuple(value)


def _bounded(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of adaptation, of the types that they must have, and with numbers that a device can follow: a window of
    a million images is none."""
    defaults = {item.name: item.default for item in fields(AdaptConfig)}
    for name, value in settings.items():
        if name in defaults and type(value) not in _SETTING_TYPES[type(defaults[name])]:
            raise ValueError(f"adaptation.{name} is a {type(value).__name__}")
        if isinstance(value, float) and not (math.isfinite(value) and abs(value) <= MAX_SETTING):
            raise ValueError(f"adaptation.{name[:40]} is {value!r}, beyond what any device can follow")
        if type(value) is int and abs(value) > MAX_SETTING:
            raise ValueError(f"adaptation.{name[:40]} is {str(value)[:40]}, beyond what any device can follow")
    return settings
