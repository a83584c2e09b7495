"""Layouts of flat vectors."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from edgetta.engines.contract import Layout

LAYOUT = Layout({"conv": (2, 3, 1, 1), "bias": (2,), "scalar": ()})


def test_split_and_join_undo_each_other_and_split_gives_views() -> None:
    vector = np.arange(9, dtype=np.float32)
    arrays = LAYOUT.split(vector)
    assert LAYOUT.size == 9 and [a.shape for a in arrays.values()] == [(2, 3, 1, 1), (2,), ()]
    assert np.array_equal(LAYOUT.join(arrays), vector)
    assert np.array_equal(LAYOUT.join(list(arrays.values())), vector)
    arrays["bias"][0] = 100
    assert vector[LAYOUT.slice("bias")].tolist() == [100, 7]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="9 numbers"):
        LAYOUT.split(np.zeros(8, np.float32))
    with pytest.raises(ValueError, match="'bias'"):
        LAYOUT.join([np.zeros((2, 3, 1, 1)), np.zeros(3), np.zeros(())])
    with pytest.raises(ValueError, match="2 arrays"):
        LAYOUT.join([np.zeros((2, 3, 1, 1)), np.zeros(2)])


def test_the_contract_needs_no_torch() -> None:
    code = "import sys, edgetta.engines.contract; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
