"""The self-test of a bundle: the golden images of `reference.npz`, run on this device, give the golden answers.

The reference was computed at export, in float64, by the torch engine, without rounding any residual. What is compared:
the source network's logits, the adapted network's logits under running statistics, and gradients of a fixed linear
function of the logits with respect to meta-network parameters and to biases and weights that adapt. Linear, because
the gradient of the entropy vanishes where a network is sure or knows nothing, and rounding errors would then drown
what is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgetta.adaptation.network import AdaptiveNetwork
from edgetta.bundle.engines import engine_of, source_program
from edgetta.bundle.reading import Bundle
from edgetta.bundle.reference import golden_run
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
0.13 (WRN-40-2, random weights). There each engine of TensorRT was tested by itself, with given masks, within 0.01."""

_FLOOR = 1e-2  # gradients smaller than this share of the largest are compared with that share


@dataclass(frozen=True)
class SelfTest:
    """Relative L2 errors found, all within tolerance."""

    source_error: float
    logits_error: float
    gradient_errors: Mapping[str, float]  # by parameter

    @property
    def gradient_error(self) -> float:
        """The largest; 0 when none was compared."""
        return max(self.gradient_errors.values(), default=0.0)


def self_test(
    bundle: Bundle,
    network: AdaptiveNetwork,
    source: Callable[[Tensor], Tensor] | None = None,
    gradients: bool = True,
) -> SelfTest:
    """Run the golden images through `network`, made by `build_network`, and compare with the reference.

    source      images -> logits of the unadapted backbone; made on the network's engine and dropped again when None
    gradients   False where nothing will adapt: then nothing that only adaptation needs is loaded
    The network is left as it was: weights, statistics, policy and gradients.
    Raises `BundleError` naming the first thing that differs.
    """
    golden = bundle.reference()
    start = bundle.meta_tensors()
    images = golden["images"].to(network.device)
    rounding = _rounding(network)
    logits_limit, gradient_limit = LOGITS_TOLERANCE[rounding], GRADIENT_TOLERANCE[rounding]
    try:
        found = {"source_logits": (source or source_program(bundle, engine_of(network)))(images)}
        found |= golden_run(bundle.model, network, start, images, gradients)
        found = {name: value.cpu() for name, value in found.items()}
    except EdgettaError:
        raise
    except Exception as error:  # each engine has its own kinds
        if is_allocation_failure(error):  # of this machine, not of the bundle
            raise
        raise BundleError(
            f"bundle {bundle.path} fails its self-test: {one_line(error)}; export the bundle again"
        ) from error
    errors = {name: _error(value, golden[name]) for name, value in found.items() if not name.startswith("gradient.")}
    gradient_errors = _gradient_errors(bundle, network, found, golden) if gradients else {}
    for name, difference, limit in (
        ("the source network's logits", errors["source_logits"], logits_limit),
        ("the adapted network's logits", errors["logits"], logits_limit),
        *((f"the gradients of {name}", value, gradient_limit) for name, value in gradient_errors.items()),
    ):
        if not difference <= limit:
            raise BundleError(
                f"bundle {bundle.path} fails its self-test on this machine: {name} differ from the reference by "
                f"{difference:.1e} (at most {limit:.0e} allowed); try --engine torch, or export the bundle again"
            )
    return SelfTest(errors["source_logits"], errors["logits"], gradient_errors)


def _rounding(network: AdaptiveNetwork) -> str:
    """What a network computes in, at its coarsest: torch lets convolutions on a GPU round their inputs (TF32)."""
    segments = (network.stem, *network.parts, network.classifier)
    if any(segment.graphs.forward.quantised for segment in segments):
        return "int8"
    if any(getattr(segment, "half", False) for segment in segments):
        return "fp16"
    return "fp32" if network.device.type == "cpu" else "tf32"


def _gradient_errors(
    bundle: Bundle, network: AdaptiveNetwork, found: Mapping[str, Tensor], golden: Mapping[str, Tensor]
) -> dict[str, float]:
    """Error of each gradient that this network computes exactly: in `local` mode those of the last meta-network on."""
    exact = {name: value for name, value in golden.items() if name.startswith("gradient.")}
    if any(part.gradient == "local" for part in network.parts):
        last = (f"gradient.metas.{len(network.parts) - 1}.", "gradient.classifier.")
        exact = {name: value for name, value in exact.items() if name.startswith(last)}
    largest = max((float(value.norm()) for value in exact.values()), default=0.0)
    errors = {}
    for name, value in exact.items():
        if name not in found:
            raise BundleError(f"bundle {bundle.path} fails its self-test: no {name}; export the bundle again")
        errors[name.removeprefix("gradient.")] = _error(found[name], value, _FLOOR * largest)
    return errors


def _error(value: Tensor, reference: Tensor, floor: float = 0.0) -> float:
    """Relative L2 error; infinite where shapes differ or a value is not finite."""
    if value.shape != reference.shape or not bool(torch.isfinite(value).all()):
        return float("inf")
    difference = float((value.double() - reference.double()).norm())
    return difference / max(float(reference.double().norm()), floor, 1e-30)
