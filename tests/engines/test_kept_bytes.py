"""Between forward and backward an engine keeps what the contract says and nothing else, on every engine."""

from __future__ import annotations

import pytest

from edgetta.engines.contract import Engine
from edgetta.engines.torch import TorchEngine
from tests.engines.programs_of_networks import NETWORKS, generic, images, onnx_engine, programs_of


def engine_of(name: str, engine: str) -> Engine:
    return TorchEngine(programs_of(name)) if engine == "torch" else onnx_engine(name)


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_kept_is_what_the_contract_counts(name: str, engine: str) -> None:
    made, programs = engine_of(name, engine), programs_of(name)
    parameters, statistics = generic(programs)
    for count in (8, 16):
        passed = made.forward(images(programs, count), parameters, statistics)
        said = sum(residual.kept_bytes(count) for residual in programs.residuals)
        # Bits fill whole bytes; ONNX Runtime's processor kernels lay channels out in blocks of 16, the last filled up.
        most = said * (1 if engine == "torch" else 1.05) + 8 * len(programs.residuals)
        assert said <= passed.residuals.nbytes <= most
