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

import edgetta
from edgetta.adaptation.config import AdaptConfig
from edgetta.bundle import read_bundle
from edgetta.errors import BundleError, UsageError
from edgetta.runtime import Runtime, load
from edgetta.state_files.contents import Contents, encode, read
from edgetta.storage import StorageError
from tests.adaptation.pictures import pictures
from tests.small_bundle import ENGINES, whole_bundle, write_small

ALWAYS = AdaptConfig(learning_rate=0.05, entropy_margin=1.0, window=8, small_batch=4, hold_back=False)


def images(count: int, seed: int = 0) -> np.ndarray:
    return pictures(count, seed)


def runtime(engine: str = "torch", config: AdaptConfig = ALWAYS, **options: Any) -> Runtime:
    return Runtime(read_bundle(whole_bundle()), engine, config, check=False, **options)


def everything(of: Runtime) -> dict[str, np.ndarray]:
    """All that a runtime has learnt."""
    return dict(of.adapter.state.arrays())


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_load_takes_settings_from_the_bundle_or_the_caller() -> None:
    loaded = edgetta.load(whole_bundle(), "torch")
    assert loaded.config == loaded.bundle.config == AdaptConfig(learning_rate=3e-3, when="every 2", hold_back=False)
    chosen = load(str(whole_bundle()), "torch", config=ALWAYS, batch_norm="batch", check=False)
    assert chosen.config == replace(ALWAYS, batch_norm="batch")


def test_a_call_predicts_and_adapts() -> None:
    first, second = runtime(), runtime()
    before = everything(first)
    logits = first(images(8))
    assert logits.shape == (8, 5) and np.array_equal(logits, second.step(images(8)).logits)
    assert not same(before, everything(first))
    assert first.adapter.state.counters() == {"steps": 1, "updates": 1, "skipped": 0, "empty": 0, "unusable": 0}


def test_every_form_of_the_same_images_predicts_the_same() -> None:
    off = runtime(config=replace(ALWAYS, when="off"), batch_norm="source")
    whole = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    floats = whole.permute(0, 3, 1, 2).float() / 255
    expected = off(floats)
    assert isinstance(expected, torch.Tensor) and isinstance(off(floats.numpy()), np.ndarray)
    for form in (whole, whole.numpy(), whole.permute(0, 3, 1, 2), floats.numpy(), floats.double()):
        np.testing.assert_allclose(np.asarray(off(form)), expected.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(off(whole.numpy()[::-1]), expected.flip(0).numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.asarray(off(whole[2])), expected[2:3].numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(off(floats[2].numpy()), expected[2:3].numpy(), rtol=1e-4, atol=1e-5)


def test_what_it_is_can_be_read() -> None:
    loaded = runtime()
    assert repr(loaded) == "<edgetta.Runtime 'small' on torch: images 3x16x16, 5 classes, always, 0 batches seen>"
    assert loaded.classes == ("zero", "one", "two", "three", "four")


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


def test_source_is_the_shipped_network_whatever_was_learnt() -> None:
    adapting = runtime()
    expected = runtime(config=replace(ALWAYS, when="off"), batch_norm="source")(images(4))
    np.testing.assert_array_equal(adapting.source(images(4)), expected)
    for seed in range(3):
        adapting(images(8, seed))
    np.testing.assert_array_equal(adapting.source(images(4)), expected)
    assert adapting.adapter.state.steps == 3, "looking at the source is no step"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_saved_and_loaded_it_goes_on_as_if_nothing_had_happened(engine: str, batch: int, tmp_path: Path) -> None:
    straight, stopped = runtime(engine), runtime(engine)
    for seed in range(13):
        straight(images(batch, seed))
        stopped(images(batch, seed))
    stopped.save_state(tmp_path / "state")
    resumed = runtime(engine)
    resumed.load_state(tmp_path / "state")
    assert same(everything(stopped), everything(resumed))
    assert resumed.adapter.state.counters()["steps"] == 13 and resumed.adapter.state.updates > 0
    for seed in range(13, 30):
        np.testing.assert_array_equal(straight(images(batch, seed)), resumed(images(batch, seed)))
    assert same(everything(straight), everything(resumed)), "momentum, statistics and the window went on, too"


def test_reset_goes_back_to_what_was_shipped() -> None:
    fresh, used = runtime(), runtime()
    start = everything(fresh)
    for seed in range(3):
        used(images(8, seed))
    used(images(2))  # waits in the window
    used.reset()
    assert same(start, everything(used))
    for seed in range(2):
        np.testing.assert_array_equal(fresh(images(8, seed)), used(images(8, seed)))


def test_a_state_before_any_update_has_no_momentum(tmp_path: Path) -> None:
    untouched = runtime()
    untouched.save_state(tmp_path / "state")
    used = runtime()
    used(images(8))
    used.load_state(tmp_path / "state")
    assert same(everything(untouched), everything(used)) and not used.adapter.state.momentum.any()


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
        (_changed(lambda arrays, info: arrays.update(counters=-arrays["counters"] - 1)), "counters are out of range"),
        (
            _changed(lambda arrays, info: _fill(arrays, "parameters", float("nan"))),
            "holds values that are not finite; delete it and start from the bundle",
        ),
        (_changed(lambda arrays, info: _fill(arrays, "parameters", 1e20)), "beyond any that a network"),
        (_changed(lambda arrays, info: _fill(arrays, "momentum", 1e20)), "beyond any that a network"),
        (_changed(lambda arrays, info: _fill(arrays, "stream.average.variance", -1.0)), "a negative variance"),
        (_changed(lambda arrays, info: arrays.pop("window")), "it lacks 'window'"),
        (_changed(lambda arrays, info: arrays.pop("stream.average.mean")), "of the stream are not whole"),
        (_changed(lambda arrays, info: arrays.update(parameters=np.zeros(9, np.float32))), r"have shape \(9,\)"),
        (_changed(lambda arrays, info: arrays.update(more=np.zeros(1))), "it holds 'more', which no state has"),
        (_changed(lambda arrays, info: arrays.update(window=np.zeros((1, 3, 8, 8)))), "holds images of shape"),
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
