"""edgetta as a `Method`, and the oracle that is told the labels: what adaptation could reach at most."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgetta.adaptation.adapter import Adapter
from edgetta.adaptation.config import AdaptConfig
from edgetta.adaptation.step_plan import KEEP, StepPlan
from edgetta.bench.baselines.batch_norm_statistics import batch_norms, with_batch_statistics
from edgetta.bundle.engines import processor_engines
from edgetta.engines.contract import Engine
from edgetta.engines.onnxruntime import OnnxRuntimeEngine
from edgetta.engines.torch import TorchEngine
from edgetta.offline.network import Network


def fastest_engine(network: Network) -> Engine:
    """What a device would run the network on: ONNX Runtime where it is installed."""
    if processor_engines()[0] == "onnxruntime":
        return OnnxRuntimeEngine(network.programs, torch.get_num_threads())
    return TorchEngine(network.programs)


class Edgetta:
    """The adapter that a device runs."""

    def __init__(self, network: Network, config: AdaptConfig | None = None, plan: StepPlan = KEEP) -> None:
        self._plan = plan
        self.config = config or AdaptConfig()
        self.adapter = Adapter(fastest_engine(network), self.config, network.content)
        self.kept_bytes = 0

    def __call__(self, images: Tensor) -> Tensor:
        result = self.adapter.step(images.numpy(), self._plan)
        self.kept_bytes = max(self.kept_bytes, result.kept_bytes)
        return torch.from_numpy(result.logits)

    def reset(self) -> None:
        """Back to the network that ships."""
        self.adapter.state, self.kept_bytes = self.adapter.begin(), 0

    @property
    def updates(self) -> int:
        return self.adapter.state.updates


class MetaOracle:
    """All that adapts, told the labels, with edgetta's own statistics; Adam.

    `labels` are those of the images that come next.
    """

    def __init__(self, network: Network, learning_rate: float = 1e-3) -> None:
        config = AdaptConfig(when="off", hold_back=False)
        self._adapter = Adapter(fastest_engine(network), config, network.content)
        self._rate = learning_rate
        self.labels: Tensor | None = None
        self.kept_bytes = 0
        self.reset()

    def __call__(self, images: Tensor) -> Tensor:
        assert self.labels is not None
        adapter, frames = self._adapter, images.numpy()
        adapter.predict(frames)  # for its statistics alone
        parameters = self._parameters.detach().numpy()
        statistics = adapter.normaliser.statistics(adapter.state.stream)
        passed = adapter.engine.forward(frames, parameters, statistics, moments=False)
        self.kept_bytes = max(self.kept_bytes, passed.residuals.nbytes)
        logits = torch.from_numpy(passed.logits).requires_grad_(True)
        F.cross_entropy(logits, self.labels).backward()
        assert logits.grad is not None
        gradients = adapter.engine.backward(passed.residuals, logits.grad.numpy(), 0.0, parameters)
        self._parameters.grad = torch.from_numpy(gradients)
        self.optimizer.step()
        adapter.state = replace(adapter.state, parameters=self._parameters.detach().numpy().copy())
        return logits.detach()

    def reset(self) -> None:
        self._adapter.state = self._adapter.begin()
        self._parameters = torch.from_numpy(np.array(self._adapter.engine.programs.shipped)).requires_grad_(True)
        self.optimizer = torch.optim.Adam([self._parameters], self._rate)
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
