"""Grading hand-ins: the answer runs in a sandboxed process, the verdict is made outside it.

``grade`` (which files, what is written) asks ``referee`` processes (cases, verdicts), which start a ``sandbox`` for
each hand-in, whose ``worker`` executes it (``handin``) and serves its answers over a pipe (``wire``, ``channel``).
``kernel`` holds what Linux offers to shut it in, ``process`` starts and ends processes.
"""

from __future__ import annotations


def grade_paths(*args, **kwargs) -> list[dict]:
    """See :func:`minidiff.course.grading.grade.grade_paths`; imported late, for the worker must not pay for it."""
    from minidiff.course.grading import grade

    return grade.grade_paths(*args, **kwargs)
