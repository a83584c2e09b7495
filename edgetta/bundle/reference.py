"""Golden answers of a bundle: computed at export, stored in `reference.npz`, computed again by the self-test."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from edgetta.adaptation.model import AdaptableModel
from edgetta.adaptation.network import EMA_IMAGES, AdaptiveNetwork
from edgetta.bundle.files import BundleFiles
from edgetta.errors import BundleError, one_line

MAX_GRADIENT_ELEMENTS = 1 << 14
"""Larger parameters are not compared: their gradients would make up most of the bundle."""

MAX_REFERENCE_BYTES = 256 << 20


@torch.no_grad()
def golden_run(
    model: AdaptableModel,
    network: AdaptiveNetwork,
    start: Mapping[str, Tensor],
    images: Tensor,
    with_gradients: bool = True,
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
        logits, tape = network.forward(images, keep=with_gradients)
        if with_gradients:
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
        raise BundleError(f"{where} cannot be used: {one_line(error)}; export the bundle again") from error
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def _read_arrays(data: bytes | bytearray) -> dict[str, np.ndarray]:
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
        named |= {f"{prefix}.{name}": bias for name, bias in segment.affine.items()}
    return named
