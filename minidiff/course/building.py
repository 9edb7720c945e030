"""What a build page leans on: it runs through the learner's own answers, and trains in their notebook."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ..arguments import Count, checked
from . import exercises
from .notebook import in_notebook
from .outcomes import NotAttempted


@checked
def attempted(run: Callable[[], Any], otherwise: Callable[[], Any], note: str) -> Any:
    """``run()``; or, while an answer that it calls is not written yet, ``otherwise()``, after printing the note.

    Args:
        run: What the learner's answers make.
        otherwise: What stands in for it.
        note: What is missing, and what is shown instead.
    """
    try:
        return run()
    except NotAttempted:
        print(note)
        return otherwise()


@checked
def training_steps(full: Count, rehearsal: Count) -> int:
    """How long to train: ``full`` in a learner's notebook, a rehearsal where the page is tested or a hand-in is graded.

    Args:
        full: Steps of the training that the page is about.
        rehearsal: Steps that show that all of it works.
    """
    tested = os.environ.get("MINIDIFF_STRICT") == "1" or exercises.silent
    return full if in_notebook() and not tested else rehearsal
