"""The last net below the readers of a bundle: what no check has a name for ends in one line, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgetta.errors import BundleError, EdgettaError, one_line
from edgetta.memory.allocation_failure import is_allocation_failure

_KINDS = (
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    StopIteration,
    SystemError,
)


class MalformedError(BundleError):
    """A file that a reader fell over, without a check that says what is wrong with it."""


@contextmanager
def malformed(path: Path) -> Iterator[None]:
    """Within the block, errors of Python's own become one line. Want of memory passes, and so do our own errors."""
    try:
        yield
    except EdgettaError:
        raise
    except _KINDS as error:
        if is_allocation_failure(error):
            raise
        raise MalformedError(f"bundle {path} is malformed: {one_line(error)}; export the bundle again") from error
