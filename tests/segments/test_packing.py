"""Packing: bits and bytes come back as they went in, in numpy's layout, on the code path of every device."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from edgetta.segments.packing import pack_code, pack_mask, pack_with_torch, unpack_code, unpack_mask, unpack_with_torch

SHAPES = [(0,), (1,), (7,), (8,), (9,), (64,), (3, 0, 5), (2, 3, 5, 7), (1, 16, 32, 32), (4, 13), ()]


def mask_of(shape: tuple[int, ...], share: float = 0.5, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_masks_come_back(shape: tuple[int, ...], share: float) -> None:
    mask = mask_of(shape, share)
    bits = pack_mask(mask)
    assert bits.dtype == torch.uint8
    assert bits.shape == (math.ceil(mask.numel() / 8),)
    assert torch.equal(unpack_mask(bits, shape), mask)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_torch_path_is_the_numpy_path(shape: tuple[int, ...]) -> None:
    """What runs on CUDA, run on the CPU: the same bytes, and each unpacks what the other packed."""
    mask = mask_of(shape, seed=1)
    bits = pack_with_torch(mask.reshape(-1))
    assert torch.equal(bits, pack_mask(mask))
    assert np.array_equal(bits.numpy(), np.packbits(mask.numpy().reshape(-1)))
    assert torch.equal(unpack_with_torch(bits, mask.numel()).view(shape), mask)


def test_many_random_shapes() -> None:
    generator = np.random.default_rng(0)
    for seed in range(60):
        shape = tuple(int(size) for size in generator.integers(1, 9, generator.integers(1, 6)))
        mask = mask_of(shape, float(generator.random()), seed)
        bits = pack_with_torch(mask.reshape(-1))
        assert torch.equal(bits, pack_mask(mask))
        assert torch.equal(unpack_mask(bits, shape), mask)
        assert torch.equal(unpack_with_torch(bits, mask.numel()).view(shape), mask)


def test_masks_that_are_not_contiguous() -> None:
    mask = mask_of((4, 6, 5)).transpose(0, 2)
    assert torch.equal(unpack_mask(pack_mask(mask), (5, 6, 4)), mask)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.1, 1.1), (-0.5, 1.5), (0.0, 0.25)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codes_are_within_half_a_step(low: float, high: float, dtype: torch.dtype) -> None:
    values = torch.rand(1001, generator=torch.Generator().manual_seed(0), dtype=dtype) * (high - low) + low
    values[:2] = torch.tensor([low, high])
    codes = pack_code(values, low, high)
    assert codes.dtype == torch.uint8
    assert codes.shape == values.shape
    back = unpack_code(codes, low, high, dtype)
    assert back.dtype == dtype
    assert float((back - values).abs().max()) <= (high - low) / 510 * (1 + 1e-5)
    assert len(codes.unique()) > 200  # and the whole byte is used
    assert torch.equal(pack_code(back, low, high), codes)


def test_codes_outside_the_range_are_clamped() -> None:
    assert pack_code(torch.tensor([-9.0, 9.0]), 0.0, 1.0).tolist() == [0, 255]
