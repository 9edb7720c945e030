"""Grading hand-ins: the answer runs in a sandboxed process, the verdict is made outside it.

``grade`` (which files, what is written) asks ``referee`` processes (cases, verdicts); each has a ``nursery``, which
forks a process for every hand-in. That process shuts itself in (``kernel``: what Linux offers; ``sandbox``: paths,
resources, audit hook), executes the hand-in (``worker``, ``handin``) and serves its answers over pipes (``wire``,
``channel``). ``process`` starts and ends processes.
"""

from __future__ import annotations


def grade_paths(*args, **kwargs) -> list[dict]:
    """See :func:`minidiff.course.grading.grade.grade_paths`; imported late, for the worker must not pay for it."""
    from minidiff.course.grading import grade

    return grade.grade_paths(*args, **kwargs)
