"""RDumb (Press et al., NeurIPS 2023): EATA's objective, and back to the source after so many updates.

The settings are the authors' (github.com/oripress/CCC): a reset every 1,000 batches, no Fisher regularisation.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from edgetta.bench.baselines.eata import Eata, EataConfig
from edgetta.errors import UsageError

PERIOD = 1000


class Rdumb(Eata):
    """ETA that forgets everything every `period` batches. Raises `UsageError` for a model without BatchNorm."""

    def __init__(self, model: nn.Module, config: EataConfig | None = None, period: int = PERIOD) -> None:
        if period < 1:
            raise UsageError(f"RDumb resets after at least one batch, not {period}")
        super().__init__(model, None, replace(config or EataConfig(), fisher_weight=0.0))
        self.period = period
        self.batches = 0

    def __call__(self, images: Tensor) -> Tensor:
        if self.batches == self.period:
            self.reset()
        self.batches += 1
        return super().__call__(images)

    def reset(self) -> None:
        """Back to the network that was given, and the count of batches to zero."""
        super().reset()
        self.batches = 0
