"""The one interface of every method, and how a method is scored."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor


class Method(Protocol):
    """A classifier that may learn from what it sees: images (N, C, H, W) in [0, 1] -> logits (N, classes).

    The logits are those predicted before the batch is learnt from, as for edgetta.
    """

    def __call__(self, images: Tensor) -> Tensor: ...

    def reset(self) -> None:
        """Forget everything learnt."""
        ...


def error_rate(method: Method, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share of images classified wrong, 0 to 1, over (images, labels) batches in order; nan where there are none.

    The method learns on the way if it does; it is not reset before or after.
    """
    wrong = seen = 0
    for images, labels in batches:
        wrong += int((method(images).argmax(1) != labels).sum())
        seen += labels.numel()
    return wrong / seen if seen else float("nan")
