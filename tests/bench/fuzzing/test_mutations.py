"""Damage is seeded, changes something, and keeps what it must keep."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from safetensors.numpy import save

from edgetta.bench.fuzzing.mutations import mutated, mutated_header, mutated_json

FILES = {
    "json": json.dumps({"a": [1, 2, {"b": "c"}], "d": 0.5}).encode(),
    "tensors": save({"w": np.arange(6, dtype=np.float32)}),
    "onnx": b"\x08\x08\x12\x07edgetta" + b"\x3a\x04\x0a\x02ab",
    "bytes": bytes(range(200)),
}


@pytest.mark.parametrize("kind", FILES)
def test_the_same_seed_the_same_damage(kind: str) -> None:
    made = [
        [mutated(FILES[kind], kind, random.Random(seed), [FILES["bytes"]]) for seed in range(50)] for _ in range(2)
    ]
    assert made[0] == made[1]
    assert len(set(made[0])) > 20 and sum(data == FILES[kind] for data in made[0]) < 15


def test_damaged_json_is_json() -> None:
    for seed in range(200):
        json.loads(mutated_json(FILES["json"], random.Random(seed)))


def test_a_damaged_header_keeps_its_values() -> None:
    for seed in range(50):
        data = mutated_header(FILES["tensors"], random.Random(seed))
        size = int.from_bytes(data[:8], "little")
        assert size % 8 == 0 and data[8 + size :] == FILES["tensors"][-24:]
