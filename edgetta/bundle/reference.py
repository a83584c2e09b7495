"""Golden answers of a bundle: computed at export, stored in `reference.npz`, computed again by the self-test."""

from __future__ import annotations

import io
import math
import zipfile

import numpy as np

from edgetta.bundle.files import BundleFiles
from edgetta.engines.contract import Array, Engine, Mixing, Moments, ProgramSet
from edgetta.errors import BundleError, one_line

MAX_GRADIENT_ELEMENTS = 1 << 14
"""Larger parameters are not compared: their gradients would make up most of the bundle."""
MAX_REFERENCE_BYTES = 256 << 20
SHARE = 0.5
"""Of the golden images in the statistics of `measure`: every operator takes part, and channels without variance

amplify nothing.
"""


def golden_run(engine: Engine, images: Array, with_gradients: bool = True) -> dict[str, Array]:
    """What the network as shipped makes of images (N, C, H, W): "logits" (N, classes) with the statistics of training,

    "mixed_logits" with these and the images' own, and "gradient.NAME" of a fixed linear function of the logits by each
    parameter that is not too large. Linear, because the gradient of the entropy vanishes where a network is sure or
    knows nothing, and rounding errors would then drown what is tested.
    """
    programs = engine.programs
    source, shipped = programs.source, programs.shipped
    found = {"logits": engine.predict(images, shipped, source)}
    mixing = Mixing.plain(Moments(source.mean, source.variance), SHARE)
    found["mixed_logits"] = engine.measure(images, shipped, mixing)[0]
    if with_gradients:
        passed = engine.forward(images, shipped, source, moments=False)
        gradients = engine.backward(passed.residuals, _pattern(passed.logits), 0.0, shipped)
        for name, gradient in programs.parameters.split(gradients).items():
            if gradient.size <= MAX_GRADIENT_ELEMENTS:
                found[f"gradient.{name}"] = gradient
    return found


def read_reference(files: BundleFiles, programs: ProgramSet) -> dict[str, Array]:
    """The arrays of `reference.npz`: float32, "images", "logits", "mixed_logits", "gradient.NAME".

    Raises `BundleError` where they are pickled, compressed, of another type, or not those of the programs.
    """
    name = files.manifest.reference
    where = f"{name} in bundle {files.path}"
    if files.manifest.files[name].size > MAX_REFERENCE_BYTES:
        raise BundleError(f"{where} is larger than the {MAX_REFERENCE_BYTES} bytes allowed; export the bundle again")
    try:
        arrays = _read_arrays(files.read(name))
        images = arrays["images"]
        if images.ndim != 4 or images.shape[0] < 1 or images.shape[1:] != programs.input_shape:
            raise ValueError(f"its images have shape {images.shape}, not (N, {programs.input_shape})")
        for key in ("logits", "mixed_logits"):
            if arrays[key].shape != (images.shape[0], programs.classes):
                raise ValueError(f"{key} has shape {arrays[key].shape}")
    except (ValueError, KeyError, OSError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise BundleError(f"{where} cannot be used: {one_line(error)}; export the bundle again") from error
    return arrays


def _read_arrays(data: bytes | bytearray) -> dict[str, Array]:
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


def _pattern(logits: Array) -> Array:
    """The gradient with respect to the logits (N, C): numbers of both signs that repeat nowhere."""
    numbers = np.arange(logits.size, dtype=np.float64)
    return (np.cos(0.7 + numbers) / logits.shape[0]).reshape(logits.shape).astype(logits.dtype)
