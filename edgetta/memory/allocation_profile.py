"""Where a step's bytes go: resident memory piece by piece, split into torch, engine and the rest.

A step is run twice. The first time the kernel's high-water mark is read and reset at every border between pieces: that
is what the process takes. The second time torch's profiler counts what torch's own allocator has alive (the profiler
itself takes memory, which must not show in the first count). Borders are calls of segments and of meta-networks'
forwards, and of the engine's programs inside segments; the meta-networks' backward is what runs between the gradients
of segments.

    torch    alive in torch's allocator
    engine   growth of the process inside a call of an engine other than torch, beyond the outputs that it fills
    other    what is left: numpy's arrays (packed masks), the libraries' scratch memory, rounding to pages
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgetta.adaptation.network import AdaptiveNetwork
from edgetta.memory.peak import give_back, high_water, reset_high_water, resident
from edgetta.segments.contract import Segment
from edgetta.segments.torch_engine import Program

_MARK = "edgetta border"


@dataclass(frozen=True)
class Piece:
    """The highest use within one piece of a step, in bytes above the level before the step."""

    name: str
    peak: int  # of the process
    torch: int
    engine: int
    other: int


def allocation_profile(network: AdaptiveNetwork, step: Callable[[], object], warm_up: int = 1) -> list[Piece]:
    """The pieces of `step`, a function that runs `network`, in the order in which they ran.

    Raises `EdgettaError` where the system does not tell resident memory.
    """
    for _ in range(warm_up):
        step()
    give_back()
    level = resident()
    process = _Process(level)
    with _watched(network, process):
        step()
        process.border("")
    with _watched(network, _Marks()), tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profiler:
            step()
        profiler.export_chrome_trace(str(trace))
        alive = _alive_by_piece(json.loads(trace.read_text())["traceEvents"])
    pieces = []
    for i, (name, peak, engine) in enumerate(process.pieces):
        in_torch = min(peak, alive[i]) if i < len(alive) else 0
        in_engine = min(peak - in_torch, engine)
        pieces.append(Piece(name, peak, in_torch, in_engine, peak - in_torch - in_engine))
    return pieces


def highest(pieces: list[Piece]) -> Piece:
    """The piece in which the step's peak lies."""
    return max(pieces, key=lambda piece: piece.peak)


class _Process:
    """Reads the high-water mark at every border."""

    def __init__(self, level: int) -> None:
        self.pieces: list[tuple[str, int, int]] = []  # name, highest above the level, the engine's share
        self._level = level
        self._names = [""]  # of the calls that are open; outside of them it says what goes on
        self._outputs: int | None = None
        self._start = level
        reset_high_water()

    def enter(self, name: str) -> None:
        self.border(name)

    def leave(self, outputs: int | None) -> None:
        """`outputs`: bytes that an engine has filled; None where the call was not an engine's."""
        self._outputs = outputs
        self.border(None)

    def border(self, name: str | None) -> None:
        peak = high_water()
        engine = 0 if self._outputs is None else max(0, peak - self._start - self._outputs)
        self.pieces.append((self._names[-1] or "rest", max(0, peak - self._level), engine))
        self._outputs = None
        if name is not None:
            self._names.append(name)
        elif self._names.pop().endswith("input_gradient") and len(self._names) == 1:
            self._names = ["meta-networks backward"]
        self._start = resident()
        reset_high_water()


class _Marks:
    """Leaves a mark in the profiler's trace at every border."""

    def enter(self, name: str) -> None:
        with torch.profiler.record_function(_MARK):
            pass

    def leave(self, outputs: int | None) -> None:
        self.enter("")


@contextmanager
def _watched(network: AdaptiveNetwork, observer: _Process | _Marks) -> Iterator[None]:
    """Within the block, `observer` hears of every call of a segment, a program in it, or a meta-network."""
    with ExitStack() as stack:
        parts = {f"part {k}": part for k, part in enumerate(network.parts, 1)}
        for name, segment in {"stem": network.stem, **parts, "classifier": network.classifier}.items():
            for method in ("forward", "input_gradient"):
                stack.enter_context(_wrapped(segment, method, f"{name} {method}", observer))
            for program in _engine_programs(segment):
                stack.enter_context(_wrapped(program, "run", f"{name} engine", observer, engine=True))
        for k, meta in enumerate(network.metas, 1):
            stack.enter_context(_wrapped(meta, "forward", f"meta {k} forward", observer))
        yield


def _engine_programs(segment: Segment) -> list[Any]:
    """What a segment runs on an engine of its own."""
    held = [*vars(segment).values(), *(p for v in vars(segment).values() if isinstance(v, dict) for p in v.values())]
    programs = {id(item): item for item in held if hasattr(item, "run") and not isinstance(item, Program)}
    return list(programs.values())


@contextmanager
def _wrapped(owner: Any, method: str, name: str, observer: _Process | _Marks, engine: bool = False) -> Iterator[None]:
    original = getattr(owner, method)

    def call(*arguments: Any, **options: Any) -> Any:
        observer.enter(name)
        try:
            result = original(*arguments, **options)
        except BaseException:
            observer.leave(None)
            raise
        observer.leave(sum(t.nbytes for t in result if isinstance(t, Tensor)) if engine else None)
        return result

    object.__setattr__(owner, method, call)
    try:
        yield
    finally:
        object.__delattr__(owner, method)


def _alive_by_piece(events: list[dict[str, Any]]) -> list[int]:
    """The highest total that torch's allocator had alive between borders, from the profiler's trace."""
    borders = sorted(e["ts"] for e in events if e.get("name") == _MARK and e.get("ph") == "X")
    counts = sorted(
        (e["ts"], e["args"]["Total Allocated"])
        for e in events
        if e.get("name") == "[memory]" and e["args"].get("Device Type") == 0
    )
    alive, now, place = [], 0, 0
    for border in [*borders, float("inf")]:
        highest = now
        while place < len(counts) and counts[place][0] < border:
            now = counts[place][1]
            highest = max(highest, now)
            place += 1
        alive.append(highest)
    return alive
