"""Spectra on disk: numbers in safetensors, what they are in JSON beside them."""

from __future__ import annotations

import json
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from edgetta.offline.curvature.data_operator import DataOperator
from edgetta.offline.curvature.errors import CurvatureError
from edgetta.offline.curvature.lanczos import Tridiagonal
from edgetta.offline.curvature.spectrum import Spectrum
from edgetta.storage import atomic_write_bytes, atomic_write_json

VERSION = 1


def save_spectrum(spectrum: Spectrum, folder: Path, name: str = "spectrum") -> Path:
    """Write `NAME.safetensors` (alpha, beta, Ritz values, weights, residuals per probe) and then `NAME.json`.

    Returns:
        The JSON file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    for probe, run in enumerate(spectrum.runs):
        for key in ("alpha", "beta", "values", "weights", "residuals"):
            arrays[f"{key}.{probe:03d}"] = np.ascontiguousarray(getattr(run, key))
    atomic_write_bytes(folder / f"{name}.safetensors", safetensors.numpy.save(arrays))
    (largest, largest_error), (smallest, smallest_error) = spectrum.largest, spectrum.smallest
    trace, trace_error = spectrum.trace()
    return atomic_write_json(
        folder / f"{name}.json",
        {
            "version": VERSION,
            "dimension": spectrum.dimension,
            "probes": len(spectrum.runs),
            "iterations": max(len(run.alpha) for run in spectrum.runs),
            "seed": spectrum.seed,
            "largest": largest,
            "largest_residual": largest_error,
            "smallest": smallest,
            "smallest_residual": smallest_error,
            "trace": trace,
            "trace_error": None if np.isnan(trace_error) else trace_error,
            "asymmetry": [run.asymmetry for run in spectrum.runs],
            "description": spectrum.description,
        },
    )


def load_spectrum(folder: Path, name: str = "spectrum") -> Spectrum:
    """Read what `save_spectrum` wrote.

    Raises:
        CurvatureError: a file is missing, damaged, or of another version.
    """
    path = folder / f"{name}.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["version"] != VERSION:
            raise CurvatureError(f"{path} is of version {facts['version']}; this edgetta reads version {VERSION}")
        arrays = safetensors.numpy.load_file(folder / f"{name}.safetensors")
        runs = tuple(
            Tridiagonal(arrays[f"alpha.{probe:03d}"], arrays[f"beta.{probe:03d}"], float(facts["asymmetry"][probe]))
            for probe in range(facts["probes"])
        )
        return Spectrum(runs, int(facts["dimension"]), int(facts["seed"]), dict(facts["description"]))
    except (OSError, KeyError, IndexError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise CurvatureError(f"no readable spectrum at {path} ({error}); measure it again") from error


def describe(operator: DataOperator) -> dict[str, Any]:
    """What a measurement was made on, to be kept with its numbers: matrix, data, policy, versions, machine, date."""
    surface = operator.surface
    return {
        "operator": operator.kind,
        "parameters": surface.dimension,
        "tensors": list(surface.parameters),
        "batch_norm": surface.batch_norm,
        "samples": len(operator.samples),
        "batch_size": operator.batch_size,
        "dtype": str(operator.dtype).removeprefix("torch."),
        "device": str(operator.device),
        "processes": operator.processes.count,
        "torch": torch.__version__,
        "machine": f"{platform.machine()} {platform.system()}, {torch.get_num_threads()} threads",
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
