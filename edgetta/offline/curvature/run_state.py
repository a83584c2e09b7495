"""The state of a Lanczos run on disk, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from edgetta.offline.curvature.basis import Basis, DiskBasis, read_vector, vector_file, write_vector
from edgetta.offline.curvature.errors import CurvatureError
from edgetta.storage import atomic_write_json

STATE_FILE = "state.json"
VERSION = 1


@dataclass(frozen=True)
class SavedRun:
    """What is known of a run after some whole iterations."""

    alpha: tuple[float, ...]
    beta: tuple[float, ...]
    asymmetry: float
    finished: bool

    @property
    def steps(self) -> int:
        """Whole iterations."""
        return len(self.alpha)

    def after(self, steps: int) -> SavedRun:
        """The run as it was after its first `steps` iterations."""
        if steps >= self.steps:
            return self
        return SavedRun(self.alpha[:steps], self.beta[:steps], self.asymmetry, False)


class RunState:
    """A folder with one file per Lanczos vector and `state.json`, which is replaced last and so commits each step.

    Args:
        folder: created if missing.
        key: what identifies the run; a folder with another key is refused.
    """

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        self.folder, self.key = folder, key
        folder.mkdir(parents=True, exist_ok=True)

    def load(self) -> SavedRun | None:
        """The saved run; None where the folder holds none.

        Raises:
            CurvatureError: the folder holds another run, or a damaged one.
        """
        path = self.folder / STATE_FILE
        if not path.exists():
            return None
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            key = state["key"]
            saved = SavedRun(
                tuple(map(float, state["alpha"])),
                tuple(map(float, state["beta"])),
                float(state["asymmetry"]),
                bool(state["finished"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CurvatureError(f"{path} cannot be read ({error}); delete the folder to start anew") from error
        if key != self.key:
            names = sorted(name for name in {*key, *self.key} if key.get(name) != self.key.get(name))
            raise CurvatureError(
                f"{self.folder} holds another run (it differs in {', '.join(names)}); give another folder, or delete "
                "this one"
            )
        return saved

    def restore(self, basis: Basis, count: int) -> Tensor:
        """Fill an empty basis with the first `count` saved vectors and return the last of them.

        Raises:
            CurvatureError: a vector is missing or damaged.
        """
        try:
            for index in range(count):
                vector = read_vector(self.folder, index).to(basis.device, basis.dtype)
                if isinstance(basis, DiskBasis):
                    basis.count = index + 1
                else:
                    vector = basis.append(vector)
        except Exception as error:
            path = vector_file(self.folder, index)
            raise CurvatureError(f"{path} cannot be read ({error}); delete the folder to start anew") from error
        return vector

    def keep(self, basis: Basis, vector: Tensor) -> None:
        """Save the vector that the basis took last."""
        if not isinstance(basis, DiskBasis):
            write_vector(self.folder, len(basis) - 1, vector)

    def commit(self, saved: SavedRun) -> None:
        """Make an iteration count; its vectors are on disk already."""
        atomic_write_json(
            self.folder / STATE_FILE,
            {
                "version": VERSION,
                "key": self.key,
                "alpha": list(saved.alpha),
                "beta": list(saved.beta),
                "asymmetry": saved.asymmetry,
                "finished": saved.finished,
            },
        )

    def drop_basis(self) -> None:
        """Delete the vectors and keep the result."""
        for path in self.folder.glob("basis-*.safetensors"):
            path.unlink()
