"""Every kind of weight file, every spelling, every way in which a file can be wrong."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgetta.errors import EdgettaError
from edgetta.models import load_model
from edgetta.models.normalise import normalisation_of
from edgetta.models.weights import Weights, classes_of, put_weights, read_weights, without_prefixes

NARROW = {"wrn40_2": 0.25, "resnet20": 0.25, "resnet18": 0.0625}


@pytest.fixture
def trained() -> dict[str, Tensor]:
    return _state("resnet20")


def _state(name: str) -> dict[str, Tensor]:
    """A state dictionary unlike the initial one in every tensor."""
    generator = torch.Generator().manual_seed(3)
    state = load_model(name, width=NARROW[name]).module.state_dict()
    return {
        key: torch.rand(value.shape, generator=generator) if value.is_floating_point() else value + 3
        for key, value in state.items()
    }


def _holds(name: str, path: Path, expected: dict[str, Tensor]) -> bool:
    loaded = load_model(name, weights=path, width=NARROW[name]).module.state_dict()
    return all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_safetensors(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    save_file(trained, tmp_path / "w.safetensors")
    assert _holds("resnet20", tmp_path / "w.safetensors", trained)


def test_npz_with_its_normalisation_and_without_batch_counters(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    arrays = {key: value.numpy() for key, value in trained.items() if "num_batches" not in key}
    path = tmp_path / "w.npz"
    np.savez(path, **arrays, input_mean=np.float32([0.1, 0.2, 0.3]), input_std=np.float32([0.4, 0.5, 0.6]))
    model = load_model("resnet20", weights=path, width=0.25)
    assert torch.equal(model.module.state_dict()["linear.weight"], trained["linear.weight"])
    mean, std = normalisation_of(model.module)
    assert mean == pytest.approx((0.1, 0.2, 0.3)) and std == pytest.approx((0.4, 0.5, 0.6))
    chosen = load_model("resnet20", weights=path, width=0.25, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert normalisation_of(chosen.module) == ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("wrapper", ["", "state_dict", "model", "net", "model_state_dict", "last"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "net.module."])
def test_checkpoints_are_unwrapped(tmp_path: Path, trained: dict[str, Tensor], wrapper: str, prefix: str) -> None:
    inner = {prefix + key: value for key, value in trained.items()}
    path = tmp_path / "w.pth"
    torch.save({wrapper: inner, "epoch": 7} if wrapper else inner, path)
    assert _holds("resnet20", path, trained)


def test_a_name_instead_of_a_model_is_no_wrapper(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    """AugMix checkpoints say `model: "wrn"` beside the state dictionary."""
    torch.save({"epoch": 9, "model": "wrn", "state_dict": trained, "best_acc": 0.9}, tmp_path / "w.pt")
    assert _holds("resnet20", tmp_path / "w.pt", trained)


def test_what_training_scripts_store_beside_the_weights_is_read(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    extra = {"best_acc": np.float64(0.5), "seed": np.int64(3), "args": argparse.Namespace(lr=0.1, name="x")}
    torch.save({"state_dict": trained, **extra}, tmp_path / "w.pth")
    assert _holds("resnet20", tmp_path / "w.pth", trained)


def test_robustbench_augmix_constants_become_the_normalisation(tmp_path: Path) -> None:
    state = _state("wrn40_2")
    constants = {"mu": torch.full((1, 3, 1, 1), 0.25), "sigma": torch.full((1, 3, 1, 1), 0.75)}
    torch.save({"state_dict": {f"module.{k}": v for k, v in {**constants, **state}.items()}}, tmp_path / "w.pt")
    assert _holds("wrn40_2", tmp_path / "w.pt", state)
    model = load_model("wrn40_2", weights=tmp_path / "w.pt", width=0.25)
    assert normalisation_of(model.module) == ((0.25,) * 3, (0.75,) * 3)


def test_rift_dead_block_is_dropped(tmp_path: Path) -> None:
    state = _state("wrn40_2")
    dead = {k.replace("block1.", "sub_block1."): v for k, v in state.items() if k.startswith("block1.")}
    torch.save({"net": {f"module.{k}": v for k, v in {**state, **dead}.items()}, "acc": 55.0}, tmp_path / "w.pth")
    assert _holds("wrn40_2", tmp_path / "w.pth", state)


def test_rift_sequential_with_its_normalisation(tmp_path: Path) -> None:
    state = _state("wrn40_2")
    wrapped = {"0.mean": torch.full((3,), 0.5), "0.std": torch.full((3,), 0.2)}
    wrapped |= {f"1.module.{key}": value for key, value in state.items()}
    torch.save(wrapped, tmp_path / "w.pth")
    assert _holds("wrn40_2", tmp_path / "w.pth", state)
    model = load_model("wrn40_2", weights=tmp_path / "w.pth", width=0.25)
    assert normalisation_of(model.module)[1] == pytest.approx((0.2,) * 3)


def test_cifar_resnet_by_torchvisions_names(tmp_path: Path) -> None:
    state = _state("resnet18")
    theirs = {k.replace(".shortcut.", ".downsample.").replace("linear.", "fc."): v for k, v in state.items()}
    assert theirs.keys() != state.keys()
    torch.save(theirs, tmp_path / "w.pth")
    assert _holds("resnet18", tmp_path / "w.pth", state)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_number_of_classes_comes_from_the_file(tmp_path: Path, prefix: str) -> None:
    state = load_model("wrn40_2", width=0.25, num_classes=100).module.state_dict()
    torch.save({prefix + k: v for k, v in state.items()}, tmp_path / "w.pt")
    assert load_model("wrn40_2", weights=tmp_path / "w.pt", width=0.25).num_classes == 100
    with pytest.raises(EdgettaError, match=r"fc.weight \(\(10, 32\), in the file \(100, 32\)\)"):
        load_model("wrn40_2", weights=tmp_path / "w.pt", width=0.25, num_classes=10)


def test_missing_and_unexpected_names_are_listed_with_the_nearest(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    trained["linaer.weight"] = trained.pop("linear.weight")
    save_file(trained, tmp_path / "w.safetensors")
    with pytest.raises(EdgettaError) as caught:
        load_model("resnet20", weights=tmp_path / "w.safetensors", width=0.25)
    message = str(caught.value)
    assert "1 missing from the file: linear.weight (nearest: linaer.weight); " in message
    assert "1 unknown to the network: linaer.weight (nearest: linear.weight). " in message
    assert "w.safetensors" in message


def test_many_mismatches_are_counted_not_all_printed(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    save_file(trained, tmp_path / "w.safetensors")
    with pytest.raises(EdgettaError, match=r"and \d+ more") as caught:
        load_model("resnet18", weights=tmp_path / "w.safetensors", width=0.0625)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 800, "the command line shows it as one line"


def test_another_width_says_so(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    save_file(trained, tmp_path / "w.safetensors")
    with pytest.raises(EdgettaError, match="Is it another network, width"):
        load_model("resnet20", weights=tmp_path / "w.safetensors", width=0.5)


def test_values_that_are_not_finite_are_refused(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    trained["layer1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    save_file(trained, tmp_path / "w.safetensors")
    with pytest.raises(EdgettaError, match=r"layer1\.0\.conv1\.weight .*not finite"):
        load_model("resnet20", weights=tmp_path / "w.safetensors", width=0.25)


def test_a_refused_file_leaves_the_network_as_it_was(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    network = load_model("resnet20", width=0.25).module
    before = {key: value.clone() for key, value in network.state_dict().items()}
    del trained["linear.bias"]
    save_file(trained, tmp_path / "w.safetensors")
    with pytest.raises(EdgettaError):
        put_weights(network, read_weights(tmp_path / "w.safetensors"))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class _Payload:
    """What a hostile checkpoint holds: unpickled, it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_hostile_checkpoint_is_refused_and_does_not_run(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    target = tmp_path / "made"
    torch.save({"state_dict": trained, "args": _Payload(target)}, tmp_path / "w.pth")
    with pytest.raises(EdgettaError, match=r"\(it holds \w+\.mkdir\)\. Whole Python objects are refused") as caught:
        load_model("resnet20", weights=tmp_path / "w.pth", width=0.25)
    assert not target.exists()
    assert "weights_only" not in str(caught.value), "torch advises to read it in spite of that"


def test_a_hostile_npz_is_refused_and_does_not_run(tmp_path: Path) -> None:
    target = tmp_path / "made"
    np.savez(tmp_path / "w.npz", **{"conv1.weight": np.array([_Payload(target)], dtype=object)})
    with pytest.raises(EdgettaError, match="plain arrays"):
        read_weights(tmp_path / "w.npz")
    assert not target.exists()


def test_a_whole_model_is_refused_with_advice(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(EdgettaError, match="state_dict"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth", ".pt"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"\x00" * 64])
def test_damaged_files_are_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    with pytest.raises(EdgettaError, match=f"damaged\\{suffix}"):
        read_weights(path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EdgettaError, match="no such file"):
        read_weights(tmp_path / "nowhere.npz")
    with pytest.raises(EdgettaError, match="no such file"):
        read_weights(tmp_path)


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, [torch.zeros(2)], torch.zeros(2)])
def test_a_checkpoint_without_a_state_dictionary_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(EdgettaError, match=r"w\.pth"):
        read_weights(tmp_path / "w.pth")


def test_an_old_torch_reads_no_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pth")
    monkeypatch.setattr(torch, "__version__", "2.3.0")
    with pytest.raises(EdgettaError, match="safetensors"):
        read_weights(tmp_path / "w.pth")


def test_prefixes_that_belong_to_the_network_stay(tmp_path: Path) -> None:
    network = nn.Module()
    network.model = nn.Linear(2, 2)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    kept = without_prefixes(read_weights(tmp_path / "w.pth"), network.state_dict())
    assert set(kept.tensors) == {"model.weight", "model.bias"}


def test_npz_keeps_numbers_without_axes(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    path = tmp_path / "w.npz"
    np.savez(path, **{name: value.numpy() for name, value in trained.items()})
    assert read_weights(path).tensors["bn1.num_batches_tracked"].shape == ()
    assert _holds("resnet20", path, trained)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module._orig_mod."])
def test_what_lies_outside_a_prefix_is_left_out(tmp_path: Path, trained: dict[str, Tensor], prefix: str) -> None:
    """The counter of an averaged model, the weights of a loss in a training module."""
    beside = {"n_averaged": torch.tensor(5), "criterion.weight": torch.ones(10)}
    torch.save({**beside, **{prefix + key: value for key, value in trained.items()}}, tmp_path / "w.pt")
    assert _holds("resnet20", tmp_path / "w.pt", trained)


def test_a_name_too_many_without_a_prefix_is_refused(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    torch.save({**trained, "criterion.weight": torch.ones(10)}, tmp_path / "w.pt")
    with pytest.raises(EdgettaError, match="1 unknown to the network: criterion"):
        load_model("resnet20", weights=tmp_path / "w.pt", width=0.25)


def _scripted(path: Path) -> None:
    torch.jit.script(nn.Conv2d(3, 3, 1)).save(str(path))


def _exported(path: Path) -> None:
    torch.export.save(torch.export.export(nn.Conv2d(3, 3, 1), (torch.zeros(2, 3, 4, 4),)), path)


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "w.pth",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "a Git LFS pointer.*lfs pull",
        ),
        ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("w.pt", b"<!DOCTYPE html><html>404</html>", "a web page"),
        ("w.pt", b"", "is empty"),
        ("w.onnx", b"\x08\x08", "an ONNX network"),
        ("w.pt", _scripted, "a TorchScript program; save its weights"),
        ("w.pt", _exported, "a program of torch.export; give it as the model"),
    ],
)
def test_a_file_that_is_no_weights_is_called_what_it_is(tmp_path: Path, name: str, content: Any, reason: str) -> None:
    path = tmp_path / name
    content(path) if callable(content) else path.write_bytes(content)
    with pytest.raises(EdgettaError, match=reason) as raised:
        read_weights(path)
    assert "\n" not in str(raised.value)


