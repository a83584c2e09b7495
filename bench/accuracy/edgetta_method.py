"""edgetta as a `Method`, and the oracle that is told the labels: what adaptation could reach at most."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetta.adaptation.model import AdaptableModel, build
from edgetta.adaptation.network import AdaptiveNetwork
from edgetta.adaptation.step_memory import FULL, StepMemory
from edgetta.bench.baselines.batch_norm_statistics import batch_norms, with_batch_statistics
from edgetta.segmented.adapter import AdaptConfig, Adapter
from edgetta.segmented.objective import cross_entropy
from edgetta.segments.torch_engine import TorchSegment


def network_of(
    model: AdaptableModel, state: dict[str, Tensor] | None = None, memory: StepMemory = FULL
) -> AdaptiveNetwork:
    """A fresh network, in that state where one is given, on the torch engine with exact gradients."""
    network = build(model, lambda _, graphs, mode: TorchSegment(graphs, mode), "exact", "auto", memory=memory)
    if state is not None:
        network.load_state_dict(state)
    return network


class Edgetta:
    """The adapter that a device runs."""

    def __init__(
        self,
        model: AdaptableModel,
        state: dict[str, Tensor] | None,
        config: AdaptConfig | None = None,
        memory: StepMemory = FULL,
    ) -> None:
        self._model, self._state, self._memory = model, state, memory
        self.config = config or AdaptConfig()
        self.reset()

    def __call__(self, images: Tensor) -> Tensor:
        return self.adapter.step(images).logits

    def reset(self) -> None:
        """Back to the network that ships."""
        self.adapter = Adapter(network_of(self._model, self._state, self._memory), self.config)

    @property
    def updates(self) -> int:
        return self.adapter.updates

    @property
    def kept_bytes(self) -> int:
        return self.adapter.kept_bytes


class MetaOracle:
    """Meta-networks and biases that are told the labels, with edgetta's own statistics; Adam.

    `labels` are those of the images that come next.
    """

    def __init__(self, model: AdaptableModel, state: dict[str, Tensor], learning_rate: float = 1e-3) -> None:
        self._model, self._state = model, state
        self._rate = learning_rate
        self.labels: Tensor | None = None
        self.reset()

    def __call__(self, images: Tensor) -> Tensor:
        assert self.labels is not None
        logits, tape = self._adapter.forward(images)
        self.kept_bytes = sum(tape.kept_bytes().values())
        self.network.backward(tape, cross_entropy(logits, self.labels).gradient)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return logits

    def reset(self) -> None:
        self.network = network_of(self._model, self._state)
        self._adapter = Adapter(self.network)  # for its statistics alone
        self.optimizer = torch.optim.Adam(list(self.network.parameters()), self._rate)
        self.kept_bytes = 0


class AffineOracle:
    """BatchNorm's weight and bias, told the labels, with the batch's own statistics; Adam."""

    def __init__(self, model: nn.Module, learning_rate: float = 1e-3) -> None:
        self.model = with_batch_statistics(model).requires_grad_(False)
        for norm in batch_norms(self.model):
            norm.requires_grad_(True)
        self._start = copy.deepcopy(self.model.state_dict())
        self._rate = learning_rate
        self.labels: Tensor | None = None
        self.reset()

    def __call__(self, images: Tensor) -> Tensor:
        assert self.labels is not None
        with torch.enable_grad():
            logits: Tensor = self.model(images)
            F.cross_entropy(logits, self.labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return logits.detach()

    def parameters(self) -> Iterator[nn.Parameter]:
        """What adapts."""
        return (parameter for parameter in self.model.parameters() if parameter.requires_grad)

    def reset(self) -> None:
        self.model.load_state_dict(self._start)
        self.optimizer = torch.optim.Adam(self.parameters(), self._rate)
