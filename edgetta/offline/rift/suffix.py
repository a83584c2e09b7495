"""The part of a forward pass that depends on some modules: what lies before them is computed once and kept.

While one module's weights are varied, everything that ran before it stays the same. The calls that were done when the
module is first reached are found by running the model once; later passes get their outputs without computing them.
Works on any module, functions between modules included (they are cheap, and run again on the kept outputs). Whatever
was kept is checked against the plain forward pass before it is used; where a model does not bear it, nothing is kept.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

_TRIED = 4  # images on which keeping is tried out
_CLOSE = 1e-5  # relative difference of logits that rounding may make


class _Reached(Exception):
    """The first of the modules is about to run: nothing later matters."""


@dataclass(frozen=True)
class _Call:
    """A finished call of a module, outermost of those that are done."""

    module: nn.Module
    shape: torch.Size
    output: Tensor | None  # None: nobody holds it any more when the modules are reached


class Suffix:
    """Forward passes over fixed batches with some weights replaced, computed from the modules of these weights on.

    Args:
        model: in the mode in which it is to be measured, and kept so.
        owners: names of the modules whose weights will vary.
        batches: images (n, C, H, W) of each batch, on the model's device.
        limit: bytes that kept outputs may take; batches beyond it are computed whole.
    """

    def __init__(self, model: nn.Module, owners: Sequence[str], batches: Sequence[Tensor], limit: int) -> None:
        self.model = model
        self.batches = batches
        self.kept: list[list[_Call] | None] = [None] * len(batches)
        modules = dict(model.named_modules())
        self._owners = [modules[name] for name in owners]
        self._whole_outputs = False  # keep also what nobody seems to hold
        self._copies = False  # hand out copies: the model writes into what it gets
        if batches and len(batches[0]) and limit and self._is_sound():
            self._keep(limit)

    @property
    def kept_batches(self) -> int:
        """How many batches are computed from the modules on."""
        return sum(calls is not None for calls in self.kept)

    @property
    def share(self) -> float:
        """Of the modules with weight matrices or kernels, those that are computed anew: above 0 up to 1."""
        calls = self.kept[0] if self.kept else None
        if calls is None:
            return 1.0
        before = {module for call in calls for module in call.module.modules() if _has_weights(module)}
        return 1 - len(before) / sum(_has_weights(module) for module in self.model.modules())

    def logits(self, number: int, weights: Mapping[str, Tensor]) -> Tensor:
        """Logits of a batch with some parameters replaced, as `functional_call` gives them."""
        with self.replaying(number):
            return functional_call(self.model, dict(weights), (self.batches[number],))

    @contextmanager
    def replaying(self, number: int) -> Iterator[None]:
        """Within the block the model, called on batch `number`, takes what was kept of it."""
        calls = self.kept[number]
        if calls is None:
            yield
            return
        with _replayed(self.model, calls, self._copies):
            yield

    def _is_sound(self) -> bool:
        """Whether passes from the modules on give what whole passes give; settles how outputs are kept."""
        some = self.batches[0][:_TRIED]
        with torch.no_grad():
            expected = self.model(some)
        scale = float(expected.abs().max()) or 1.0
        for self._whole_outputs, self._copies in ((False, False), (True, False), (True, True)):
            calls = self._record(some)
            if not any(call.output is not None for call in calls):
                return False
            try:
                with torch.no_grad():
                    for _ in range(2):  # a model that writes into its inputs shows at the second pass
                        with _replayed(self.model, calls, self._copies):
                            found = self.model(some)
                        if found.shape != expected.shape or float((found - expected).abs().max()) > _CLOSE * scale:
                            raise RuntimeError
            except Exception:
                # Whatever a model does with the outputs it is given, another way of keeping them may suit it.
                continue
            return True
        return False

    def _keep(self, limit: int) -> None:
        used = 0
        for number, images in enumerate(self.batches):
            if not len(images):
                continue
            calls = self._record(images)
            used += sum(call.output.nbytes for call in calls if call.output is not None)
            if used > limit:
                break
            self.kept[number] = calls

    @torch.no_grad()
    def _record(self, images: Tensor) -> list[_Call]:
        """The outermost calls that are done when the first of the owners is reached."""
        done: list[tuple[nn.Module, torch.Size, Any, Tensor | None]] = []
        depths: list[int] = []

        def enter(module: nn.Module, inputs: Any) -> None:
            if any(module is owner for owner in self._owners):
                raise _Reached
            depths.append(len(done))

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            begun = depths.pop()
            if isinstance(output, Tensor):
                del done[begun:]  # calls inside this one
                done.append((module, output.shape, weakref.ref(output), output if self._whole_outputs else None))

        hooks = []
        for module in self.model.modules():
            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        try:
            self.model(images)
        except _Reached:
            # While the exception holds the frames of the pass, what they hold is alive: that is what is still needed.
            return [_Call(m, shape, held if held is not None else alive()) for m, shape, alive, held in done]
        finally:
            for hook in hooks:
                hook.remove()
        return []


@contextmanager
def _replayed(model: nn.Module, calls: Sequence[_Call], copies: bool) -> Iterator[None]:
    """Within the block, in each pass, these calls return what was kept, in order; further calls run as ever."""
    kept: dict[nn.Module, list[_Call]] = {}
    for call in calls:
        kept.setdefault(call.module, []).append(call)
    done = dict.fromkeys(kept, 0)

    def begin(*_: Any) -> None:
        done.update(dict.fromkeys(done, 0))

    def replay(module: nn.Module, forward: Any) -> Any:
        def run(*inputs: Any, **named: Any) -> Any:
            number = done[module]
            done[module] += 1
            if number >= len(kept[module]):
                return forward(*inputs, **named)
            call = kept[module][number]
            if call.output is None:
                return torch.zeros((), device=_device(inputs)).expand(call.shape)
            return call.output.clone() if copies else call.output

        return run

    earlier = {module: module.__dict__.get("forward") for module in kept}
    beginning = model.register_forward_pre_hook(begin)
    try:
        for module in kept:
            module.forward = replay(module, module.forward)  # type: ignore[method-assign]
        yield
    finally:
        beginning.remove()
        for module, own in earlier.items():
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = own  # type: ignore[method-assign]


def _has_weights(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))


def _device(inputs: Sequence[Any]) -> torch.device:
    return next((value.device for value in inputs if isinstance(value, Tensor)), torch.device("cpu"))
