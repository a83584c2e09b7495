"""TensorFlow's SAME padding, against its definition."""

from __future__ import annotations

import pytest
import torch

from edgetta.models.layers import Conv2dSame, scaled


@pytest.mark.parametrize("size", [(8, 8), (7, 8), (9, 5)])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_puts_the_odd_pixel_right_and_below(size: tuple[int, int], kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    layer = Conv2dSame(1, 1, kernel, stride=stride)
    image = torch.rand(1, 1, *size)
    out = layer(image)
    rows, columns = (-(-side // stride) for side in size)
    assert out.shape == (1, 1, rows, columns)
    above, left = (
        max((n - 1) * stride + kernel - side, 0) // 2 for n, side in zip((rows, columns), size, strict=True)
    )
    wide = torch.zeros(size[0] + 2 * kernel, size[1] + 2 * kernel)
    wide[kernel : kernel + size[0], kernel : kernel + size[1]] = image[0, 0]
    for row in range(rows):
        for column in range(columns):
            top, start = kernel + row * stride - above, kernel + column * stride - left
            patch = wide[top : top + kernel, start : start + kernel]
            expected = (patch * layer.weight[0, 0]).sum() + layer.bias[0]  # type: ignore[index]
            assert torch.allclose(out[0, 0, row, column], expected, atol=1e-5)


@pytest.mark.parametrize(("channels", "width", "expected"), [(64, 0.5, 32), (16, 0.3, 5), (8, 0.01, 1), (16, 2.0, 32)])
def test_scaled_channels(channels: int, width: float, expected: int) -> None:
    assert scaled(channels, width) == expected
