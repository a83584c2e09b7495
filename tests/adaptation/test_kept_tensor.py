"""What comes back of a tensor that was kept in few bits: how exact, unbiased, and how many bytes it took."""

from __future__ import annotations

import pytest
import torch

from edgetta.adaptation.kept_tensor import GROUP, Dither, Form, KeptMask, KeptTensor, kept_bytes

SHAPES = [(5, 6, 7, 5), (3, 197, 12), (4, 10), (2, 64, 8, 8)]


def values(
    shape: tuple[int, ...], scale: float = 1.0, seed: int = 0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["float", "half", "int8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_those_of_the_whole(shape: tuple[int, ...], form: Form, dtype: torch.dtype) -> None:
    x = values(shape, dtype=dtype)
    kept = KeptTensor.of(x, form, Dither())
    whole = kept.rows(0, shape[0])
    assert whole.shape == x.shape and whole.dtype == dtype
    for start, stop in ((0, 1), (1, shape[0]), (shape[0] - 1, shape[0])):
        assert torch.equal(kept.rows(start, stop), whole[start:stop])
    held = sum(tensor.numel() * tensor.element_size() for tensor in kept.tensors())
    assert held == shape[0] * kept_bytes(x[0].numel(), form) * (x.element_size() // 4 if form == "float" else 1)


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1.0, 3e5, 1e20])
def test_half_is_exact_to_eleven_bits_whatever_the_range(scale: float) -> None:
    """1e20 would overflow plain float16, 1e-12 would vanish."""
    x = values((3, 4, 9, 9), scale)
    x[1] *= 1e-3  # each image has its own range
    error = (KeptTensor.of(x, "half", Dither()).rows(0, 3) - x).abs()
    assert bool((error <= x.abs() * 2**-11 + x.abs().amax((1, 2, 3), keepdim=True) * 2**-39).all())


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_int8_errs_by_less_than_one_step_and_keeps_zeros(scale: float) -> None:
    x = values((6, 16, 8, 8), scale)
    x[:, 3] = 0
    x[2] = x[2].relu()
    back = KeptTensor.of(x, "int8", Dither()).rows(0, 6)
    step = x.view(-1, GROUP).abs().amax(1, keepdim=True) * 1.02 / 127
    assert bool(((back - x).view(-1, GROUP).abs() <= step).all())
    assert bool((back[x == 0] == 0).all())


def test_int8_rounding_is_unbiased() -> None:
    """The mean of many roundings has the standard error of independent ones; rounding to nearest would fail."""
    x = values((2, 8, 8, 8))
    dither, rounds = Dither(seed=5), 2000
    total = torch.zeros_like(x)
    for _ in range(rounds):
        total += KeptTensor.of(x, "int8", dither).rows(0, 2)
    scales = KeptTensor.of(x, "int8", dither).scales
    assert scales is not None
    step = scales.float()[..., None].expand(-1, -1, GROUP).reshape(x.shape)
    fraction = (x / step) % 1.0
    deviation = step * (fraction * (1 - fraction) / rounds).sqrt()  # of the mean of `rounds` coins
    score = (total / rounds - x) / deviation.clamp_min(1e-4 * float(step.mean()))
    assert score.abs().max() < 5.5 and 0.8 < float(score.std()) < 1.2
    nearest = (x / step).round() * step
    assert ((nearest - x) / deviation.clamp_min(1e-4 * float(step.mean()))).abs().max() > 20


def test_the_seed_decides_the_rounding() -> None:
    x = values((2, 8, 8, 8))

    def three(dither: Dither) -> list[torch.Tensor]:
        return [KeptTensor.of(x, "int8", dither).rows(0, 2) for _ in range(3)]

    dither = Dither(1)
    first = three(dither)
    assert all(torch.equal(a, b) for a, b in zip(first, three(Dither(1)), strict=True))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], three(Dither(2))[0])
    dither.restart()
    assert torch.equal(first[0], three(dither)[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_come_back(shape: tuple[int, ...]) -> None:
    mask = values(shape) > 0.3
    kept = KeptMask(mask.shape, mask.device)
    kept.put(1, mask[1:])
    kept.put(0, mask[:1])
    assert kept.bits.numel() == shape[0] * ((mask[0].numel() + 7) // 8)
    assert torch.equal(kept.rows(0, shape[0]), mask) and torch.equal(kept.rows(1, 2), mask[1:2])
