"""Running statistics of a finished network, for devices that see small batches or single frames.

Training with batch statistics leaves the running ones at whatever batch came last (frozen part) or at their start
(meta-networks). A device that begins with running statistics needs those of the network as it is now.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from edgetta.adaptation.network import AdaptiveNetwork

AVERAGED_IMAGES = 1024
"""Time constant of the average, in images."""


@torch.no_grad()
def settle_running_statistics(network: AdaptiveNetwork, batches: Iterable[Tensor]) -> None:
    """Let running statistics start from those of training and follow `batches` through the adapted network.

    Nothing else changes. A network with folded BatchNorms is left as it is: it uses none.

    Args:
        network: its segments must hold the graphs that they were derived with.
        batches: source images (N, C, H, W) in [0, 1]; a few thousand are enough.
    """
    if network.batch_norm == "source":
        return
    for segment in (network.stem, *network.parts, network.classifier):
        segment.state.update({name: tensor.clone() for name, tensor in segment.graphs.initial_state.items()})
    policy, images = network.batch_norm, network.ema_images
    network.batch_norm, network.ema_images = "ema", AVERAGED_IMAGES
    try:
        for batch in batches:
            network.forward(batch, keep=False)
    finally:
        network.batch_norm, network.ema_images = policy, images
