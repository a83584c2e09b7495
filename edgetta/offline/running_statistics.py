"""Running statistics of a finished network, for devices that see small batches or single frames.

Training with batch statistics leaves the running ones at whatever batch came last (frozen part) or at their start
(meta-networks). A device that begins with running statistics needs those of the network as it is now.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from edgetta.adaptation.network import AdaptiveNetwork


@torch.no_grad()
def settle_running_statistics(network: AdaptiveNetwork, batches: Iterable[Tensor]) -> None:
    """Make the running statistics the averages over `batches`, as they pass through the network.

    Each image counts once: the first batch replaces what was there, the n-th joins with its share of all so far.
    Nothing else changes. A network whose policy is `source` is left as it is.

    Args:
        network: frozen parts and meta-networks as they will ship.
        batches: shuffled source images (N, C, H, W) in [0, 1]; a few thousand are enough.
    """
    if network.batch_norm == "source":
        return
    policy, images, seen = network.batch_norm, network.ema_images, 0
    network.batch_norm = "ema"
    try:
        for batch in batches:
            seen += batch.shape[0]
            network.ema_images = seen  # the momentum is the batch's share of it
            network.forward(batch, keep=False)
    finally:
        network.batch_norm, network.ema_images = policy, images
