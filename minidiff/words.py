"""Words in messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def alike(word: str, words: Iterable[str]) -> list[str]:
    """The words, those most like the given one first."""
    return sorted(words, key=lambda other: (-difflib.SequenceMatcher(None, word, other).ratio(), other))


def nearest(word: str, words: Iterable[str]) -> str:
    """The nearest of the accepted words, or those that there are, as the end of an error message."""
    words = list(words)
    close = difflib.get_close_matches(str(word), words, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {_some(sorted(words))}"


def _some(words: list[str], most: int = 12) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
