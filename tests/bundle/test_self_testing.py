"""The self-test: it passes on what was written, notices what differs, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from edgetta.segmented.adapter import AdaptConfig, Adapter
from edgetta.bundle import build_network, read_bundle, self_test
from edgetta.errors import BundleError
from tests.adaptation.backbones import small_model
from tests.small_bundle import ENGINES, replace_file, write_small


@pytest.mark.parametrize("gradient", ["exact", "recompute", "local"])
@pytest.mark.parametrize("engine", ENGINES)
def test_self_test_passes_and_leaves_nothing_behind(whole: Path, engine: str, gradient: str) -> None:
    bundle = read_bundle(whole)
    network = build_network(bundle, engine, gradient)  # type: ignore[arg-type]
    Adapter(network, AdaptConfig(learning_rate=0.1, entropy_margin=1.0)).step(torch.rand(16, 3, 16, 16))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    result = self_test(bundle, network)
    assert max(result.source_error, result.logits_error) < 1e-5 and result.gradient_error < 1e-4
    expected = ("metas.2.", "classifier.") if gradient == "local" else ("metas.0.", "metas.1.", "metas.2.")
    assert {name[:8] for name in result.gradient_errors} == {name[:8] for name in expected if name != "classifier."}
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert (network.batch_norm, network.ema_images) == (bundle.batch_norm, bundle.ema_images)


def test_self_test_without_gradients_loads_nothing_for_them(whole: Path) -> None:
    bundle = read_bundle(whole)
    network = build_network(bundle, "onnxruntime")
    result = self_test(bundle, network, gradients=False)
    assert result.logits_error < 1e-5 and result.gradient_errors == {}
    segments = (network.stem, *network.parts, network.classifier)
    assert all(set(segment._loaded) == {"predict"} for segment in segments)  # type: ignore[attr-defined]


def test_self_test_covers_adaptable_biases(tmp_path: Path) -> None:
    bundle = read_bundle(write_small(tmp_path / "small", small_model(adapt="bias")))
    result = self_test(bundle, build_network(bundle, "onnxruntime"))
    assert {name.split(".")[0] for name in result.gradient_errors} >= {"metas", "part1", "part2", "part3"}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("file", "tensor", "words"),
    [
        ("segments/03.safetensors", "block3.conv1.weight", "adapted network's logits"),
        ("segments/source.safetensors", "fc.bias", "source network's logits"),
        ("segments/02.safetensors", "block2.conv2.weight.turned", "gradients of metas.0."),
    ],
)
def test_self_test_notices_wrong_weights(folder: Path, engine: str, file: str, tensor: str, words: str) -> None:
    tensors = load((folder / file).read_bytes())
    tensors[tensor] = tensors[tensor].flip(0) + 0.1
    replace_file(folder, file, _in_the_same_order(folder / file, tensors))
    bundle = read_bundle(folder)
    network = build_network(bundle, engine)
    with pytest.raises(BundleError, match="fails its self-test on this machine") as error:
        self_test(bundle, network)
    assert words in str(error.value)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_self_test_notices_another_shipped_state(folder: Path) -> None:
    tensors = load((folder / "meta.safetensors").read_bytes())
    tensors["metas.1.norm_weight"][3] *= 3
    replace_file(folder, "meta.safetensors", save(tensors))
    bundle = read_bundle(folder)
    with pytest.raises(BundleError, match="logits"):
        self_test(bundle, build_network(bundle, "torch"))


def test_self_test_turns_what_an_engine_raises_into_one_line(whole: Path) -> None:
    bundle = read_bundle(whole)
    network = build_network(bundle, "torch")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the engine\nbroke")

    network.classifier.forward = fail  # type: ignore[assignment,method-assign]
    with pytest.raises(BundleError, match="fails its self-test: the engine broke; export the bundle again"):
        self_test(bundle, network)


def _in_the_same_order(path: Path, tensors: dict[str, torch.Tensor]) -> bytes:
    """`tensors` under the header of `path`, so that the offsets in the ONNX files still hold."""
    raw = path.read_bytes()
    size = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:size])
    body = bytearray(raw[size:])
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        body[begin:end] = tensors[name].numpy().tobytes()
    return raw[:size] + bytes(body)
