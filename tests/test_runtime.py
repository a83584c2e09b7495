"""The runtime: what is predicted, what is saved, and that nothing damaged gets in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import edgetta
from edgetta.adaptation.adapter import AdaptConfig
from edgetta.bundle import read_bundle, source_program
from edgetta.errors import BundleError, UsageError
from edgetta.runtime import Runtime, load
from edgetta.state_files.contents import Contents, encode, read
from edgetta.storage import StorageError
from tests.small_bundle import ENGINES, whole_bundle, write_small

ALWAYS = AdaptConfig(learning_rate=0.05, entropy_margin=1.0, window=8, small_batch=4)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def runtime(engine: str = "torch", config: AdaptConfig = ALWAYS, **options: Any) -> Runtime:
    return Runtime(read_bundle(whole_bundle()), engine, config, check=False, **options)


def everything(of: Runtime) -> dict[str, Tensor]:
    """All that a runtime has learnt, copied."""
    state = {name: tensor.clone() for name, tensor in of.network.state_dict().items()}
    momentum = {name: t.clone() for name, t in of.adapter.optimizer_tensors().items()}
    counters = {f"counter.{name}": torch.tensor(count) for name, count in of.adapter.counters().items()}
    return {**state, **momentum, **counters}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_load_takes_settings_from_the_bundle_or_the_caller() -> None:
    loaded = edgetta.load(whole_bundle(), "torch")
    assert loaded.config == loaded.bundle.config == AdaptConfig(learning_rate=3e-3, when="every 2")
    chosen = load(str(whole_bundle()), "torch", config=ALWAYS, gradient="local", batch_norm="ema", check=False)
    assert chosen.config == ALWAYS and chosen.network.batch_norm == "ema"
    assert {part.gradient for part in chosen.network.parts} == {"local"}


def test_a_call_predicts_and_adapts() -> None:
    first, second = runtime(), runtime()
    before = everything(first)
    logits = first(images(8))
    assert logits.shape == (8, 5) and torch.equal(logits, second.step(images(8)).logits)
    assert not same(before, everything(first))
    assert first.adapter.counters() == {"steps": 1, "updates": 1, "skipped": 0, "empty": 0}


def test_every_form_of_the_same_images_predicts_the_same() -> None:
    off = runtime(config=replace(ALWAYS, when="off"), batch_norm="source")
    whole = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    floats = whole.permute(0, 3, 1, 2).float() / 255
    expected = off(floats)
    for form in (whole, whole.numpy(), whole.permute(0, 3, 1, 2), floats.numpy(), floats.double()):
        torch.testing.assert_close(off(form), expected)
    torch.testing.assert_close(off(whole.numpy()[::-1]), expected.flip(0))
    torch.testing.assert_close(off(whole[2]), expected[2:3])
    torch.testing.assert_close(off(floats[2].numpy()), expected[2:3])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(2, 3, 16, 17), r"images have shape \(2, 3, 16, 17\); this bundle takes float \(N, 3, 16, 16\)"),
        (torch.zeros(2, 16, 16, 3), r"images have shape \(2, 16, 16, 3\)"),
        (torch.zeros(16, 16), r"images have shape \(16, 16\)"),
        (torch.zeros(0, 3, 16, 16), r"images have shape \(0, 3, 16, 16\)"),
        (np.zeros((2, 16, 16, 4), np.uint8), r"or uint8 \(N, 16, 16, 3\)"),
        (np.zeros((2, 3, 16, 16), np.int64), "images are int64; give uint8 in"),
        (np.zeros((2, 3, 16, 16), np.uint16), "images are uint16; give uint8 in"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.bool), "images are torch.bool; give uint8 in"),
    ],
)
def test_images_of_another_shape_or_type(wrong: Any, message: str) -> None:
    adapting = runtime()
    before = everything(adapting)
    with pytest.raises(UsageError, match=message):
        adapting(wrong)
    assert same(before, everything(adapting))


def test_single_frames_are_predicted_at_once_and_learnt_from_by_the_window() -> None:
    single = runtime()
    results = [single.step(frame) for frame in images(16)]
    assert all(result.logits.shape == (1, 5) for result in results)
    assert [result.adapted for result in results] == ([False] * 7 + [True]) * 2
    assert {result.reason for result in results} == {"waiting", "adapted"}
    assert results[7].kept == 8, "the update sees the whole window"


def test_source_is_the_backbone_as_trained_whatever_was_learnt() -> None:
    adapting = runtime()
    expected = source_program(adapting.bundle, "torch")(images(4))
    torch.testing.assert_close(adapting.source(images(4)), expected)
    for seed in range(3):
        adapting(images(8, seed))
    torch.testing.assert_close(adapting.source(images(4)), expected)
    assert adapting.adapter.steps == 3, "looking at the source is no step"


@pytest.mark.parametrize("engine", ENGINES)
def test_saved_and_loaded_it_goes_on_as_if_nothing_had_happened(engine: str, tmp_path: Path) -> None:
    straight, stopped = runtime(engine), runtime(engine)
    for seed in range(3):
        straight(images(8, seed))
        stopped(images(8, seed))
    stopped.save_state(tmp_path / "state")
    resumed = runtime(engine)
    resumed.load_state(tmp_path / "state")
    assert same(everything(stopped), everything(resumed))
    assert resumed.adapter.counters() == {"steps": 3, "updates": 3, "skipped": 0, "empty": 0}
    for seed in range(3, 5):
        torch.testing.assert_close(straight(images(8, seed)), resumed(images(8, seed)), rtol=0, atol=0)
    assert same(everything(straight), everything(resumed)), "momentum and statistics went on, too"


def test_what_adam_remembers_and_the_anchor_are_saved_too(tmp_path: Path) -> None:
    config = AdaptConfig(optimizer="adam", learning_rate=1e-2, anchor=0.1, entropy_margin=1.0)
    straight = runtime(config=config)
    for seed in range(3):
        straight(images(16, seed))
    straight.save_state(tmp_path / "state")
    resumed = runtime(config=config)
    resumed.load_state(tmp_path / "state")
    assert {name.split(".")[0] for name in straight.adapter.optimizer_tensors()} == {"mean", "square", "step"}
    for seed in range(3, 5):
        torch.testing.assert_close(straight(images(16, seed)), resumed(images(16, seed)), rtol=0, atol=0)
    assert same(everything(straight), everything(resumed))
    plain = runtime()
    plain.load_state(tmp_path / "state")  # what Adam remembers is no momentum of SGD
    assert not plain.adapter.optimizer_tensors()


def test_reset_goes_back_to_what_was_shipped() -> None:
    fresh, used = runtime(), runtime()
    start = everything(fresh)
    for seed in range(3):
        used(images(8, seed))
    used(images(2))  # waits in the window
    used.reset()
    assert same(start, everything(used))
    for seed in range(2):
        torch.testing.assert_close(fresh(images(8, seed)), used(images(8, seed)), rtol=0, atol=0)


def test_a_state_before_any_update_has_no_momentum(tmp_path: Path) -> None:
    untouched = runtime()
    untouched.save_state(tmp_path / "state")
    used = runtime()
    used(images(8))
    used.load_state(tmp_path / "state")
    assert same(everything(untouched), everything(used)) and not used.adapter.optimizer_tensors()


def test_a_state_of_another_bundle(tmp_path: Path) -> None:
    other = Runtime(read_bundle(write_small(tmp_path / "other", name="another")), "torch", ALWAYS, check=False)
    other.save_state(tmp_path / "state")
    adapting = runtime()
    with pytest.raises(BundleError, match="belongs to another bundle; load it with the bundle that it was saved with"):
        adapting.load_state(tmp_path / "state")


def _changed(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> Callable[[Path], None]:
    """A state file whose arrays and facts were changed by a program that knows the format."""

    def damage(path: Path) -> None:
        contents = read(path)
        arrays, info = dict(contents.arrays), dict(contents.info)
        change(arrays, info)
        path.write_bytes(encode(Contents(arrays, info)))

    return damage


def _flip(place: int) -> Callable[[Path], None]:
    """One bit, at a place counted from the start or, below 0, from the end."""

    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)

    return damage


def _first(arrays: dict[str, Any], prefix: str) -> str:
    return min(name for name in arrays if name.startswith(prefix))


def _fill(arrays: dict[str, Any], prefix: str, value: float) -> None:
    """Give all arrays of that prefix one value."""
    for name in [name for name in arrays if name.startswith(prefix)]:
        arrays[name] = np.full_like(arrays[name], value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "there is no state file"),
        (lambda path: path.write_bytes(b""), "is not a state file that can be used"),
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "does not lie where the file says"),
        (lambda path: save_file({"x": torch.zeros(1)}, path), "it is no state of edgetta"),
        (_flip(-1), r"\(its SHA-256 differs\)"),
        (_flip(3), "cut short"),
        (_changed(lambda arrays, info: info.pop("counters")), "its counters are no numbers"),
        (_changed(lambda arrays, info: info.update(counters={"steps": "many"})), "its counters are no numbers"),
        (_changed(lambda arrays, info: info.update(counters={"steps": -1})), "its counters are no numbers"),
        (
            _changed(lambda arrays, info: _fill(arrays, "network.", float("nan"))),
            "holds values that are not finite; delete it and start from the bundle",
        ),
        (_changed(lambda arrays, info: _fill(arrays, "network.metas.0.norm_w", 1e20)), "beyond any that a network"),
        (_changed(lambda arrays, info: _fill(arrays, "momentum.", 1e20)), "beyond any that a network"),
        (_changed(lambda arrays, info: _fill(arrays, "network.part1.state", -1.0)), "a variance below 0"),
        (
            _changed(lambda arrays, info: arrays.pop(_first(arrays, "network."))),
            "the state does not belong to this network",
        ),
        (
            _changed(lambda arrays, info: arrays.update({_first(arrays, "network."): np.zeros(9, np.float32)})),
            r"has shape \(9,\)",
        ),
        (_changed(lambda arrays, info: arrays.update({"momentum.999": np.zeros(1)})), "belongs to no parameter"),
        (_changed(lambda arrays, info: arrays.update({"momentum.x": np.zeros(1)})), "belongs to no parameter"),
        (_changed(lambda arrays, info: arrays.update({"momentum.0": np.zeros(1)})), "has another shape"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(
    damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "state"
    saved = runtime()
    saved(images(8))
    saved.save_state(file)
    damage(file)
    adapting = runtime()
    adapting(images(8, 1))
    before = everything(adapting)
    with pytest.raises(BundleError, match=message) as caught:
        adapting.load_state(file)
    assert str(file) in str(caught.value)
    assert same(before, everything(adapting))


def test_a_save_beside_the_steps_of_another_thread_is_of_one_moment(tmp_path: Path) -> None:
    """What is saved is what some number of whole steps leads to."""
    batches = [images(8, seed) for seed in range(12)]
    straight = runtime()
    whole = [encode(straight.contents())]
    for batch in batches:
        straight(batch)
        whole.append(encode(straight.contents()))
    stepped = runtime()
    thread = threading.Thread(target=lambda: [stepped(batch) for batch in batches])
    thread.start()
    saves = []
    while thread.is_alive():
        saves.append(encode(stepped.contents()))
    thread.join()
    saves.append(encode(stepped.contents()))
    assert all(save in whole for save in saves) and saves[-1] == whole[-1]
    assert [whole.index(save) for save in saves] == sorted(whole.index(save) for save in saves)


def test_a_state_that_cannot_be_written_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "state"
    adapting = runtime()
    adapting.save_state(file)
    earlier = file.read_bytes()
    adapting(images(8))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match=r"the disk is full .*the earlier file is unchanged"):
        adapting.save_state(file)
    monkeypatch.undo()
    assert file.read_bytes() == earlier and [entry.name for entry in tmp_path.iterdir()] == ["state"]
