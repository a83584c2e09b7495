"""Have torch keep few of the kernels that it makes for shapes, so that memory does not grow with every new batch size.

oneDNN makes a kernel for each convolution and each shape, and by default torch keeps 1024 of them: with batches of all
sizes that is half a megabyte more at every step, for a thousand steps. A stream whose batches are all of one size
needs a few dozen. The limits are read when the first convolution runs: they count where none has run yet.
"""

from __future__ import annotations

import os

KERNELS = {"torch": 512}
"""Engine -> kernels that are kept; of the others torch runs the meta-networks alone."""

FEW = 16

_VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")  # oneDNN's own, and that of torch's layer on it


def limit_kernel_cache(engine: str) -> None:
    """Keep as many kernels as a step on this engine needs, unless the environment says how many."""
    for variable in _VARIABLES:
        os.environ.setdefault(variable, str(KERNELS.get(engine, FEW)))
