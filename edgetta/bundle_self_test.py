"""The self-test of a bundle: the golden images of `reference.npz`, run on this device, give the golden answers.

The reference was computed at export, in float64, by the torch engine, without rounding any residual. What is compared:
the source network's logits, the adapted network's logits under running statistics, and gradients of a fixed linear
function of the logits with respect to meta-network parameters and adaptable biases. Linear, because the gradient of
the entropy vanishes where a network is sure or knows nothing, and rounding errors would then drown what is tested.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edgetta.adaptation.model import AdaptableModel
from edgetta.adaptation.network import EMA_IMAGES, AdaptiveNetwork
from edgetta.bundle_files import BundleFiles
from edgetta.errors import BundleError, EdgettaError

if TYPE_CHECKING:
    from edgetta.bundle import Bundle

LOGITS_TOLERANCE = 2e-3
"""Relative L2 error of logits. Engines differ by about 1e-5; a wrong weight, statistic or operator by far more."""

GRADIENT_TOLERANCE = 3e-2
"""Relative L2 error of one gradient. A few ReLU masks per ten million flip in float32 (about 1e-3), and the eight-bit
residuals of smooth activations round by up to a 510th of their range; a wrong backward is off by tens of percent."""

MAX_GRADIENT_ELEMENTS = 1 << 14
"""Larger parameters are not compared: their gradients would make up most of the bundle."""

MAX_REFERENCE_BYTES = 256 << 20

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


def self_test(bundle: Bundle, network: AdaptiveNetwork, source: Callable[[Tensor], Tensor] | None = None) -> SelfTest:
    """Run the golden images through `network`, made by `build_network`, and compare with the reference.

    source   images -> logits of the unadapted backbone; made on the network's engine and dropped again when None
    The network is left as it was: weights, statistics, policy and gradients.
    Raises `BundleError` naming the first thing that differs.
    """
    from edgetta.bundle import engine_of, source_program

    golden = bundle.reference()
    start = bundle.meta_tensors()
    images = golden["images"]
    try:
        found = {"source_logits": (source or source_program(bundle, engine_of(network)))(images)}
        found |= golden_run(bundle.model, network, start, images)
    except EdgettaError:
        raise
    except Exception as error:  # each engine has its own kinds
        raise BundleError(
            f"bundle {bundle.path} fails its self-test: {_line(error)}; export the bundle again"
        ) from error
    errors = {name: _error(value, golden[name]) for name, value in found.items() if not name.startswith("gradient.")}
    gradients = _gradient_errors(bundle, network, found, golden)
    for name, difference, limit in (
        ("the source network's logits", errors["source_logits"], LOGITS_TOLERANCE),
        ("the adapted network's logits", errors["logits"], LOGITS_TOLERANCE),
        *((f"the gradients of {name}", value, GRADIENT_TOLERANCE) for name, value in gradients.items()),
    ):
        if not difference <= limit:
            raise BundleError(
                f"bundle {bundle.path} fails its self-test on this machine: {name} differ from the reference by "
                f"{difference:.1e} (at most {limit:.0e} allowed); try --engine torch, or export the bundle again"
            )
    return SelfTest(errors["source_logits"], errors["logits"], gradients)


@torch.no_grad()
def golden_run(
    model: AdaptableModel, network: AdaptiveNetwork, start: Mapping[str, Tensor], images: Tensor
) -> dict[str, Tensor]:
    """Logits of `images` from the state `start`, and gradients of a linear function of them as "gradient.NAME".

    Statistics are running ones, moved by this batch before they are used, so that every operator takes part while
    channels without variance amplify nothing. The network is put back as it was.
    """
    parameters = _parameters(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    gradients = {name: parameter.grad for name, parameter in parameters.items()}
    policy, ema_images = network.batch_norm, network.ema_images
    try:
        for parameter in parameters.values():
            parameter.grad = None
        network.load_state_dict(dict(start))
        network.batch_norm = "source" if model.batch_norm == "source" else "ema"
        network.ema_images = EMA_IMAGES
        logits, tape = network.forward(images)
        network.backward(tape, _pattern(logits))
        found = {"logits": logits.clone()}
        for name, parameter in parameters.items():
            if parameter.grad is not None and parameter.numel() <= MAX_GRADIENT_ELEMENTS:
                found[f"gradient.{name}"] = parameter.grad.clone()
        return found
    finally:
        network.batch_norm, network.ema_images = policy, ema_images
        network.load_state_dict(before)
        for name, parameter in parameters.items():
            parameter.grad = gradients[name]


def read_reference(files: BundleFiles, model: AdaptableModel) -> dict[str, Tensor]:
    """The arrays of `reference.npz`: float32, "images", "source_logits", "logits", "gradient.NAME".

    Raises `BundleError` where they are pickled, compressed, of another type, or not those of `model`.
    """
    name = files.manifest.reference
    where = f"{name} in bundle {files.path}"
    if files.manifest.files[name].size > MAX_REFERENCE_BYTES:
        raise BundleError(f"{where} is larger than the {MAX_REFERENCE_BYTES} bytes allowed; export the bundle again")
    try:
        arrays = _read_arrays(files.read(name))
        images = arrays["images"]
        if images.ndim != 4 or images.shape[0] < 1 or images.shape[1:] != model.input_shape:
            raise ValueError(f"its images have shape {images.shape}, not (N, {model.input_shape})")
        for key in ("source_logits", "logits"):
            if arrays[key].shape != (images.shape[0], model.classes):
                raise ValueError(f"{key} has shape {arrays[key].shape}")
    except (ValueError, KeyError, OSError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise BundleError(f"{where} cannot be used: {_line(error)}; export the bundle again") from error
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def _read_arrays(data: bytes) -> dict[str, np.ndarray]:
    """Arrays of an uncompressed `.npz`; the size that a header declares is checked before memory is reserved."""
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > len(data):
                raise ValueError(f"{info.filename!r} is compressed")
            content = archive.read(info)
            stream = io.BytesIO(content)
            if np.lib.format.read_magic(stream) != (1, 0):
                raise ValueError(f"{info.filename!r} is no array of npy version 1.0")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            if dtype != np.float32 or fortran or 4 * math.prod(shape) != len(content) - stream.tell():
                raise ValueError(f"{info.filename!r} is no float32 array of the size that it declares")
            stream.seek(0)
            arrays[info.filename.removesuffix(".npy")] = np.load(stream, allow_pickle=False)
    return arrays


def _pattern(logits: Tensor) -> Tensor:
    """The gradient with respect to the logits (N, C): numbers of both signs that repeat nowhere."""
    numbers = torch.arange(logits.numel(), dtype=torch.float64)
    return (torch.cos(0.7 + numbers) / logits.shape[0]).view(logits.shape).to(logits)


def _parameters(network: AdaptiveNetwork) -> dict[str, Tensor]:
    """What adaptation updates, named as in the network's state."""
    named: dict[str, Tensor] = {}
    for k, meta in enumerate(network.metas):
        trainable = {id(parameter) for parameter in meta.trainable()}  # type: ignore[operator]
        named |= {f"metas.{k}.{name}": p for name, p in meta.named_parameters() if id(p) in trainable}
    segments = {**{f"part{k}": part for k, part in enumerate(network.parts, 1)}, "classifier": network.classifier}
    for prefix, segment in segments.items():
        named |= {f"{prefix}.{name}": bias for name, bias in segment.biases.items()}
    return named


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


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
