"""Sources whose address holds a password: named by a file that only its owner reads, `@FILE`.

What stands on a command line is there for every user of the machine to see, and in the unit of a service for ever.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from edgetta.errors import UsageError
from edgetta.printable import printable

MAX_BYTES = 1 << 16
_SECRET = re.compile(r"://\S*@|user-pw|passw|token|secret|[?&]\w*key=", re.IGNORECASE)


def has_secret(source: str) -> bool:
    """Whether a source, as the user writes it, seems to hold something that is not for everybody's eyes."""
    return bool(_SECRET.search(source))


def public_name(address: str) -> str:
    """The address of a stream without user, password and query: what may be shown.

    All before the last @ is taken for a password, which may hold any character where somebody did not escape it.
    """
    return printable(re.sub(r"//.*@", "//", address).split("?")[0])


def read_source(source: str) -> str:
    """The source itself; `@FILE` stands for the first line of a file.

    Raises:
        UsageError: no such file, an empty one, or one that others may read.
    """
    if not source.startswith("@"):
        return source
    path = Path(source[1:]).expanduser()
    try:
        with path.open("rb") as file:
            shared = os.name == "posix" and os.fstat(file.fileno()).st_mode & 0o077
            data = file.read(MAX_BYTES)
    except OSError as error:
        raise UsageError(f"cannot read the source from {path}: {error.strerror or error}") from error
    if shared:
        raise UsageError(f"others may read {path}, which names a source: chmod 600 {path}")
    lines = data.decode("utf-8", "replace").splitlines()
    if not lines or not lines[0].strip():
        raise UsageError(f"{path} names no source in its first line")
    return lines[0].strip()
