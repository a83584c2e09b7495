"""The demo's stream: held-out digits, one corruption after another, and how each method fares on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgetta.bench.baselines import Method
from edgetta.bench.demo_backbone import as_tensor
from edgetta.corruption import corrupt
from edgetta.errors import UsageError
from edgetta.sources.datasets import Images
from edgetta.storage import atomic_write

if TYPE_CHECKING:
    import torch

    from edgetta.runtime import Runtime
    from edgetta.stream import BatchReport

Report = Callable[[int, int], None]  # done, in all


@dataclass(frozen=True, eq=False)
class CorruptedStream:
    """Images in the order of the stream: a block of `block` images per corruption, each the same digits."""

    images: np.ndarray  # uint8 (N, H, W, 3)
    labels: np.ndarray  # int64 (N,)
    corruptions: tuple[str, ...]
    block: int

    def save(self, path: Path) -> None:
        """As an `.npz` with `images` and `labels`, which `edgetta run` reads."""
        atomic_write(path, lambda file: np.savez(file, images=self.images, labels=self.labels))

    def batches(self, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(images in [0, 1], labels), as torch tensors, in order; the last may be smaller."""
        import torch

        places = range(0, len(self.labels), size)
        labels = torch.from_numpy(self.labels)
        return [(as_tensor(self.images[i : i + size]), labels[i : i + size]) for i in places]

    def errors(self, predicted: Sequence[int]) -> dict[str, float]:
        """Percent wrong under each corruption, for one predicted class per image of the stream.

        Raises `UsageError` where there is not one prediction per image.
        """
        if len(predicted) != len(self.labels):
            raise UsageError(f"{len(predicted)} predictions for a stream of {len(self.labels)} images")
        wrong = (np.asarray(predicted) != self.labels).reshape(len(self.corruptions), self.block).mean(1)
        return {name: 100 * float(share) for name, share in zip(self.corruptions, wrong, strict=True)}


def corrupted_stream(
    digits: Images,
    corruptions: Sequence[str],
    severity: int,
    count: int,
    *,
    parameters: str = "imagenet",
    seed: int = 0,
    progress: Report | None = None,
) -> CorruptedStream:
    """`count` of the digits, in an order drawn from `seed`, under each corruption in turn.

    Raises `UsageError` where there are fewer digits.
    """
    if not 1 <= count <= len(digits):
        raise UsageError(f"{count} images per corruption were asked for; {digits.name} has {len(digits)}")
    order = np.random.default_rng(seed).permutation(len(digits))[:count]
    chosen = digits.subset(order)
    blocks = []
    for number, name in enumerate(corruptions, 1):
        blocks.append(corrupt(chosen.images, name, severity, seed=seed, indices=order, parameters=parameters))
        if progress is not None:
            progress(number, len(corruptions))
    labels = np.tile(chosen.labels, len(corruptions))
    return CorruptedStream(np.concatenate(blocks), labels, tuple(corruptions), count)


def run_method(method: Method, stream: CorruptedStream, batch: int, progress: Report | None = None) -> list[int]:
    """The class a baseline predicts for every image of the stream, as it learns along it."""
    predicted: list[int] = []
    for images, _ in stream.batches(batch):
        predicted += method(images).argmax(1).tolist()
        if progress is not None:
            progress(len(predicted), len(stream.labels))
    return predicted


def run_bundle(
    runtime: Runtime, file: Path, batch: int, predictions: Path | None = None, progress: Report | None = None
) -> list[int]:
    """The class that the runtime predicts for every image of a saved stream, on the path of `edgetta run`."""
    from contextlib import ExitStack

    from edgetta.predictions import open_writer
    from edgetta.sources import open_source
    from edgetta.stream import run_stream

    predicted: list[int] = []
    height, width = runtime.bundle.input_shape[1:]
    with ExitStack() as stack:
        source = stack.enter_context(open_source(file, size=(height, width)))
        writer = None if predictions is None else stack.enter_context(open_writer(predictions, overwrite=True))

        def on_batch(report: BatchReport) -> None:
            predicted.extend(report.predicted)
            if progress is not None:
                progress(len(predicted), source.length or len(predicted))

        run_stream(runtime, source, batch=batch, writer=writer, on_batch=on_batch)
    return predicted
