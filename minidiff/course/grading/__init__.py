"""Grading hand-ins: the answer runs in a sandboxed process, the verdict is made outside it.

``grade`` (which files, what is written) asks ``referee`` processes (cases, verdicts); each has a ``nursery``, which
forks a process for every hand-in. That process shuts itself in (``kernel``, ``seccomp``: what Linux offers;
``sandbox``: resources, audit hook; ``standins``: what does the same in one process), executes the hand-in (``worker``,
``handin``, ``dialect``) and serves its answers over pipes (``wire``, ``channel``). ``files`` finds hand-ins,
``formats`` reads them, ``book`` writes grades, ``process`` starts and ends processes.
"""

from __future__ import annotations

import sys


def grade_paths(*args, **kwargs) -> list[dict]:
    """See :func:`minidiff.course.grading.grade.grade_paths`; imported late, for the worker must not pay for it.

    Raises:
        ValueError: on Windows, which has nothing of what shuts hand-ins in.
    """
    if sys.platform == "win32":
        raise ValueError("grading needs Linux or macOS (on Windows: WSL)")
    from minidiff.course.grading import grade

    return grade.grade_paths(*args, **kwargs)
