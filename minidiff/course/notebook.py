"""One run of a lesson: where it begins, what it publishes to the book, and how long it took.

Works in the book, in Jupyter, on Colab and in a plain Python process: nothing here needs Sphinx or myst_nb.
"""

from __future__ import annotations

import html
import json
import os
import platform
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minidiff.files import write_atomically

RECORDS_VARIABLE = "MINIDIFF_RECORDS"
SEED = 0
NUMBERS = re.compile(r"[-+−\d.,%\s()\[\]±]{1,32}")  # a number, or one with its interval
SENTENCE = 60  # characters from which a cell holds a sentence


@dataclass
class Run:
    """The lesson being run: its claims so far (``course.claims.Claim`` by id) and, once finished, its seconds."""

    lesson: str | None = None
    started: float = field(default_factory=time.perf_counter)
    claims: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None

    def save(self) -> Path | None:
        """Write the record to ``$MINIDIFF_RECORDS/<lesson>.json`` (atomically); no variable or no lesson, no file."""
        folder = os.environ.get(RECORDS_VARIABLE)
        if not folder or self.lesson is None:
            return None
        record = {
            "lesson": self.lesson,
            "seconds": self.seconds,
            "python": platform.python_version(),
            "claims": [claim.record() for claim in self.claims.values()],
        }
        path = Path(folder, f"{self.lesson}.json")
        write_atomically(path, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
        return path


_run = Run()


def current() -> Run:
    """The run that :func:`begin` started (an anonymous, unrecorded one before that)."""
    return _run


def begin(slug: str) -> None:
    """Start the run of a lesson: seed torch, apply the plotting style, open the record.

    Args:
        slug: the lesson's file name without number and suffix, e.g. ``"forward_and_reverse"``.

    Raises:
        ValueError: ``slug`` is not lower-case letters, digits and underscores.
    """
    global _run
    if not re.fullmatch(r"[a-z][a-z0-9_]*", slug):
        raise ValueError(f"begin() takes a lesson's slug (lower case, digits, underscores), not {slug!r}")
    _run = Run(slug)
    import torch

    from minidiff import plots

    torch.manual_seed(SEED)
    plots.use_style()


def finish() -> None:
    """Close the run: record its time and show the lesson's claims as a table, each with all that decided it."""
    run = current()
    run.seconds = round(time.perf_counter() - run.started, 1)
    run.save()
    rows = [claim.row() for claim in run.claims.values()]
    if not rows:
        show("This page makes no claim.", "<p>This page makes no claim.</p>")
        return
    text = "\n".join(f"{row['verdict']:>12}  {row['id']}: {row['measured']}" for row in rows)
    said = lambda row, *keys: " ".join(row[key] for key in keys if row[key] != "–")
    table(
        ["claim", "verdict", "measured", "required", "controls, which fail it"],
        [
            [
                row["statement"],
                f"{row['verdict']} ({row['tier']})",
                said(row, "measured", "interval"),
                row["criterion"],
                said(row, "negative", "control"),
            ]
            for row in rows
        ],
        text,
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], text: str | None = None) -> None:
    """Show rows of texts as a table that scrolls sideways on a narrow screen.

    Args:
        columns: headings.
        rows: one text for each column.
        text: what to print where there is no notebook; the rows themselves when left out.

    Raises:
        ValueError: a row with more or fewer texts than there are columns.
    """
    rows = [list(row) for row in rows]
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"every row of this table needs {len(columns)} texts, one for each of {list(columns)}")
    head = "".join(f'<th scope="col">{html.escape(c)}</th>' for c in columns)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    plain = "\n".join("  ".join(row) for row in [columns, *rows]) if text is None else text
    show(
        plain,
        '<div class="claims" style="overflow-x: auto"><table class="table">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>",
    )


def _cell(text: str) -> str:
    """A cell of a table; a number and its interval are not broken into lines, sentences not into single words."""
    style = "white-space: nowrap" if NUMBERS.fullmatch(text) else "min-width: 14em" if len(text) > SENTENCE else ""
    return f'<td style="{style}">{html.escape(text)}</td>' if style else f"<td>{html.escape(text)}</td>"


def show(text: str, rich: str) -> None:
    """Show ``rich`` (HTML) in a notebook, print ``text`` elsewhere."""
    if not in_notebook():
        print(text)
        return
    from IPython.display import display

    display({"text/plain": text, "text/html": rich}, raw=True)


def in_notebook() -> bool:
    """Whether an IPython kernel or shell is running this code."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return get_ipython() is not None


def glue(name: str, value: Any) -> None:
    """Publish ``value`` under ``name`` to the text of the book (``{glue:text}`name:.3f```).

    Outside a recorded run, as on Colab, it prints the value instead: there the text has only the name.

    Args:
        name: unique in the lesson.
        value: a string, or a number (a zero-dimensional array or tensor counts as its number).
    """
    value = value.item() if hasattr(value, "item") else value
    if RECORDS_VARIABLE not in os.environ:
        print(f"{name} = {value}")
    publish(name, value)


def publish(name: str, value: Any) -> None:
    """Hand a value to the book, if a book is being made; silent otherwise."""
    if not in_notebook():
        return
    try:
        from myst_nb import glue as to_book
    except ImportError:  # Colab, plain Jupyter
        return
    to_book(name, value, display=False)
