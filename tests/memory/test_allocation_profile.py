"""Where a step's bytes go: the pieces hold the step's peak, add up, and name what took it."""

from __future__ import annotations

import pytest

from edgetta.memory.allocation_profile import Piece, highest
from edgetta.memory.fresh_process import in_fresh_process
from edgetta.memory.step_peak import StepCase, measure_step
from tests.small_bundle import ENGINES, whole_bundle


@pytest.mark.parametrize("engine", ENGINES)
def test_pieces_of_a_step(engine: str) -> None:
    found = in_fresh_process(
        "tests.memory.targets:pieces_of_a_step", bundle=str(whole_bundle()), batch=512, engine=engine
    )
    pieces = [Piece(*entry) for entry in found["pieces"]]
    assert not found["wrapped"], "the network is left as it was"
    assert all(p.torch + p.engine + p.other == p.peak and min(p.torch, p.engine, p.other) >= 0 for p in pieces)
    names = [piece.name for piece in pieces]
    order = ["stem forward", "part 1 forward", "meta 1 forward", "part 3 forward", "classifier input_gradient"]
    order += ["meta-networks backward"]
    places = [names.index(name) for name in [*order, "part 3 input_gradient", "part 2 input_gradient"]]
    assert places == sorted(places)
    assert any(piece.engine > 0 for piece in pieces) == (engine == "onnxruntime")
    assert {piece.name.endswith(" engine") for piece in pieces if piece.engine} <= {True}
    top = highest(pieces)
    step = measure_step(StepCase(str(whole_bundle()), 512, engine, "exact", "batch"))
    assert abs(top.peak - step.peak_bytes) < 0.1 * step.peak_bytes
    assert top.torch > 0.6 * top.peak and top.other < 0.2 * top.peak