def _float8(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float8_e4m3fn)


@pytest.mark.filterwarnings("ignore:.*(quantiz|deprecated)")
@pytest.mark.parametrize(
    ("change", "closeness"),
    [
        (lambda w: torch.quantize_per_tensor(w, 0.01, 0, torch.qint8), 0.01),
        (lambda w: w.to_sparse(), 0.0),
        (_float8, 0.07),
        (lambda w: w.half(), 1e-3),
        (lambda w: w.double(), 0.0),
    ],
)
def test_weights_of_other_kinds_become_ordinary(
    tmp_path: Path, trained: dict[str, Tensor], change: Any, closeness: float
) -> None:
    name = "linear.weight"
    torch.save({**trained, name: change(trained[name])}, tmp_path / "w.pt")
    found = load_model("resnet20", weights=tmp_path / "w.pt", width=0.25).module.state_dict()[name]
    assert found.dtype == torch.float32 and float((found - trained[name]).abs().max()) <= closeness


def test_eight_bit_floats_of_safetensors(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    small = {key: _float8(value) if value.is_floating_point() else value for key, value in trained.items()}
    save_file(small, tmp_path / "w.safetensors")
    found = load_model("resnet20", weights=tmp_path / "w.safetensors", width=0.25).module.state_dict()
    assert all(torch.equal(found[key], small[key].to(found[key].dtype)) for key in trained)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: torch.empty_like(w, device="meta"), "linear.weight has a shape and no values"),
        (lambda w: w.to(torch.int8), "linear.weight holds int8 where the network has floats"),
        (lambda w: w > 0.5, "linear.weight holds bool where the network has floats"),
        (lambda w: w.to(torch.complex64), "linear.weight holds complex64 numbers"),
    ],
)
def test_weights_that_are_no_floats_are_refused(
    tmp_path: Path, trained: dict[str, Tensor], change: Any, reason: str
) -> None:
    torch.save({**trained, "linear.weight": change(trained["linear.weight"])}, tmp_path / "w.pt")
    with pytest.raises(EdgettaError, match=reason):
        load_model("resnet20", weights=tmp_path / "w.pt", width=0.25)


def test_the_classes_of_a_file_whose_classifier_differs() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 10))
    state = network.state_dict()
    fits = {**state, "2.weight": torch.zeros(6, 4), "2.bias": torch.zeros(6)}
    assert classes_of(Weights("w", fits), network) == 6
    assert classes_of(Weights("w", state), network) is None
    assert classes_of(Weights("w", {**fits, "0.weight": torch.zeros(8, 3, 1, 1)}), network) is None  # another width
    assert classes_of(Weights("w", {**state, "2.weight": torch.zeros(6, 5)}), network) is None
