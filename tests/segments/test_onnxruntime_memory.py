"""What ONNX Runtime holds while it runs a segment: two or three activations, however deep the segment is."""

from __future__ import annotations

import pytest

from edgetta.memory.fresh_process import in_fresh_process
from tests.segments.engine_memory import BLOCKS


@pytest.mark.parametrize("policy", ["source", "ema"])
def test_values_are_freed_once_they_were_read(policy: str) -> None:
    """An order that leaves masks, or the gradients of biases, to the end would hold one activation for each block."""
    assert BLOCKS == 8
    maps = in_fresh_process("tests.segments.engine_memory:engine_maps", policy=policy)
    assert 0 < maps["predict"] < 2.5, maps
    assert 0 < maps["keep"] < 2.5, maps
    assert 0 < maps["back"] < 2.5, maps
    assert maps["held"] < 1, maps  # an arena would keep them all


def test_statistics_of_large_images_are_taken_in_pieces() -> None:
    """The convolution's output and its normalised form; a variance in one go would hold three beside the output."""
    assert in_fresh_process("tests.segments.engine_memory:maps_of_large_images") < 1.7


def test_a_session_takes_no_more_than_weights_in_its_own_order() -> None:
    added, weights = in_fresh_process("tests.segments.engine_memory:bytes_per_session")
    assert added < 1.1 * weights
