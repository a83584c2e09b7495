"""EcoTTA as published: blocks that are no identity, a supervised warm-up, two passes per batch (Song et al., 2023).

Warm-up and rates after its public re-implementation (github.com/Lily-Le/EcoTTA): SGD at 5e-2, then 5e-3, momentum 0.9,
a regulariser of 0.25, first a step on the regulariser, then one on the entropy of a second forward. The warm-up here
is shorter, see `WARM_UP`; what it leaves is kept with the corrupted images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgetta.adaptation.config import AdaptConfig
from edgetta.bench.accuracy.images import CLEAN, ImageCache
from edgetta.bench.accuracy.streams import as_tensor
from edgetta.bench.baselines.ecotta_stock import EcottaStock, stock_metas
from edgetta.export.derive import derive
from edgetta.models import cuts, load_model
from edgetta.offline.network import Network
from edgetta.offline.source_statistics import batches_of, with_source_statistics
from edgetta.offline.warm_up import WarmUpConfig, warm_up
from edgetta.sources.datasets import data_folder

IMAGES, HELD_OUT, SEED = 20_000, 500, 102
WARM_UP = WarmUpConfig(epochs=2)


def warmed_up(architecture: str, weights: str, cache: ImageCache, parts: int = 4) -> Network:
    """The network after its warm-up; trained where the cache does not hold it yet."""
    loaded = load_model(architecture, weights=data_folder() / "weights" / f"{weights}.npz")
    model = derive(loaded.module, loaded.input_shape, cuts(architecture, parts), kernel=3, initialisation="published")
    found = cache.images("train", CLEAN, 1, IMAGES + HELD_OUT, SEED)
    images = torch.from_numpy(found.images.transpose(0, 3, 1, 2).copy())
    labels = torch.from_numpy(found.labels)
    network = with_source_statistics(Network(model.programs), batches_of(as_tensor(found.images[:2048]), 64))
    checkpoint = cache.folder / f"warm-up-2-{weights}-{parts}-{IMAGES}-{WARM_UP.epochs}.safetensors"
    held_out = (images[IMAGES:], labels[IMAGES:])
    return warm_up(network, images[:IMAGES], labels[:IMAGES], held_out, WARM_UP, checkpoint)[0]


class EcottaPublished(EcottaStock):
    """Predicts, then adapts in two passes; `adapts` False shows what the warm-up alone does.

    module, cuts   the backbone, and where it was cut
    network        with the meta-networks of the warm-up
    """

    def __init__(
        self, module: nn.Module, cuts: Sequence[str], network: Network, learning_rate: float, adapts: bool = True
    ) -> None:
        config = AdaptConfig(learning_rate=learning_rate, regulariser=0.25)
        super().__init__(module, cuts, stock_metas(network.programs), config)
        self.adapts, self.updates, self.kept_bytes = adapts, 0, 0

    def __call__(self, images: Tensor) -> Tensor:
        if not self.adapts:
            with torch.no_grad():
                return self.forward(images, False)[0].detach()
        logits, distances = self.forward(images)
        (self.config.regulariser * torch.stack(distances).sum()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective(self.forward(images, False)[0]).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        return logits.detach()

    def reset(self) -> None:
        super().reset()
        self.updates = 0
