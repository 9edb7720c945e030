"""Words in messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def alike(word: str, words: Iterable[str]) -> list[str]:
    """The words, those most like the given one first."""
    return sorted(words, key=lambda other: (-difflib.SequenceMatcher(None, word, other).ratio(), other))


def nearest(word: str, words: Iterable[str]) -> str:
    """The accepted words, the nearest one first, as the end of an error message."""
    words = list(words)
    close = difflib.get_close_matches(word, words, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(words))}"
