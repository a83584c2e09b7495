"""What is alive between forward and backward, and what stock autograd saves."""

from __future__ import annotations

import torch

from edgetta.memory.fresh_process import in_fresh_process
from edgetta.memory.kept_bytes import KeptBytes
from edgetta.memory.meter import stock_saved_bytes
from tests.memory import small_engine


def test_what_an_engine_says_it_keeps_is_what_is_alive() -> None:
    found = in_fresh_process("tests.memory.targets:kept_of_a_forward", images=1024)
    assert abs(found["alive"] - found["kept"]) <= 0.1 * found["kept"], found
    assert found["counted"] == found["kept"]


def test_bits_are_most_of_it() -> None:
    kept = KeptBytes.of(small_engine.programs().residuals)
    whole = small_engine.engine().forward(
        small_engine.images(8), small_engine.programs().shipped, small_engine.programs().source
    )
    assert whole.residuals.nbytes == kept.at(8) > 0
    assert 0 < kept.bits < kept.per_image
    assert KeptBytes(**kept.to_json()) == kept


def test_stock_autograd_counts_each_storage_once() -> None:
    x = torch.rand(4, 8, requires_grad=True)
    weight = torch.rand(8, 8)
    # x @ w saves w (ignored); relu saves its result; the product of it with itself saves the same storage again
    assert stock_saved_bytes(lambda: (lambda y: (y * y).sum())((x @ weight).relu()), ignore=[x, weight]) == 4 * 8 * 4
