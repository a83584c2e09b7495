"""Where the Lanczos vectors are kept: in full precision, in half precision, or on disk; decided beforehand."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from torch import Tensor

from edgetta.errors import UsageError
from edgetta.offline.curvature.errors import MemoryLimitError
from edgetta.storage import atomic_write_bytes

Storage = Literal["auto", "memory", "half", "disk"]
COLUMNS = 1 << 22
"""Entries of a vector handled at once, so that a change of precision never copies a whole basis."""


@dataclass(frozen=True)
class BasisPlan:
    """How the basis of a Lanczos run will be kept."""

    storage: Literal["memory", "half", "disk"]
    bytes: int  # that the basis takes in memory or on disk
    reason: str  # one line for the user, to be shown before the run

    @staticmethod
    def make(
        dimension: int,
        iterations: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        storage: Storage = "auto",
        limit: int | None = None,
        folder: Path | None = None,
    ) -> BasisPlan:
        """Choose the storage of `iterations` vectors of length `dimension`.

        "auto" takes the first of: the operator's own precision, half precision (eigenvalues then carry an error of
        about 5e-4 of the largest |eigenvalue|), disk (needs a folder).

        Args:
            limit: bytes that the basis may take in memory; None: half of what is free.

        Raises:
            MemoryLimitError: the basis fits nowhere.
            UsageError: "disk" without a folder, or an unknown storage.
        """
        if storage not in ("auto", "memory", "half", "disk"):
            raise UsageError(f"storage {storage!r} is unknown; choose auto, memory, half or disk")
        full = dimension * iterations * dtype.itemsize
        half = dimension * iterations * 2
        limit = free_bytes(device) // 2 if limit is None else limit
        shape = f"{iterations} Lanczos vectors of {dimension} parameters"
        if storage == "memory" or (storage == "auto" and full <= limit):
            return BasisPlan("memory", full, f"{shape}: {_mib(full)} in memory")
        too_large = f"{shape} take {_mib(full)} and the limit is {_mib(limit)}"
        if storage == "half" or (storage == "auto" and half <= limit):
            why = "as asked" if storage == "half" else too_large
            return BasisPlan(
                "half", half, f"in half precision, {_mib(half)} ({why}); errors up to 5e-4 of the largest"
            )
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            why = "as asked" if storage == "disk" else too_large
            return BasisPlan("disk", full, f"kept on disk in {folder}, {_mib(full)} ({why}); slower")
        if storage == "disk":
            raise UsageError("storage 'disk' needs a folder; give one")
        raise MemoryLimitError(
            f"{too_large} ({_mib(half)} in half precision); give a folder for the basis, fewer iterations or fewer "
            "parameters"
        )


class Basis(ABC):
    """Vectors q_0, q_1, ... of unit length, as they were stored."""

    def __init__(self, dimension: int, dtype: torch.dtype, device: torch.device) -> None:
        self.dimension, self.dtype, self.device = dimension, dtype, device
        self.count = 0

    def __len__(self) -> int:
        return self.count

    @abstractmethod
    def append(self, vector: Tensor) -> Tensor:
        """Store a vector [P] and return it as stored: a rounded vector must be the one that is used from here on."""

    @abstractmethod
    def coefficients(self, vector: Tensor) -> Tensor:
        """Q^T w in float64 [count], on the CPU."""

    @abstractmethod
    def subtract(self, vector: Tensor, coefficients: Tensor) -> None:
        """w -= Q c, in place; c [count]."""

    def combine(self, coefficients: Tensor) -> Tensor:
        """Q c [P]."""
        result = torch.zeros(self.dimension, dtype=self.dtype, device=self.device)
        self.subtract(result, -coefficients)
        return result


class MemoryBasis(Basis):
    """One matrix on the operator's device; `half` stores float16 scaled by sqrt(P), so that entries are near one."""

    def __init__(
        self, dimension: int, capacity: int, dtype: torch.dtype, device: torch.device, *, half: bool = False
    ) -> None:
        super().__init__(dimension, dtype, device)
        self.scale = dimension**0.5 if half else 1.0
        self.rows = torch.empty(capacity, dimension, dtype=torch.float16 if half else dtype, device=device)

    def append(self, vector: Tensor) -> Tensor:
        row = self.rows[self.count]
        row.copy_(vector * self.scale if self.scale != 1 else vector)
        self.count += 1
        return row.to(self.dtype) / self.scale if self.scale != 1 else row

    def coefficients(self, vector: Tensor) -> Tensor:
        total = torch.zeros(self.count, dtype=torch.float64)
        for columns in self._columns():
            total += (self._block(columns) @ vector[columns]).double().cpu()
        return total

    def subtract(self, vector: Tensor, coefficients: Tensor) -> None:
        weights = coefficients.to(self.device, self.dtype)
        for columns in self._columns():
            vector[columns] -= weights @ self._block(columns)

    def _block(self, columns: slice) -> Tensor:
        rows = self.rows[: self.count, columns]
        return rows.to(self.dtype) / self.scale if self.scale != 1 else rows

    def _columns(self) -> list[slice]:
        return [slice(start, start + COLUMNS) for start in range(0, self.dimension, COLUMNS)]


class DiskBasis(Basis):
    """One safetensors file per vector in a folder, read back by memory map; what is there can be taken up again."""

    def __init__(self, dimension: int, dtype: torch.dtype, device: torch.device, folder: Path, count: int = 0) -> None:
        super().__init__(dimension, dtype, device)
        self.folder = folder
        self.count = count

    def append(self, vector: Tensor) -> Tensor:
        write_vector(self.folder, self.count, vector)
        self.count += 1
        return vector

    def coefficients(self, vector: Tensor) -> Tensor:
        dots = [torch.dot(self._read(index), vector).double().cpu() for index in range(self.count)]
        return torch.stack(dots) if dots else torch.zeros(0, dtype=torch.float64)

    def subtract(self, vector: Tensor, coefficients: Tensor) -> None:
        for index, weight in enumerate(coefficients.tolist()):
            vector -= weight * self._read(index)

    def _read(self, index: int) -> Tensor:
        return read_vector(self.folder, index).to(self.device)


def make_basis(
    plan: BasisPlan, dimension: int, capacity: int, dtype: torch.dtype, device: torch.device, folder: Path | None
) -> Basis:
    """An empty basis as planned; `folder` is needed for one on disk."""
    if plan.storage == "disk":
        assert folder is not None
        return DiskBasis(dimension, dtype, device, folder)
    try:
        return MemoryBasis(dimension, capacity, dtype, device, half=plan.storage == "half")
    except RuntimeError as error:
        raise MemoryLimitError(
            f"the {_mib(plan.bytes)} of the Lanczos basis could not be had; give a limit for it, and a folder"
        ) from error


def vector_file(folder: Path, index: int) -> Path:
    """The file of one Lanczos vector."""
    return folder / f"basis-{index:05d}.safetensors"


def write_vector(folder: Path, index: int, vector: Tensor) -> None:
    """Store one Lanczos vector, whole or not at all."""
    data = safetensors.torch.save({"vector": vector.detach().cpu().contiguous()})
    atomic_write_bytes(vector_file(folder, index), data)


def read_vector(folder: Path, index: int) -> Tensor:
    """One stored Lanczos vector [P], on the CPU."""
    return safetensors.torch.load_file(vector_file(folder, index))["vector"]


def free_bytes(device: torch.device) -> int:
    """Memory that is free for new tensors on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _mib(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
