"""The course's own tools, as a lesson imports them.

>>> from minidiff.course import NotAttempted, begin, check, claim, finish, frames, glue, live, table, verdict

A build page also imports ``attempted`` and ``training_steps``.
"""

from __future__ import annotations

from minidiff.course.building import attempted, training_steps
from minidiff.course.claims import claim, verdict
from minidiff.course.exercises import check
from minidiff.course.notebook import begin, finish, glue, table
from minidiff.course.outcomes import NotAttempted
from minidiff.course.widgets import frames, live

__all__ = [
    "NotAttempted",
    "attempted",
    "begin",
    "check",
    "claim",
    "finish",
    "frames",
    "glue",
    "live",
    "table",
    "training_steps",
    "verdict",
]
