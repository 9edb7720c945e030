"""What an answer, or a case that looks at one, raises."""

from __future__ import annotations


class NotAttempted(Exception):
    """What an answer raises that nobody has written yet."""


class Mistake(AssertionError):
    """A wrong answer that the case recognises; the message names what was done ("you used w for s = 1 + w")."""
