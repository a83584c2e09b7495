"""The small network far from its initialisation, so that predictions differ, and move with the parameters."""

from __future__ import annotations

import functools

import numpy as np

from edgetta.offline.network import Network
from tests.adaptation.backbones import small_programs


@functools.cache
def far_from_its_start(adapt: str = "affine") -> Network:
    programs = small_programs(adapt=adapt)
    rng = np.random.default_rng(5)
    moved = {
        name: array + (0.3 * rng.standard_normal(array.shape) if name.startswith("metas.") else 0)
        for name, array in programs.parameters.split(programs.shipped).items()
    }
    return Network(programs).shipping(programs.parameters.join(moved))
