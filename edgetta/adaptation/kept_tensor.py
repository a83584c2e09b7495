"""Tensors as a step keeps them between its forward and its backward: as floats, in 16 or 8 bits, masks in one.

All are written and read by rows of the batch, so that neither side ever needs a second whole tensor.
"""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F
from torch import Tensor

from edgetta.adaptation.channel_norm import rows_in_cache
from edgetta.adaptation.step_memory import Form
from edgetta.segments.packing import pack_mask, unpack_mask

GROUP = 64
"""Neighbouring elements of one image that share a scale in 8 bits."""

_LEVELS = 127  # codes are -127 ... 127
_DITHER = 1 << 16
_HALF_LARGEST = 2.0**15  # what the largest element of an image becomes in 16 bits


class Dither:
    """Numbers in [0, 1) that make rounding unbiased: floor(x + u) is x on average over u.

    A table of `_DITHER` evenly spread numbers, shuffled once and entered at a random place for every block: several
    times cheaper than a fresh number per element. The same seed gives the same roundings.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._tables: dict[torch.device, Tensor] = {}
        self.restart()

    def restart(self) -> None:
        """Begin again, as with the first step."""
        self._random = random.Random(self._seed)

    def add_to(self, block: Tensor) -> None:
        """Add to a contiguous block of any size, in place."""
        table = self._table(block.device)
        for part in block.view(-1).split(_DITHER):
            start = self._random.randrange(_DITHER)
            part.add_(table[start : start + part.numel()])

    def _table(self, device: torch.device) -> Tensor:
        """The numbers twice over, so that a whole turn can be read from any place."""
        if device not in self._tables:
            order = torch.randperm(_DITHER, generator=torch.Generator().manual_seed(self._seed))
            numbers = (order.double() + 0.5).div_(_DITHER).float()
            self._tables[device] = torch.cat([numbers, numbers]).to(device)
        return self._tables[device]


class KeptTensor:
    """A tensor (N, ...) in some form, `put` there and given back by `rows`, as floats of its own type.

    float   the tensor itself, without a copy: nothing needs to be put
    half    float16 times a power of two per image, chosen so that nothing overflows and little underflows
    int8    codes from -127 to 127 times a scale per `GROUP` elements; rounding is random and unbiased, zero is exact
    """

    def __init__(self, like: Tensor, form: Form, dither: Dither | None = None) -> None:
        self.shape, self.dtype = like.shape, like.dtype
        self._dither = dither or Dither()
        self.scales: Tensor | None = None
        if form == "float":
            self.data = like
            return
        count, elements = like.shape[0], math.prod(like.shape[1:])
        if form == "half":
            self.data = torch.empty(count, 1, elements, dtype=torch.float16, device=like.device)
            self.scales = torch.empty(count, 1, device=like.device)
        else:  # scales with the exponents of float32; their 8 bits do no harm, for the codes are made with them
            groups = math.ceil(elements / GROUP)
            self.data = torch.empty(count, groups, GROUP, dtype=torch.int8, device=like.device)
            self.scales = torch.empty(count, groups, dtype=torch.bfloat16, device=like.device)

    @staticmethod
    def of(x: Tensor, form: Form, dither: Dither | None = None) -> KeptTensor:
        """All of x."""
        kept = KeptTensor(x, form, dither)
        for start in range(0, len(x), rows := rows_in_cache(x.shape, x.device)):
            kept.put(start, x[start : start + rows])
        return kept

    def put(self, start: int, rows: Tensor) -> None:
        """Keep the images that begin with `start`."""
        if self.scales is None:
            return
        data, scales = self.data[start : start + len(rows)], self.scales[start : start + len(rows)]
        flat = rows.reshape(len(rows), -1)
        if data.dtype == torch.float16:
            _to_half(flat, data, scales)
        else:
            _to_int8(flat, data, scales, self._dither)

    def rows(self, start: int, stop: int) -> Tensor:
        """Images `start` to `stop`. Not to be written to: in form "float" it is the tensor itself."""
        data = self.data[start:stop]
        if self.scales is None:
            return data
        scales = self.scales[start:stop, ..., None].to(self.dtype)
        values = data.to(self.dtype).mul_(scales).flatten(1)
        shape = (values.shape[0], *self.shape[1:])
        return values[:, : math.prod(shape[1:])].reshape(shape)

    def tensors(self) -> list[Tensor]:
        """What is held."""
        return [self.data] if self.scales is None else [self.data, self.scales]


def kept_bytes(elements: int, form: Form) -> int:
    """Bytes of one image of so many elements in a form, scales included."""
    if form == "float":
        return 4 * elements
    if form == "half":
        return 2 * elements + 4
    return (GROUP + 2) * math.ceil(elements / GROUP)


class KeptMask:
    """A boolean tensor (N, ...) as bits, written and read by rows; each image begins a byte of its own."""

    def __init__(self, shape: torch.Size, device: torch.device) -> None:
        self.shape = shape
        self._elements = math.prod(shape[1:])
        self.bits = torch.empty(shape[0], (self._elements + 7) // 8, dtype=torch.uint8, device=device)

    def put(self, start: int, mask: Tensor) -> None:
        """Keep the rows that begin with image `start`."""
        flat = mask.reshape(mask.shape[0], -1)
        if self._elements % 8:
            flat = F.pad(flat, (0, -self._elements % 8))
        self.bits[start : start + mask.shape[0]] = pack_mask(flat).view(mask.shape[0], -1)

    def rows(self, start: int, stop: int) -> Tensor:
        bits = self.bits[start:stop]
        mask = unpack_mask(bits.reshape(-1), (bits.shape[0], 8 * bits.shape[1]))
        return mask[:, : self._elements].reshape(bits.shape[0], *self.shape[1:])


def _to_half(x: Tensor, data: Tensor, scales: Tensor) -> None:
    """x (N, E) into float16 (N, 1, E) times powers of two (N, 1)."""
    largest = torch.maximum(x.amax(1), -x.amin(1)).float()
    exponent = torch.frexp(largest / _HALF_LARGEST).exponent
    torch.ldexp(torch.ones_like(largest), exponent.clamp_(-100, 100), out=scales[:, 0])
    data[:, 0] = x * scales.reciprocal().to(x.dtype)


def _to_int8(x: Tensor, codes: Tensor, scales: Tensor, dither: Dither) -> None:
    """x (N, E) into codes (N, G, GROUP) times scales (N, G)."""
    if x.shape[1] % GROUP:
        x = F.pad(x, (0, -x.shape[1] % GROUP))
    groups = x.view(codes.shape)
    largest = torch.maximum(groups.amax(2), -groups.amin(2))
    # Rounded down to 8 bits, it is still large enough for its group.
    scales.copy_(largest.mul_((1 + 2**-7) / _LEVELS)).clamp_min_(1e-30)
    scaled = groups * scales.to(x.dtype).reciprocal_()[..., None]
    dither.add_to(scaled)
    codes.copy_(scaled.floor_())
