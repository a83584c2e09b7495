"""EcoTTA as published: blocks that are no identity, a supervised warm-up, two passes per batch (Song et al., 2023).

Warm-up and rates after its public re-implementation (github.com/Lily-Le/EcoTTA): SGD at 5e-2, then 5e-3, momentum 0.9,
a regulariser of 0.25, first a step on the regulariser, then one on the entropy of a second forward. The warm-up here
is shorter, see `WARM_UP`; what it leaves is kept with the corrupted images.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from edgetta.adaptation.model import AdaptableModel
from edgetta.bench.accuracy.edgetta_method import Edgetta, network_of
from edgetta.bench.accuracy.images import CLEAN, ImageCache
from edgetta.bench.accuracy.streams import as_tensor
from edgetta.export.derive import derive
from edgetta.models import cuts, load_model
from edgetta.offline.source_statistics import batches_of, set_source_statistics
from edgetta.offline.warm_up import WarmUpConfig, warm_up
from edgetta.segmented.adapter import AdaptConfig
from edgetta.sources.datasets import data_folder

IMAGES, HELD_OUT, SEED = 20_000, 500, 102
WARM_UP = WarmUpConfig(epochs=2)
CONFIG = AdaptConfig(learning_rate=5e-3, regulariser=0.25, passes=2, statistics="batch")


def warmed_up(
    architecture: str, weights: str, cache: ImageCache, parts: int = 4
) -> tuple[AdaptableModel, dict[str, Tensor]]:
    """The network after its warm-up, and its state; trained where the cache does not hold it yet."""
    loaded = load_model(architecture, weights=data_folder() / "weights" / f"{weights}.npz")
    model = derive(loaded.module, loaded.input_shape, cuts(architecture, parts), kernel=3, initialisation="published")
    found = cache.images("train", CLEAN, 1, IMAGES + HELD_OUT, SEED)
    images = torch.from_numpy(found.images.transpose(0, 3, 1, 2).copy())
    labels = torch.from_numpy(found.labels)
    network = network_of(model)
    set_source_statistics(network, batches_of(as_tensor(found.images[:2048]), 64), loaded.input_shape)
    checkpoint = cache.folder / f"warm-up-{weights}-{parts}-{IMAGES}-{WARM_UP.epochs}.safetensors"
    held_out = (images[IMAGES:], labels[IMAGES:])
    warm_up(network, images[:IMAGES], labels[:IMAGES], held_out, WARM_UP, checkpoint)
    return model, {name: tensor.clone() for name, tensor in network.state_dict().items()}


class EcottaPublished(Edgetta):
    """Predicts, then adapts in two passes; `when="off"` shows what the warm-up alone does."""

    def __init__(
        self, model: AdaptableModel, state: dict[str, Tensor], learning_rate: float, when: str = "always"
    ) -> None:
        super().__init__(model, state, replace(CONFIG, learning_rate=learning_rate, when=when))
