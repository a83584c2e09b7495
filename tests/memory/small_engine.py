"""The small network's programs on the torch engine, and images that are all new, for the tests of this folder."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgetta.adaptation.adapter import Adapter
from edgetta.adaptation.config import AdaptConfig
from edgetta.engines.contract import Engine, ProgramSet
from edgetta.engines.torch import TorchEngine
from edgetta.memory.keep import new_images
from tests.adaptation.backbones import small_programs

CONFIG = AdaptConfig(learning_rate=0.05, entropy_margin=1.0, small_batch=4, window=8, learn_images=8, hold_back=False)


def programs() -> ProgramSet:
    return small_programs(adapt="affine")


def engine() -> Engine:
    return TorchEngine(programs())


def adapter(config: AdaptConfig = CONFIG, of: Engine | None = None) -> Adapter:
    return Adapter(of or engine(), config)


def images(count: int, seed: int = 0) -> Any:
    return new_images(count, programs().input_shape, seed)


def state_of(of: Adapter) -> dict[str, Any]:
    """All that a step may change, but for the time it took."""
    return {name: array.copy() for name, array in of.state.arrays().items() if name != "spent"}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)
