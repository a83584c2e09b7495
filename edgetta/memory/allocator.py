"""What the C library does with freed memory: give it back at once, for a budget, or keep it, which is quicker.

By default glibc keeps what is freed for later, up to twice the largest block, in a heap that fragments: a step that
needs 123 MB has been seen to take from 165 to 280 MB, another amount each time, which no plan can promise. Blocks that
are mapped one by one come and go with the tensors. The price is that their pages are zeroed anew, a tenth of a step
and more. A process that has no budget to keep does better with all that it ever took.

glibc maps blocks of 128 KiB and more to begin with. Slices of a few images are smaller than that, and what the heap
holds on to of them is up to 10 % of a small budget, other amounts for other sizes of a batch.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

BLOCK = 32 << 10
"""Blocks of this many bytes and more are mapped on their own, where a budget is kept."""

TOP = 128 << 10
"""Free bytes at the heap's end that may stay there: glibc's own value, which it otherwise raises."""

KEPT_BLOCK = 32 << 20
"""Where freed memory is kept, only blocks larger than this are mapped on their own: the most every glibc takes."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
_MAPPED_BLOCKS = 1 << 20
_NEVER = (1 << 31) - 1


def return_freed_memory() -> bool:
    """Resident memory is memory in use from now on; False where the C library has no such switch (musl, macOS)."""
    _kept.clear()
    done = _set(
        {
            _M_MMAP_THRESHOLD: BLOCK,
            _M_TRIM_THRESHOLD: TOP,
            _M_MMAP_MAX: _MAPPED_BLOCKS,
            _M_ARENA_MAX: 1,
        }
    )
    _returned[:] = [done]
    return done


def keep_freed_memory() -> bool:
    """What this process frees stays with it, ready for the next step; False where the C library has no such switch.

    ONNX Runtime's sessions that are made from now on share an arena.
    """
    _kept.append(True)
    _returned.clear()
    return _set({_M_MMAP_THRESHOLD: KEPT_BLOCK, _M_TRIM_THRESHOLD: _NEVER})


def keeps_freed_memory() -> bool:
    """Whether `keep_freed_memory` was the last word."""
    return bool(_kept)


def returns_freed_memory() -> bool:
    """Whether `return_freed_memory` was the last word, and the C library took it."""
    return any(_returned)


_kept: list[bool] = []
_returned: list[bool] = []


def _set(switches: dict[int, int]) -> bool:
    with suppress(OSError, AttributeError, TypeError):  # no such function; on Windows no such library
        mallopt = ctypes.CDLL(None).mallopt
        return all(mallopt(name, value) == 1 for name, value in switches.items())
    return False
