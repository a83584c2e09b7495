"""The backward of a meta-network, written out, in slices of the batch.

Two gradients pass in one sweep: the objective's, which goes on to earlier parts, and the regulariser's, which trains
this meta-network alone. Where statistics are functions of the batch, sums over all of it come before any gradient:
several slices are then walked through twice. What was not kept is rebuilt on the way:

- the convolution's output from x~_{k-1};
- the normalised x_k from x~_k, by undoing the addition: (x~_k - scale * ReLU(...) - bias) / weight. Where the weight
  of a channel is so small that digits would be lost, x_k comes from the frozen part once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from edgetta.adaptation.channel_norm import GradientSums, Moments, channel_dot, column, input_gradient, rows_in_cache
from edgetta.adaptation.kept_tensor import KeptTensor
from edgetta.adaptation.meta_network import Kept, MetaNetwork

LARGEST_LOSS = 32.0
"""By how much undoing the addition may enlarge a rounding error: five of float32's 24 bits."""

FrozenAgain = Callable[[int, int], Tensor]


@dataclass(frozen=True)
class SliceGradients:
    """Gradients for the images from `start` to `stop`; None where they are not needed."""

    start: int
    stop: int
    to_frozen: Tensor | None  # of x_k
    to_input: Tensor | None  # of x~_{k-1}, through the branch alone


@dataclass
class Boundaries:
    """Where a part begins and ends, for its backward."""

    x_in: KeptTensor  # x~_{k-1}
    x_out: KeptTensor | None  # x~_k, where it is kept
    frozen_again: FrozenAgain  # x_k of the images from one to another, through the frozen part


@torch.no_grad()
def can_undo(meta: MetaNetwork) -> bool:
    """Whether the normalised x_k follows from x~_k with few digits lost, in every channel."""
    branch = meta.scale.abs() * (meta.branch_weight.abs() + meta.branch_bias.abs())
    weight = meta.norm_weight.abs()
    return bool((weight + meta.norm_bias.abs() + branch <= LARGEST_LOSS * weight).all())


@torch.no_grad()
def backward_slices(
    meta: MetaNetwork,
    kept: Kept,
    boundaries: Boundaries,
    grad: Tensor | None,
    regulariser: float = 0.0,
    *,
    images: int = 0,
    needs_frozen: bool = True,
    needs_input: bool = True,
) -> Iterator[SliceGradients]:
    """Add to the parameters' gradients; yield those of x_k and x~_{k-1}, slice by slice, where they are needed.

    grad         the objective's gradient of x~_k, of its shape, or None; slices that were yielded are not read again
    regulariser  weight of mean |x~_k - x_k|, whose gradient reaches the parameters only: its inputs are detached
    images       per slice; 0: the whole batch
    """
    if grad is None and not regulariser:
        return
    sweep = _Sweep(meta, kept, boundaries, grad, regulariser, needs_frozen, needs_input)
    count = kept.shape[0]
    rows = sweep.rows(min(images or count, count))
    del kept, boundaries, grad
    sums_first = rows < count and sweep.needs_sums
    if sums_first:
        for start, stop in _ranges(0, count, rows):
            sweep.add_sums(sweep.open(start, stop))
    for start, stop in _ranges(0, count, images or count):
        to_frozen, to_input = Gathered(stop - start), Gathered(stop - start)
        for first, last in _ranges(start, stop, rows):
            opened = sweep.open(first, last, again=sums_first)
            if not sums_first:
                sweep.add_sums(opened)
            sweep.gradients(opened, first - start, to_frozen, to_input)
            del opened
        if stop == count:
            sweep.finish()
            del sweep  # and with it what was kept: the caller goes on with the last slice
        gradients = SliceGradients(start, stop, to_frozen.whole, to_input.whole)
        del to_frozen, to_input
        if gradients.to_frozen is not None or gradients.to_input is not None:
            yield gradients
        del gradients


class Gathered:
    """A tensor of so many images, put together from slices; `whole` is None until the first.

    `memory` is used for it where the shape is the same.
    """

    def __init__(self, images: int, memory: Tensor | None = None) -> None:
        self._images = images
        self._memory = memory
        self.whole: Tensor | None = None

    def put(self, start: int, rows: Tensor) -> None:
        if len(rows) == self._images:
            self.whole = rows
            return
        if self.whole is None:
            shape = (self._images, *rows.shape[1:])
            fits = self._memory is not None and self._memory.shape == shape and self._memory.is_contiguous()
            self.whole = self._memory if fits else rows.new_empty(shape)
        assert self.whole is not None
        self.whole[start : start + len(rows)] = rows


