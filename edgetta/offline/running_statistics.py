"""Statistics of training of a finished network: those with which it ships, and from which a device begins.

Warm-up normalises with each batch's own statistics and moves weights that the values behind them depend on; a device
begins with the statistics of the network as it is now.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from edgetta.engines.contract import Mixing, Moments, Statistics
from edgetta.offline.network import Network
from edgetta.offline.source_statistics import joined


def with_running_statistics(network: Network, batches: Iterable[Tensor]) -> Network:
    """The network with moments over all images of `batches`, as they pass through it; its parameters stay.

    Each image counts once: the first batch replaces what was there, the n-th joins with its share of all so far, and
    is itself normalised with what has been joined until then.

    Args:
        network: with parameters as they will ship.
        batches: shuffled source images (N, C, H, W) in [0, 1]; a few thousand are enough.
    """
    source = network.programs.source
    found, seen = Moments(source.mean, source.variance), 0
    for images in batches:
        mixing = Mixing.plain(found, len(images) / (seen + len(images)))
        _, own = network.engine.measure(images.numpy(), network.programs.shipped, mixing)
        found, seen = joined(found if seen else None, seen, own, len(images)), seen + len(images)
    return network.shipping(source=Statistics(found.mean, found.variance))
