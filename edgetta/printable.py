"""Text from elsewhere on somebody's screen: names in a bundle, a file or an answer must not steer the terminal."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """`text` with control characters, marks that turn its direction, and what is no Unicode as escapes."""
    if text.isprintable():
        return text
    return "".join(c if _harmless(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def _harmless(character: str) -> bool:
    """Printable, or a space of another width."""
    return character.isprintable() or unicodedata.category(character) == "Zs"
