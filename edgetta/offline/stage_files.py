"""What a long job has done so far, stage by stage, in a folder: the same job again continues behind the last stage."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from edgetta.errors import BundleError, UsageError
from edgetta.offline.curvature import Processes
from edgetta.storage import atomic_write_bytes, atomic_write_json, storage_error

SETTINGS = "settings.json"


class StageFiles:
    """Results of stages as JSON and weights as safetensors. One process writes; all go on with the same.

    Args:
        folder: made where it is missing.
        settings: plain numbers, texts and lists that decide the results.
        overwrite: start again where the folder holds a job with other settings.

    Raises:
        UsageError: the folder holds a job with other settings, or files that are none of a job's.
        StorageError: it cannot be made.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.folder = folder
        self.processes = Processes()
        wanted = self.processes.first(json.loads(json.dumps(dict(settings))))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, folder) from error
        found = self.processes.first(_read(folder / SETTINGS) if (folder / SETTINGS).exists() else None)
        strange = self.processes.first(found is None and any(path.is_file() for path in folder.iterdir()))
        if strange:
            raise UsageError(f"{folder} holds other things; name a new folder")
        if found is not None and found != wanted and not overwrite:
            different = sorted(name for name in wanted if found.get(name) != wanted[name])
            raise UsageError(
                f"{folder} holds a job with other settings ({', '.join(different)}); name another folder, or start "
                "again with --overwrite"
            )
        if self.processes.rank == 0 and found != wanted:
            for path in folder.iterdir():
                if path.suffix in (".json", ".safetensors", ".svg", ".html"):
                    path.unlink()
            atomic_write_json(folder / SETTINGS, wanted)

    def path(self, name: str) -> Path:
        """The file of that name in the folder."""
        return self.folder / name

    def json(self, name: str, compute: Callable[[], Any]) -> Any:
        """The stored result of a stage, or a new one, which is then stored."""
        path = self.folder / f"{name}.json"
        stored = self.processes.first(_read(path) if self.processes.rank == 0 and path.exists() else None)
        if stored is not None:
            return stored
        value = json.loads(json.dumps(compute()))
        if self.processes.rank == 0:
            atomic_write_json(path, value)
        return value

    def weights(self, name: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The stored weights of a stage, or new ones, which are then stored; on the CPU."""
        path = self.folder / f"{name}.safetensors"
        if self.processes.first(path.exists()):
            try:
                return load_file(path)
            except (SafetensorError, OSError) as error:
                raise BundleError(f"{path} cannot be read ({error}); remove it to do this stage again") from error
        value = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in compute().items()}
        if self.processes.rank == 0:
            atomic_write_bytes(path, save(value))
        return value


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error}); remove it to do this stage again") from error
