"""What is kept of some images of a batch, for backwards that work in slices."""

from __future__ import annotations

import pytest
import torch

from edgetta.segments.contract import Residual, ResidualKind
from edgetta.segments.graph import BATCH, Value

KINDS: list[ResidualKind] = ["mask", "code", "float", "scale"]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("shape", [(3, 5), (4, 2), (7,), (16,)])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_whole(kind: ResidualKind, shape: tuple[int, ...], packed: bool) -> None:
    """Three times five elements: bits of two images share a byte."""
    batch = 9
    value = Value("r", (1 if kind == "scale" else BATCH, *shape), "bool" if kind == "mask" else "float")
    residual = Residual(value, kind)
    whole = torch.rand(value.with_batch(batch), generator=torch.Generator().manual_seed(0))
    whole = whole > 0.5 if kind == "mask" else whole
    kept = residual.pack(whole) if packed else whole
    for start, stop in ((0, 4), (4, 8), (8, 9), (1, 3), (0, 9)):
        rows = residual.rows(kept, batch, start, stop)
        found = residual.unpack(rows, stop - start) if packed else rows
        expected = whole if kind == "scale" else whole[start:stop]
        assert found.shape == expected.shape
        assert torch.allclose(found.float(), expected.float(), atol=residual.error_bound + 1e-6)
        if kind == "mask" and packed:
            assert rows.numel() == residual.kept_bytes(stop - start)
