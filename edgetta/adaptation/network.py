"""The adapted network: frozen stem, parts with a meta-network beside each, frozen classifier.

One batch flows forward and back:

    x~_0 = stem(x);  x_k = part_k(x~_{k-1});  x~_k = meta_k(x~_{k-1}, x_k);  logits = classifier(x~_K)

Nothing before the first meta-network trains: the stem needs no backward, nor the first part unless its biases adapt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from edgetta.adaptation.channel_norm import Statistics
from edgetta.adaptation.meta_network import Kept, MetaNetwork
from edgetta.adaptation.step_memory import FULL, StepMemory
from edgetta.errors import UsageError
from edgetta.segments.contract import Residuals, Segment

BatchNorm = Literal["auto", "batch", "ema", "source"]
EMA_BELOW = 16  # `auto`: batches smaller than this use running statistics
EMA_IMAGES = 64  # running statistics forget with a time constant of about this many images


@dataclass
class Tape:
    """What one forward keeps for its backward, part by part. `backward` consumes it."""

    batch: int = 0
    memory: StepMemory = FULL  # as it was at the forward
    residuals: list[Residuals] = field(default_factory=list)  # stem excluded: parts, then classifier
    kept: list[Kept] = field(default_factory=list)
    distances: list[Tensor] = field(default_factory=list)  # R_k = mean |x~_k - x_k|

    def kept_bytes(self) -> dict[str, int]:
        """Bytes kept, by owner; a tensor that two owners share is counted once."""
        seen: set[int] = set()
        counts: dict[str, int] = {}
        for k, kept in enumerate(self.kept, 1):
            for name, tensor in kept.tensors().items():
                if tensor.data_ptr() not in seen:
                    seen.add(tensor.data_ptr())
                    counts[f"meta {k}: {name}"] = tensor.numel() * tensor.element_size()
            counts[f"meta {k}: moments"] = kept.norm_moments.nbytes + kept.branch_moments.nbytes
        for k, residuals in enumerate(self.residuals, 1):
            owner = "classifier" if k == len(self.residuals) else f"part {k}"
            counts[f"{owner}: residuals"] = residuals.kept_bytes()
        return counts


class AdaptiveNetwork:
    """Frozen segments and trainable meta-networks as one model.

    batch_norm   statistics of the frozen BatchNorms and of the meta-networks' own:
                 batch (of each batch), ema (running), source (as trained; running ones that do not move),
                 auto (batch from 16 images up, ema below)
    ema_images   time constant of the running statistics, in images
    memory       what a step keeps; may be replaced between steps: a forward reads it, and its tape remembers it
    """

    def __init__(
        self,
        stem: Segment,
        parts: Sequence[Segment],
        classifier: Segment,
        metas: Sequence[MetaNetwork],
        batch_norm: BatchNorm = "auto",
        ema_images: int = EMA_IMAGES,
        memory: StepMemory = FULL,
    ) -> None:
        self.stem = stem
        self.parts = list(parts)
        self.classifier = classifier
        self.metas = nn.ModuleList(metas)
        self._metas = list(metas)
        self.batch_norm: BatchNorm = batch_norm
        self.ema_images = ema_images
        self.memory = memory

    @property
    def device(self) -> torch.device:
        """Where the meta-networks are, and where images belong."""
        return next(self.metas.parameters()).device

    def statistics(self, batch: int) -> tuple[Statistics, float]:
        """The meta-networks' statistics policy and the frozen BatchNorms' momentum for a batch of this size."""
        if self.batch_norm == "source":
            return "ema", 0.0
        if self.batch_norm == "batch" or (self.batch_norm == "auto" and batch >= EMA_BELOW):
            return "batch", 1.0
        return "ema", min(1.0, batch / self.ema_images)

    @torch.no_grad()
    def forward(self, x: Tensor, keep: bool = True, track: bool = True) -> tuple[Tensor, Tape]:
        """Logits (N, classes) for images (N, C, H, W) in [0, 1], and the tape when `keep` is set.

        With `track` False running statistics are used but not moved, nor replaced by those of this batch.
        """
        statistics, momentum = self.statistics(x.shape[0])
        if statistics == "ema" and not track:
            momentum = 0.0
        before = self.statistics_snapshot() if not track else None
        memory = self.memory
        if keep and (memory.storage != "full" or memory.slice):
            raise UsageError(f"storage {memory.storage!r} in slices of {memory.slice} is not ready yet; use 'full'")
        tape = Tape(batch=x.shape[0], memory=memory)
        x, _ = self.stem.forward(x, keep=False, momentum=momentum)
        for k, (part, meta) in enumerate(zip(self.parts, self._metas, strict=True)):
            frozen, residuals = part.forward(x, keep=keep and self._passes_gradient(k, memory), momentum=momentum)
            out, kept = meta(x, frozen, statistics, momentum, keep)
            if kept is not None:
                tape.residuals.append(residuals)
                tape.kept.append(kept)
                tape.distances.append(meta.regulariser(out, frozen))
            x = out
        logits, residuals = self.classifier.forward(x, keep=keep, momentum=momentum)
        if keep:
            tape.residuals.append(residuals)
        if before is not None:  # under `batch` the frozen segments take the batch's statistics as their state
            self.restore_statistics(before)
        return logits, tape

    @torch.no_grad()
    def backward(self, tape: Tape, grad_logits: Tensor | None, regulariser: float = 0.0) -> None:
        """Add gradients to every trainable parameter: those of the objective for `grad_logits` (N, classes), and of

        `regulariser * sum_k R_k`, each of which reaches its own meta-network only. Consumes the tape.
        """
        grad = None
        residuals = tape.residuals.pop()
        if grad_logits is not None:
            grad, bias_gradients = self.classifier.input_gradient(residuals, grad_logits)
            self._accumulate(self.classifier, bias_gradients)
        for k in reversed(range(len(self.parts))):
            part, meta = self.parts[k], self._metas[k]
            residuals, kept = tape.residuals.pop(), tape.kept.pop()
            through_part = self._passes_gradient(k, tape.memory)
            to_frozen, to_input = meta.backward(kept, grad, regulariser, through_part, k > 0)
            del kept
            grad = to_input
            if to_frozen is None:
                continue
            through, bias_gradients = part.input_gradient(residuals, to_frozen)
            self._accumulate(part, bias_gradients)
            if grad is not None:
                grad.add_(through)

    def statistics_snapshot(self) -> list[dict[str, Tensor]]:
        """Running statistics as they are, for `restore_statistics`: a few numbers per channel."""
        segments = [dict(segment.state) for _, segment in self._segments()]  # replaced, never written in place
        return [*segments, *({name: b.clone() for name, b in meta.named_buffers()} for meta in self.metas)]

    def restore_statistics(self, snapshot: list[dict[str, Tensor]]) -> None:
        """Put running statistics back, as after a batch that was not finite."""
        owners = self._segments()
        for (_, segment), state in zip(owners, snapshot, strict=False):
            segment.state.update(state)
        for meta, buffers in zip(self.metas, snapshot[len(owners) :], strict=True):
            for name, buffer in meta.named_buffers():
                buffer.copy_(buffers[name])

    def statistics_finite(self) -> bool:
        """Whether all running statistics are numbers: an overflow need not show in the logits."""
        statistics = [tensor for _, segment in self._segments() for tensor in segment.state.values()]
        flat = torch.cat([tensor.flatten() for tensor in (*statistics, *self.metas.buffers())])
        return bool(torch.isfinite(flat).all())

    def parameters(self) -> Iterator[nn.Parameter]:
        """Everything that adaptation updates: the meta-networks', then the biases of frozen segments that adapt."""
        for meta in self._metas:
            yield from meta.trainable()
        for segment in (*self.parts, self.classifier):
            yield from segment.biases.values()  # type: ignore[misc]

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor that changes on the device: meta-networks, running statistics, adapted biases."""
        tensors = {f"metas.{name}": tensor for name, tensor in self.metas.state_dict().items()}
        for name, segment in self._segments():
            tensors |= {f"{name}.{key}": tensor for key, tensor in {**segment.state, **segment.biases}.items()}
        return {name: tensor.detach() for name, tensor in tensors.items()}

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore `state_dict`; raises `ValueError` when names or shapes differ, and changes nothing then."""
        current = self.state_dict()
        if set(current) != set(tensors):
            odd = sorted(set(current) ^ set(tensors))[0]
            raise ValueError(f"the state does not belong to this network (tensor {odd!r})")
        for name, tensor in tensors.items():
            if current[name].shape != tensor.shape:
                raise ValueError(f"tensor {name!r} has shape {tuple(tensor.shape)}, not {tuple(current[name].shape)}")
        for name, tensor in self.metas.state_dict().items():
            tensor.copy_(tensors[f"metas.{name}"])
        for prefix, segment in self._segments():
            for key in segment.state:
                segment.state[key] = tensors[f"{prefix}.{key}"].to(segment.state[key]).clone()
            for key, bias in segment.biases.items():
                bias.copy_(tensors[f"{prefix}.{key}"])

    def _segments(self) -> list[tuple[str, Segment]]:
        parts = [(f"part{k}", part) for k, part in enumerate(self.parts, 1)]
        return [("stem", self.stem), *parts, ("classifier", self.classifier)]

    def _passes_gradient(self, k: int, memory: StepMemory) -> bool:
        """Part k (from 0) passes a gradient on, unless local, or the first with nothing that adapts."""
        part = self.parts[k]
        return not memory.local and part.gradient != "local" and (k > 0 or bool(part.biases))

    @staticmethod
    def _accumulate(segment: Segment, gradients: dict[str, Tensor]) -> None:
        for name, gradient in gradients.items():
            bias = segment.biases[name]
            bias.grad = gradient if bias.grad is None else bias.grad.add_(gradient)
