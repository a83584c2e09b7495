"""Made-up pictures that differ as photographs do: in light, contrast, colour and texture."""

from __future__ import annotations

import numpy as np


def pictures(count: int, seed: int = 0, light: float = 0.0, size: int = 16) -> np.ndarray:
    """(N, 3, size, size) float32 in [0, 1]; `light` is added to all."""
    rng = np.random.default_rng(seed)
    level, contrast = rng.uniform(0.2, 0.8, (count, 3, 1, 1)), rng.uniform(0.05, 0.5, (count, 1, 1, 1))
    coarse = rng.standard_normal((count, 3, size // 4, size // 4)).repeat(4, 2).repeat(4, 3)
    fine = rng.standard_normal((count, 3, size, size)) * rng.uniform(0.05, 1, (count, 1, 1, 1))
    return np.clip(level + contrast * (coarse + fine) + light, 0, 1).astype(np.float32)
