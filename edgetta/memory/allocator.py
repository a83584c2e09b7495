"""Have the C library give freed memory back at once, so that resident memory is memory in use.

By default glibc keeps what is freed for later, in a heap that fragments: a step that needs 123 MB has been seen to
take from 165 to 280 MB, another amount each time, which no plan can promise. Blocks that are mapped one by one come
and go with the tensors. The price is that their pages are zeroed anew: see README for what a budget costs in time.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

BLOCK = 128 << 10
"""Blocks of this many bytes and more are mapped on their own: glibc's start value, which it otherwise raises."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8
_MAPPED_BLOCKS = 1 << 20


def return_freed_memory() -> bool:
    """Set this process's allocator so, from now on; False where the C library has no such switch (musl, macOS)."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        settings = {
            _M_MMAP_THRESHOLD: BLOCK,
            _M_TRIM_THRESHOLD: BLOCK,
            _M_MMAP_MAX: _MAPPED_BLOCKS,
            _M_ARENA_MAX: 1,
        }
        return all(mallopt(name, value) == 1 for name, value in settings.items())
    return False
