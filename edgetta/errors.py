"""Errors that a user can act on. The command line prints them as one line, without a traceback."""

from __future__ import annotations


class EdgettaError(Exception):
    """Something the user can put right. The message names what was wrong, where, and what to do.

    `exit_code` is what the command line returns: 1 for bad input, 2 for wrong usage, 3 for a missing dependency,
    4 for a bundle or state file that failed its checks.
    """

    exit_code = 1


class UsageError(EdgettaError):
    """An option or argument that cannot be used as given."""

    exit_code = 2


class MissingDependencyError(EdgettaError):
    """A package or device that this action needs is not here."""

    exit_code = 3


class BundleError(EdgettaError):
    """A bundle or state file that is damaged, unsafe, or of a version that this edgetta does not read."""

    exit_code = 4


def one_line(error: Exception) -> str:
    """What a foreign error says, as one line of bounded length: torch and ONNX Runtime explain themselves in many."""
    text = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) and error.args else str(error)
    words = " ".join(text.split()) or type(error).__name__
    return words if len(words) <= 400 else f"{words[:200]} ... {words[-200:]}"
