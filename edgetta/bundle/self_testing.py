"""The self-test of a bundle: the golden images of `reference.npz`, run on this device, give the golden answers.

The reference was computed at export, in float64, by the torch engine, without rounding any residual.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgetta.bundle.reading import Bundle
from edgetta.bundle.reference import golden_run
from edgetta.engines.contract import Array, Engine
from edgetta.errors import BundleError, EdgettaError, one_line
from edgetta.memory.allocation_failure import is_allocation_failure

LOGITS_TOLERANCE = {"fp32": 2e-3, "tf32": 1e-2, "fp16": 3e-2, "int8": 2e-1}
"""Relative L2 error of logits, by what the engine computes in. Engines in float32 differ by about 1e-5; a wrong
weight, statistic or operator by far more. In int8 a difference in the seventh digit moves a value across the border
between two steps, layer after layer: float32 and float64 differ by 0.01 at the end of ResNet-20, ONNX Runtime by 0.03,
which is as much as rounding to int8 itself changes."""

GRADIENT_TOLERANCE = {"fp32": 3e-2, "tf32": 4e-1, "fp16": 4e-1, "int8": 6e-1}
"""Relative L2 error of one gradient. A few ReLU masks per ten million flip in float32 (about 1e-3); the eight-bit
residuals of smooth activations round by up to a 510th of their range; a wrong backward is off by tens of percent.
Where activations have 10 bits of mantissa, several masks per ten thousand flip: measured 0.05 (ResNet-20, trained) to
0.13 (WRN-40-2, random weights)."""

_FLOOR = 1e-2  # gradients smaller than this share of the largest are compared with that share


@dataclass(frozen=True)
class SelfTest:
    """Relative L2 errors found, all within tolerance."""

    logits_error: float  # with the statistics of training
    mixed_error: float  # with statistics that are mixed with the images' own
    gradient_errors: Mapping[str, float]  # by parameter

    @property
    def gradient_error(self) -> float:
        """The largest; 0 when none was compared."""
        return max(self.gradient_errors.values(), default=0.0)


def self_test(bundle: Bundle, engine: Engine, gradients: bool = True) -> SelfTest:
    """Run the golden images on an engine of the bundle and compare with the reference.

    gradients   False where nothing will be learnt: then nothing that only learning needs is loaded

    Raises `BundleError` naming the first thing that differs.
    """
    golden = bundle.reference()
    rounding = _rounding(bundle, engine)
    try:
        found = golden_run(engine, golden["images"], gradients)
    except EdgettaError:
        raise
    except Exception as error:  # each engine has its own kinds
        if is_allocation_failure(error):  # of this machine, not of the bundle
            raise
        raise BundleError(
            f"bundle {bundle.path} fails its self-test: {one_line(error)}; export the bundle again"
        ) from error
    logits, mixed = (_error(found[name], golden[name]) for name in ("logits", "mixed_logits"))
    errors = _gradient_errors(bundle, found, golden) if gradients else {}
    for name, difference, limit in (
        ("the network's logits", logits, LOGITS_TOLERANCE[rounding]),
        ("the logits with mixed statistics", mixed, LOGITS_TOLERANCE[rounding]),
        *((f"the gradients of {name}", error, GRADIENT_TOLERANCE[rounding]) for name, error in errors.items()),
    ):
        if not difference <= limit:
            raise BundleError(
                f"bundle {bundle.path} fails its self-test on this machine: {name} differ from the reference by "
                f"{difference:.1e} (at most {limit:.0e} allowed); try --engine torch, or export the bundle again"
            )
    return SelfTest(logits, mixed, errors)


def _rounding(bundle: Bundle, engine: Engine) -> str:
    """What an engine computes in, at its coarsest: torch lets convolutions on a GPU round their inputs (TF32)."""
    if bundle.precision == "int8":
        return "int8"
    return str(getattr(engine, "precision", "fp32"))


def _gradient_errors(bundle: Bundle, found: Mapping[str, Array], golden: Mapping[str, Array]) -> dict[str, float]:
    exact = {name: value for name, value in golden.items() if name.startswith("gradient.")}
    largest = max((float(np.linalg.norm(value)) for value in exact.values()), default=0.0)
    errors = {}
    for name, value in exact.items():
        if name not in found:
            raise BundleError(f"bundle {bundle.path} fails its self-test: no {name}; export the bundle again")
        errors[name.removeprefix("gradient.")] = _error(found[name], value, _FLOOR * largest)
    return errors


def _error(value: Array, reference: Array, floor: float = 0.0) -> float:
    """Relative L2 error; infinite where shapes differ or a value is not finite."""
    if value.shape != reference.shape or not bool(np.isfinite(value).all()):
        return float("inf")
    difference = float(np.linalg.norm(value.astype(np.float64) - reference))
    return difference / max(float(np.linalg.norm(reference.astype(np.float64))), floor, 1e-30)