def _ranges(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    return [(first, min(first + size, stop)) for first in range(start, stop, size)]


@dataclass
class _Opened:
    """One slice, as normalisations see it."""

    start: int
    stop: int
    x_in: Tensor
    convolved: Tensor
    active: Tensor
    passes: Tensor | None  # the branch's ReLU as a mask; None: where `active` is positive
    seen: Tensor | None  # x_k, or what its normalised form follows from as well; None where it is not needed again
    objective: Tensor | None  # the objective's gradient of x~_k
    total: Tensor  # with the regulariser's


class _Sums:
    """What the gradients of both normalisations are made of, for one gradient of x~_k."""

    def __init__(self) -> None:
        self.norm, self.branch = GradientSums(), GradientSums()


class _Sweep:
    """The arguments of `backward_slices`, and the sums that it gathers."""

    def __init__(
        self,
        meta: MetaNetwork,
        kept: Kept,
        boundaries: Boundaries,
        grad: Tensor | None,
        regulariser: float,
        needs_frozen: bool,
        needs_input: bool,
    ) -> None:
        self.meta, self.kept, self.boundaries, self.grad = meta, kept, boundaries, grad
        self.needs_frozen = needs_frozen and grad is not None
        self.needs_input = needs_input and grad is not None
        self.pull = regulariser / math.prod(kept.shape)
        self.channel = math.prod(kept.shape) // meta.spec.out_channels  # elements of a channel, in the whole batch
        self.total = _Sums()
        self.objective = _Sums() if self.pull and grad is not None else self.total
        self.to_scale: Tensor | None = None
        self.undo = kept.x_frozen is None and boundaries.x_out is not None and can_undo(meta)
        self.norm = kept.norm_moments  # the normalised x_k is (seen - norm.mean) * norm.inverse_deviation
        if self.undo:
            self.norm = Moments(meta.norm_bias, meta.norm_weight.reciprocal(), self.norm.differentiable)

    @property
    def needs_sums(self) -> bool:
        """Whether a gradient of one image depends on all of them."""
        return self.kept.norm_moments.differentiable or self.kept.branch_moments.differentiable

    def rows(self, images: int) -> int:
        """How many images are opened at a time, of slices of `images`.

        As many as a processor's cache takes: twice through the cache is quicker than once through memory. Frozen parts
        that run again see whole slices.
        """
        if self.kept.x_frozen is None and not self.undo:
            return images
        return min(images, rows_in_cache(self.kept.shape, self.meta.conv.device))

    def open(self, start: int, stop: int, again: bool = False) -> _Opened:
        """Rebuild what the images from `start` to `stop` need; `again`: a second time, with all sums."""
        meta, kept = self.meta, self.kept
        x_in = self.boundaries.x_in.rows(start, stop)
        convolved = meta.convolve(x_in) if kept.convolved is None else meta.flat(kept.convolved.rows(start, stop))
        active, passes = meta.activate(convolved, kept.branch_moments), None
        if kept.active is None:
            active.relu_()
        else:
            passes = meta.flat(kept.active.rows(start, stop))
            active.mul_(passes.view(torch.uint8))
        seen = None
        if not again or (self.needs_frozen and self.norm.differentiable) or (self.pull and kept.above is None):
            seen = self._seen(start, stop, active)
        objective = None if self.grad is None else meta.flat(self.grad[start:stop])
        total = objective
        if self.pull:
            pull = self._pull(start, stop, active, seen)
            total = pull if objective is None else pull.add_(objective)
        assert total is not None
        return _Opened(start, stop, x_in, convolved, active, passes, seen, objective, total)

    def add_sums(self, opened: _Opened) -> None:
        """Take in a slice that is opened for the first time."""
        assert opened.seen is not None
        self.total.norm.add(opened.total, opened.seen)
        self.total.branch.add(self._through_relu(opened.total, opened), opened.convolved)
        if self.meta.spec.initialisation == "identity":
            to_scale = channel_dot(opened.total, opened.active)
            self.to_scale = to_scale if self.to_scale is None else self.to_scale.add_(to_scale)
        if opened.objective is None or self.objective is self.total:
            return
        if self.needs_frozen and self.norm.differentiable:
            self.objective.norm.add(opened.objective, opened.seen)
        if self.needs_input and self.kept.branch_moments.differentiable:
            self.objective.branch.add(self._through_relu(opened.objective, opened), opened.convolved)

    def gradients(self, opened: _Opened, at: int, to_frozen: Gathered, to_input: Gathered) -> None:
        """Put those of opened images in their place, once the sums are there, and add the convolution's to it."""
        meta, objective = self.meta, opened.objective
        to_convolved = self._to_convolved(opened.total, self.total, opened)
        _accumulate(meta.conv, self._to_weight(opened.x_in, to_convolved))
        if objective is not None and self.needs_input:
            if self.objective is not self.total:
                to_convolved = self._to_convolved(objective, self.objective, opened)
            to_input.put(at, self._to_input(opened.x_in, to_convolved))
        del to_convolved
        if objective is not None and self.needs_frozen:
            scale = meta.norm_weight * self.kept.norm_moments.inverse_deviation
            gradient = input_gradient(objective, opened.seen, self.norm, scale, self.objective.norm, self.channel)
            to_frozen.put(at, gradient.view(opened.stop - opened.start, *self.kept.shape[1:]))

    def finish(self) -> None:
        """Add the sums to the gradients of their parameters."""
        meta = self.meta
        norm = self.total.norm.parameter_gradients(self.norm)
        branch = self.total.branch.parameter_gradients(self.kept.branch_moments)
        for parameter, gradient in zip(
            (meta.norm_weight, meta.norm_bias, meta.branch_weight, meta.branch_bias), (*norm, *branch), strict=True
        ):
            _accumulate(parameter, gradient)
        if self.to_scale is not None:
            _accumulate(meta.scale, self.to_scale)

    def _seen(self, start: int, stop: int, active: Tensor) -> Tensor:
        """x_k, or x~_k without the branch where the normalisation is undone."""
        meta = self.meta
        if self.kept.x_frozen is not None:
            return meta.flat(self.kept.x_frozen.rows(start, stop))
        if not self.undo:
            return meta.flat(self.boundaries.frozen_again(start, stop))
        assert self.boundaries.x_out is not None
        out = meta.flat(self.boundaries.x_out.rows(start, stop))
        return torch.addcmul(out, active, column(meta.scale, active), value=-1)

    def _pull(self, start: int, stop: int, active: Tensor, seen: Tensor | None) -> Tensor:
        """The regulariser's gradient of x~_k: the sign of x~_k - x_k, times a constant."""
        kept = self.kept
        if kept.above is not None and kept.below is not None:
            sign = self.meta.flat(kept.above.rows(start, stop)).to(active.dtype)
            sign.sub_(self.meta.flat(kept.below.rows(start, stop)).view(torch.uint8))
        else:
            assert seen is not None
            sign = self.meta.combine(seen, active, kept.norm_moments).sub_(seen).sign_()
        return sign.mul_(self.pull)

    def _through_relu(self, grad: Tensor, opened: _Opened) -> Tensor:
        """The gradient of what the branch's ReLU sees, for a gradient of x~_k."""
        scaled = grad * column(self.meta.scale, grad)
        if opened.passes is not None:
            return scaled.mul_(opened.passes.view(torch.uint8))
        result: Tensor = torch.ops.aten.threshold_backward(scaled, opened.active, 0.0)
        return result

    def _to_convolved(self, grad: Tensor, sums: _Sums, opened: _Opened) -> Tensor:
        """The gradient of the convolution's output, for a gradient of x~_k."""
        moments = self.kept.branch_moments
        scale = self.meta.branch_weight * moments.inverse_deviation
        through = self._through_relu(grad, opened)
        return input_gradient(through, opened.convolved, moments, scale, sums.branch, self.channel)

    def _to_weight(self, x_in: Tensor, grad: Tensor) -> Tensor:
        if self.meta.spec.tokens:
            return (grad.t() @ self.meta.flat(x_in))[:, :, None, None]
        return self._conv_gradients(x_in, grad, weight=True)

    def _to_input(self, x_in: Tensor, grad: Tensor) -> Tensor:
        if self.meta.spec.tokens:
            return (grad @ self.meta.conv[:, :, 0, 0]).view(x_in.shape)
        return self._conv_gradients(x_in, grad, weight=False)

    def _conv_gradients(self, x_in: Tensor, grad: Tensor, weight: bool) -> Tensor:
        pad, stride = self.meta.spec.kernel // 2, self.meta.spec.stride
        gradients = torch.ops.aten.convolution_backward(
            grad,
            x_in,
            self.meta.conv,
            None,
            [stride, stride],
            [pad, pad],
            [1, 1],
            False,
            [0, 0],
            1,
            [not weight, weight, False],
        )
        return gradients[1] if weight else gradients[0]


def _accumulate(parameter: Tensor, gradient: Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
