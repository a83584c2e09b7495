"""A step that fails half-way, wherever that is, leaves weights, statistics, momentum, window and counters alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from edgetta.adaptation import adapter as adapter_module
from edgetta.adaptation import network as network_module
from edgetta.adaptation.meta_backward import backward_slices
from edgetta.bundle import read_bundle
from edgetta.runtime import Runtime
from edgetta.segmented.adapter import AdaptConfig
from tests.small_bundle import ENGINES, whole_bundle

CONFIG = AdaptConfig(learning_rate=0.05, entropy_margin=1.0, window=8, small_batch=4)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def everything(of: Runtime) -> dict[str, Tensor]:
    """All that a step may move, copied."""
    state = {name: tensor.clone() for name, tensor in of.network.state_dict().items()}
    momentum = {name: t.clone() for name, t in of.adapter.optimizer_tensors().items()}
    counters = {f"counter.{name}": torch.tensor(count) for name, count in of.adapter.counters().items()}
    return {**state, **momentum, **counters}


def assert_same(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    assert before.keys() == after.keys()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert not moved, f"moved: {moved}"


def failing(call: Callable[..., Any], after: int = 0) -> Callable[..., Any]:
    """`call`, but the call number `after` (from 0) raises when its work is done: the worst moment."""
    calls = [0]

    def wrapped(*arguments: Any, **options: Any) -> Any:
        result = call(*arguments, **options)
        calls[0] += 1
        if calls[0] > after:
            raise MemoryError("injected")
        return result

    return wrapped


def in_forward(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.network.parts[1], "forward", failing(runtime.network.parts[1].forward))


def in_classifier(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.network.classifier, "forward", failing(runtime.network.classifier.forward))


def in_meta_forward(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.network.metas[1], "forward", failing(runtime.network.metas[1].forward))


def in_objective(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_module, "filtered_entropy", failing(adapter_module.filtered_entropy))


def in_backward(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.network.parts[1], "input_gradient", failing(runtime.network.parts[1].input_gradient))


def in_meta_backward(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    def slices(meta: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
        yield from backward_slices(meta, *arguments, **options)
        if meta is runtime.network.metas[0]:
            raise MemoryError("injected")

    monkeypatch.setattr(network_module, "backward_slices", slices)


def in_optimizer(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the parameters have moved, with their momentum, when the memory ends."""
    optimizer = runtime.adapter.optimizer

    def half() -> None:
        parameters = optimizer.param_groups[0]["params"]
        optimizer.param_groups[0]["params"] = parameters[: len(parameters) // 2]
        try:
            type(optimizer).step(optimizer)
        finally:
            optimizer.param_groups[0]["params"] = parameters
        raise MemoryError("injected")

    monkeypatch.setattr(optimizer, "step", half)


SITES = (
    *(in_forward, in_classifier, in_meta_forward, in_objective),
    *(in_backward, in_meta_backward, in_optimizer),
)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("policy", ["batch", "ema"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_failed_step_leaves_all_as_before(
    engine: str,
    policy: Any,
    passes: int,
    site: Callable[[Runtime, pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = AdaptConfig(learning_rate=0.05, entropy_margin=1.0, passes=passes)
    failed, untouched = (
        Runtime(read_bundle(whole_bundle()), engine, config, batch_norm=policy, check=False) for _ in range(2)
    )
    for seed in range(2):
        failed.adapter.step(images(16, seed))
        untouched.adapter.step(images(16, seed))
    before = everything(failed)
    with monkeypatch.context() as patched:
        site(failed, patched)
        with pytest.raises(MemoryError, match="injected"):
            failed.adapter.step(images(16, 2))
    assert_same(before, everything(failed))
    assert all(parameter.grad is None for parameter in failed.network.parameters())
    again = failed.adapter.step(images(16, 3))
    torch.testing.assert_close(again.logits, untouched.adapter.step(images(16, 3)).logits, rtol=0, atol=0)
    assert_same(everything(untouched), everything(failed))


@pytest.mark.parametrize("site", SITES)
def test_the_first_step_of_all_can_be_undone(
    site: Callable[[Runtime, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no momentum before it, and none afterwards."""
    runtime = Runtime(read_bundle(whole_bundle()), "torch", CONFIG, check=False)
    before = everything(runtime)
    site(runtime, monkeypatch)
    with pytest.raises(MemoryError):
        runtime.adapter.step(images(16))
    assert_same(before, everything(runtime)) and not runtime.adapter.optimizer_tensors()


def test_an_update_of_gathered_frames_that_fails_keeps_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    failed, untouched = (Runtime(read_bundle(whole_bundle()), "torch", CONFIG, check=False) for _ in range(2))
    for runtime in (failed, untouched):
        for start in range(0, 6, 2):
            runtime.adapter.step(images(8)[start : start + 2])
    before = everything(failed)
    with monkeypatch.context() as patched:
        in_backward(failed, patched)
        with pytest.raises(MemoryError):
            failed.adapter.step(images(8)[6:])
    assert_same(before, everything(failed))
    for runtime in (failed, untouched):
        assert runtime.adapter.step(images(8)[6:]).adapted
    assert_same(everything(untouched), everything(failed))


def test_a_prediction_that_fails_moves_no_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(read_bundle(whole_bundle()), "torch", CONFIG, check=False)
    before = everything(runtime)
    in_classifier(runtime, monkeypatch)
    with pytest.raises(MemoryError):
        runtime.adapter.predict(images(16))
    assert_same(before, everything(runtime))


def test_predicting_without_tracking_moves_nothing() -> None:
    runtime = Runtime(read_bundle(whole_bundle()), "torch", CONFIG, check=False)
    before = everything(runtime)
    result = runtime.adapter.predict(images(16), track=False)
    assert result.reason == "no memory" and not result.adapted and result.logits.shape == (16, 5)
    assert_same(before, everything(runtime))
    runtime.adapter.predict(images(16))
    with pytest.raises(AssertionError, match="moved"):
        assert_same(before, everything(runtime))


def test_updates_of_gathered_frames_can_be_smaller_where_memory_is_short() -> None:
    runtime = Runtime(read_bundle(whole_bundle()), "torch", CONFIG, check=False)
    adapter = runtime.adapter
    adapter.largest_update = 6
    assert adapter.window == 6
    results = [adapter.step(images(2, seed)) for seed in range(6)]
    assert [result.adapted for result in results] == [False, False, True] * 2
    assert {result.kept for result in results} == {0, 6}


def test_a_small_batch_can_be_learnt_from_at_once() -> None:
    runtime = Runtime(read_bundle(whole_bundle()), "torch", CONFIG, check=False)
    assert runtime.adapter.step(images(2), gather=False).kept == 2
