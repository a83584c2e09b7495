"""What lies between forward and backward, in numpy: a mask as bits, a bounded derivative as bytes, the rest as it is.

The same bits as `edgetta.segments.packing` makes of torch tensors.
"""

from __future__ import annotations

import math

import numpy as np

from edgetta.engines.contract import Array
from edgetta.segments.contract import Residual


def pack(residual: Residual, array: Array) -> Array:
    """The array as it is kept. May reuse the memory of `array` for its result, but never for anything else."""
    if residual.kind == "mask":
        return np.packbits(array.reshape(-1))
    if residual.kind == "code":
        scaled = (array - residual.low) * np.float32(255.0 / (residual.high - residual.low))
        return np.clip(np.rint(scaled, out=scaled), 0, 255, out=scaled).astype(np.uint8)
    return array


def unpack(residual: Residual, kept: Array, shape: tuple[int, ...]) -> Array:
    """The array, of `shape`, as the backward takes it."""
    if residual.kind == "mask":
        return np.unpackbits(kept, count=math.prod(shape)).view(np.bool_).reshape(shape)
    if residual.kind == "code":
        return kept.astype(np.float32) * np.float32((residual.high - residual.low) / 255.0) + np.float32(residual.low)
    return kept
