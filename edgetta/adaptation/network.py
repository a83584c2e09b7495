"""The adapted network: frozen stem, parts with a meta-network beside each, frozen classifier.

One batch flows forward and back:

    x~_0 = stem(x);  x_k = part_k(x~_{k-1});  x~_k = meta_k(x~_{k-1}, x_k);  logits = classifier(x~_K)

Nothing before the first meta-network trains: the stem needs no backward, nor the first part unless something in it
adapts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from edgetta.adaptation.channel_norm import Statistics
from edgetta.adaptation.kept_tensor import Dither, KeptTensor
from edgetta.adaptation.meta_backward import Boundaries, Gathered, backward_slices
from edgetta.adaptation.meta_network import MetaNetwork
from edgetta.adaptation.step_memory import FULL, StepMemory
from edgetta.adaptation.tape import Tape
from edgetta.segments.contract import Segment

BatchNorm = Literal["auto", "batch", "ema", "source"]
EMA_BELOW = 16  # `auto`: batches smaller than this use running statistics
EMA_IMAGES = 64  # running statistics forget with a time constant of about this many images


class AdaptiveNetwork:
    """Frozen segments and trainable meta-networks as one model.

    batch_norm   statistics of the frozen BatchNorms and of the meta-networks' own:
                 batch (of each batch), ema (running), source (as trained; running ones that do not move),
                 auto (as `forward` is told; else batch from 16 images up, ema below)
    ema_images   time constant of the running statistics, in images
    memory       what a step keeps; may be replaced between steps: a forward reads it, and its tape remembers it.
                 Rounding to 8 bits is random, from the same beginning in every new or restored network
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
        self.adapt_affine = True
        """Whether biases and weights of frozen segments that can adapt get a gradient."""
        self._dither = Dither()

    @property
    def device(self) -> torch.device:
        """Where the meta-networks are, and where images belong."""
        return next(self.metas.parameters()).device

    def statistics(self, batch: int, share: float | None = None) -> tuple[Statistics, float]:
        """The meta-networks' statistics policy and the frozen BatchNorms' momentum for a batch of this size.

        share   of the batch in the running statistics, which policy `auto` then takes instead of its own choice
        """
        if self.batch_norm == "source":
            return "ema", 0.0
        if self.batch_norm == "auto" and share is not None:
            return "ema", share
        if self.batch_norm == "batch" or (self.batch_norm == "auto" and batch >= EMA_BELOW):
            return "batch", 1.0
        return "ema", min(1.0, batch / self.ema_images)

    @torch.no_grad()
    def forward(
        self, x: Tensor, keep: bool = True, track: bool = True, share: float | None = None
    ) -> tuple[Tensor, Tape]:
        """Logits (N, classes) for images (N, C, H, W) in [0, 1], and the tape when `keep` is set.

        With `track` False running statistics are used but not moved, nor replaced by those of this batch. `share`: see
        `statistics`.
        """
        statistics, momentum = self.statistics(x.shape[0], share)
        if statistics == "ema" and not track:
            momentum = 0.0
        before = self.statistics_snapshot() if not track else None
        memory = self.memory
        tape = Tape(batch=x.shape[0], memory=memory)
        x, _ = self.stem.forward(x, keep=False, momentum=momentum)
        for k, (part, meta) in enumerate(zip(self.parts, self._metas, strict=True)):
            frozen, residuals = part.forward(x, keep=keep and self._passes_gradient(k, memory), momentum=momentum)
            overwrite = frozen.is_contiguous() and not _overlap(frozen, x, *residuals.kept.values())
            passed = meta(x, frozen, statistics, momentum, keep, memory, self._dither, overwrite)
            del frozen
            if passed.kept is not None:
                tape.boundaries.append(KeptTensor.of(x, memory.form, self._dither))
                tape.record(part, residuals)
                tape.kept.append(passed.kept)
                tape.distances.append(passed.distance)
            x = passed.out
        logits, residuals = self.classifier.forward(x, keep=keep, momentum=momentum)
        if keep:
            tape.record(self.classifier, residuals)
            if memory.rebuilds or tape.recorded[-1].needs_input:
                tape.boundaries.append(KeptTensor.of(x, memory.form, self._dither))
        if before is not None:  # under `batch` the frozen segments take the batch's statistics as their state
            self.restore_statistics(before)
        return logits, tape

    @torch.no_grad()
    def backward(self, tape: Tape, grad_logits: Tensor | None, regulariser: float = 0.0) -> None:
        """Add gradients to every trainable parameter: those of the objective for `grad_logits` (N, classes), and of

        `regulariser * sum_k R_k`, each of which reaches its own meta-network only. Consumes the tape.
        """
        grad = self._through_classifier(tape, grad_logits)
        memory = tape.memory
        for k in reversed(range(len(self.parts))):
            part, recorded = self.parts[k], tape.recorded.pop()
            ends = tape.ends_of_part()
            slices = backward_slices(
                self._metas[k],
                tape.kept.pop(),
                Boundaries(*ends, partial(_frozen_again, part, recorded.state, ends[0])),
                grad,
                regulariser,
                images=memory.slice,
                needs_frozen=self._passes_gradient(k, memory),
                needs_input=k > 0,
            )
            x_in = ends[0] if recorded.needs_input else None
            gathered = Gathered(tape.batch, grad if memory.slice else None)
            del ends
            grad = None  # what the meta-network alone needs is free before the frozen part takes its memory
            for piece in slices:
                if piece.to_frozen is not None:
                    residuals = recorded.rows(part.graphs, x_in, piece.start, piece.stop)
                    through, affine_gradients = part.input_gradient(residuals, piece.to_frozen)
                    self._accumulate(part, affine_gradients)
                    if piece.to_input is not None:
                        piece.to_input.add_(through)
                if piece.to_input is not None:
                    gathered.put(piece.start, piece.to_input)
            grad = gathered.whole

    def _through_classifier(self, tape: Tape, grad_logits: Tensor | None) -> Tensor | None:
        """The objective's gradient of x~_K."""
        recorded = tape.recorded.pop()
        x_in = tape.boundaries[-1] if recorded.needs_input else None
        if not tape.memory.rebuilds and x_in is not None:
            tape.boundaries.pop()
        if grad_logits is None:
            return None
        gathered = Gathered(tape.batch)
        images = tape.memory.slice or tape.batch
        for start in range(0, tape.batch, images):
            stop = min(start + images, tape.batch)
            residuals = recorded.rows(self.classifier.graphs, x_in, start, stop)
            gradient, affine_gradients = self.classifier.input_gradient(residuals, grad_logits[start:stop])
            self._accumulate(self.classifier, affine_gradients)
            gathered.put(start, gradient)
        return gathered.whole

    def statistics_snapshot(self) -> list[dict[str, Tensor]]:
        """Running statistics as they are, for `restore_statistics`: a few numbers per channel."""
        segments = [dict(segment.state) for _, segment in self.segments()]  # replaced, never written in place
        return [*segments, *({name: b.clone() for name, b in meta.named_buffers()} for meta in self.metas)]

    def restore_statistics(self, snapshot: list[dict[str, Tensor]]) -> None:
        """Put running statistics back, as after a batch that was not finite."""
        owners = self.segments()
        for (_, segment), state in zip(owners, snapshot, strict=False):
            segment.state.update(state)
        for meta, buffers in zip(self.metas, snapshot[len(owners) :], strict=True):
            for name, buffer in meta.named_buffers():
                buffer.copy_(buffers[name])

    def statistics_finite(self) -> bool:
        """Whether all running statistics are numbers: an overflow need not show in the logits."""
        statistics = [tensor for _, segment in self.segments() for tensor in segment.state.values()]
        flat = torch.cat([tensor.flatten() for tensor in (*statistics, *self.metas.buffers())])
        return bool(torch.isfinite(flat).all())

    def parameters(self) -> Iterator[nn.Parameter]:
        """Everything that adaptation updates: the meta-networks', then what adapts of the frozen segments."""
        for meta in self._metas:
            yield from meta.trainable()
        for segment in (*self.parts, self.classifier):
            yield from segment.affine.values()  # type: ignore[misc]

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor that changes on the device: meta-networks, running statistics, adapted biases and weights."""
        tensors = {f"metas.{name}": tensor for name, tensor in self.metas.state_dict().items()}
        for name, segment in self.segments():
            tensors |= {f"{name}.{key}": tensor for key, tensor in {**segment.state, **segment.affine}.items()}
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
        for prefix, segment in self.segments():
            for key in segment.state:
                segment.state[key] = tensors[f"{prefix}.{key}"].to(segment.state[key]).clone()
            for key, value in segment.affine.items():
                value.copy_(tensors[f"{prefix}.{key}"])
        self._dither.restart()

    def segments(self) -> list[tuple[str, Segment]]:
        """The frozen segments by name, from input to output."""
        parts = [(f"part{k}", part) for k, part in enumerate(self.parts, 1)]
        return [("stem", self.stem), *parts, ("classifier", self.classifier)]

    def _passes_gradient(self, k: int, memory: StepMemory) -> bool:
        """Part k (from 0) passes a gradient on, unless local, or the first with nothing that adapts."""
        part = self.parts[k]
        return not memory.local and part.gradient != "local" and (k > 0 or (self.adapt_affine and bool(part.affine)))

    def _accumulate(self, segment: Segment, gradients: dict[str, Tensor]) -> None:
        if not self.adapt_affine:
            return
        for name, gradient in gradients.items():
            parameter = segment.affine[name]
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def _frozen_again(part: Segment, state: dict[str, Tensor], x_in: KeptTensor, start: int, stop: int) -> Tensor:
    """x_k of some images through the frozen part, with the statistics of the forward; running ones stay."""
    now = dict(part.state)
    part.state.update(state)
    try:
        return part.forward(x_in.rows(start, stop), keep=False, momentum=0.0)[0]
    finally:
        part.state.update(now)


def _overlap(tensor: Tensor, *others: Tensor) -> bool:
    """Whether a tensor's memory is that of another one, too."""
    return any(tensor.untyped_storage().data_ptr() == other.untyped_storage().data_ptr() for other in others)
