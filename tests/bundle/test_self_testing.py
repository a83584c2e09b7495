"""The self-test: it passes on what was written, and notices what differs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from edgetta.bundle import open_engine, read_bundle, self_test
from edgetta.errors import BundleError
from tests.adaptation.backbones import small_programs
from tests.small_bundle import ENGINES, replace_file, write_small

WEIGHTS = "programs/weights.safetensors"


@pytest.mark.parametrize("engine", ENGINES)
def test_self_test_passes(whole: Path, engine: str) -> None:
    bundle = read_bundle(whole)
    result = self_test(bundle, open_engine(bundle, engine))
    assert max(result.logits_error, result.mixed_error) < 1e-5 and result.gradient_error < 1e-4
    assert {name.split(".")[0] for name in result.gradient_errors} == {"metas", "part1", "part2", "part3"}


def test_self_test_without_gradients_loads_nothing_for_them(whole: Path) -> None:
    bundle = read_bundle(whole)
    engine = open_engine(bundle, "onnxruntime")
    result = self_test(bundle, engine, gradients=False)
    assert result.logits_error < 1e-5 and result.gradient_errors == {}
    assert {key[0] for key in engine._sessions} == {"predict", "measure"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("engine", ENGINES)
def test_self_test_of_other_things_that_adapt(tmp_path: Path, engine: str) -> None:
    for adapt in ("meta", "bias"):
        bundle = read_bundle(write_small(tmp_path / adapt, small_programs(adapt=adapt)))
        result = self_test(bundle, open_engine(bundle, engine))
        inside = {name for name in result.gradient_errors if not name.startswith("metas.")}
        assert bool(inside) == (adapt == "bias")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ("block3.conv1.weight", "the network's logits"),
        ("shipped", "the network's logits"),
        ("source.variance", "the network's logits"),
        ("block2.conv2.weight.turned", "the gradients of"),
    ],
)
def test_self_test_notices_wrong_weights(folder: Path, engine: str, tensor: str, words: str) -> None:
    tensors = load((folder / WEIGHTS).read_bytes())
    tensors[tensor] = np.ascontiguousarray(tensors[tensor][::-1] + np.float32(0.1))
    replace_file(folder, WEIGHTS, save(tensors))
    bundle = read_bundle(folder)
    with pytest.raises(BundleError, match="fails its self-test on this machine") as error:
        self_test(bundle, open_engine(bundle, engine))
    assert words in str(error.value)


def test_self_test_turns_what_an_engine_raises_into_one_line(whole: Path) -> None:
    bundle = read_bundle(whole)
    engine = open_engine(bundle, "torch")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the engine\nbroke")

    engine.predict = fail  # type: ignore[assignment,method-assign]
    with pytest.raises(BundleError, match="fails its self-test: the engine broke; export the bundle again"):
        self_test(bundle, engine)
