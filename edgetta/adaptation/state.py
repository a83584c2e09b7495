"""Everything that changes while a stream is adapted to, as one value: a step takes one and returns another.

Arrays are never written in place, so undoing a step is keeping the state from before it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgetta.adaptation.normaliser import Normaliser, StreamState
from edgetta.adaptation.schedule import Spent
from edgetta.adaptation.step_rate import Damping

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]

LARGEST = 1e12
"""Of a number in a state: no network that predicts holds one that is larger."""
_WHOLE = ("steps", "updates", "skipped", "empty", "unusable")
_COUNTERS = (*_WHOLE, "fresh")


@dataclass(frozen=True)
class AdaptationState:
    """Where the adaptation stands.

    parameters, momentum   (P,) what adapts, and what SGD remembers of its gradients
    stream                 what statistics are made of
    window                 (W, C, H, W) the latest new images of small batches, oldest first
    fresh                  of them, how many no update has seen
    steps                  batches seen
    updates                made
    skipped                updates refused because something was not finite
    empty                  updates in which no image passed the entropy filter (only the regulariser acted)
    unusable               images that were not finite: left out of statistics and updates
    """

    parameters: Array
    momentum: Array
    stream: StreamState
    window: Array
    fresh: float = 0.0
    steps: int = 0
    updates: int = 0
    skipped: int = 0
    empty: int = 0
    unusable: int = 0
    damping: Damping = field(default_factory=Damping)
    spent: Spent = field(default_factory=Spent)

    def counters(self) -> dict[str, int]:
        return {name: int(getattr(self, name)) for name in _WHOLE}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it by name, for a state file."""
        own = {"parameters": self.parameters, "momentum": self.momentum, "window": self.window}
        own["counters"] = np.array([getattr(self, name) for name in _COUNTERS], np.float64)
        own["spent"] = np.array(list(asdict(self.spent).values()), np.float64)
        own["damping"] = np.array([self.damping.factor, *self.damping.ratios], np.float64)
        return own | {f"stream.{name}": array for name, array in self.stream.arrays().items()}


def restored_state(
    arrays: Mapping[str, NDArray[Any]], like: AdaptationState, normaliser: Normaliser
) -> AdaptationState:
    """The state that `arrays` were taken of; `like` is one of the same network.

    Raises:
        ValueError: another network's, not whole, or not finite.
    """
    stream = {name.removeprefix("stream."): a for name, a in arrays.items() if name.startswith("stream.")}
    own = {name: a for name, a in arrays.items() if not name.startswith("stream.")}
    expected = {"parameters", "momentum", "window", "counters", "spent", "damping"}
    if set(own) != expected:
        odd = sorted(set(own) ^ expected)[0]
        raise ValueError(f"it lacks {odd!r}" if odd in expected else f"it holds {odd!r}, which no state has")
    for name in ("parameters", "momentum"):
        if own[name].shape != like.parameters.shape:
            raise ValueError(
                f"its {name} have shape {own[name].shape}, not {like.parameters.shape}: another network's"
            )
    window, image = own["window"], like.window.shape[1:]
    if window.ndim != 4 or window.shape[1:] != image:
        raise ValueError(f"its window holds images of shape {window.shape[1:]}, not {image}")
    if own["counters"].shape != (len(_COUNTERS),) or own["spent"].shape != (4,) or own["damping"].ndim != 1:
        raise ValueError("its counters are not whole")
    if not all(np.isfinite(own[name]).all() for name in ("parameters", "momentum", "window", "counters", "spent")):
        raise ValueError("it holds values that are not finite")
    for name, array in arrays.items():
        if name not in ("counters", "spent", "damping") and float(np.abs(array).max(initial=0.0)) > LARGEST:
            raise ValueError(f"{name!r} holds numbers beyond any that a network learns")
    counters: dict[str, Any] = dict(zip(_COUNTERS, own["counters"].tolist(), strict=True))
    if min(counters.values()) < 0 or len(own["damping"]) < 1 or not 0 < own["damping"][0] <= 1:
        raise ValueError("its counters are out of range")
    whole = {name: int(counters[name]) for name in _WHOLE}
    updating, total, predicting, predicted = own["spent"].tolist()
    factor, *ratios = own["damping"].tolist()
    if any(math.isnan(ratio) for ratio in ratios):
        raise ValueError("its counters are out of range")
    return AdaptationState(
        own["parameters"].astype(np.float32),
        own["momentum"].astype(np.float32),
        normaliser.restored(stream),
        window.astype(np.float32),
        float(counters["fresh"]),
        **whole,
        damping=Damping(factor, tuple(ratios)),
        spent=Spent(updating, total, predicting, int(predicted)),
    )
