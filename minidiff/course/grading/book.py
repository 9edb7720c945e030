"""The files that a grading writes: proven writable before it starts, rewritten whole as each hand-in is known."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from minidiff.files import remove_leftovers, write_atomically

COLUMNS = ("hand-in", "exercise", "points", "max", "status", "message")
MESSAGE_LENGTH = 300  # in the CSV; the JSON has all
FORMULAS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the full-width forms too


class GradeBook:
    """Grades as a CSV, a JSON file, or both; each file is at every moment the old one or a whole new one."""

    def __init__(self, out_csv: str | Path | None, out_json: str | Path | None, hand_ins: Iterable[Path]):
        """Raises ValueError for a file that cannot be written, or that is a hand-in or the other file."""
        given = {"csv": out_csv, "json": out_json}
        self._files = {kind: Path(os.path.realpath(path)) for kind, path in given.items() if path is not None}
        taken = {os.path.realpath(path): path for path in hand_ins}
        for kind, path in self._files.items():
            if str(path) in taken:
                raise ValueError(f"the {kind} file {given[kind]} would overwrite the hand-in {taken[str(path)]}")
            _prove_writable(path, kind)
            remove_leftovers(path.parent, path.name)  # of gradings that were killed
        if len(set(self._files.values())) < len(self._files):
            raise ValueError(f"the csv and the json file are the same one, {out_csv}: give two names")

    def write(self, results: list[dict]) -> None:
        """Raises OSError when a file cannot be written (any more); what it held before is then still there."""
        for kind, path in self._files.items():
            write_atomically(path, _content(kind, results))

    def finish(self, results: list[dict]) -> None:
        """As ``write``; what cannot be written where it should is written among the temporary files.

        Raises:
            OSError: a file cannot be written any more; the message says where it is instead.
        """
        try:
            self.write(results)
        except OSError as error:
            names = " and ".join(map(str, self._files.values()))
            found = self._elsewhere(results)
            raise OSError(f"{names} cannot be written any more ({error}){found}") from error

    def _elsewhere(self, results: list[dict]) -> str:
        """Write the grades among the temporary files; where they are, in words."""
        try:
            folder = Path(tempfile.mkdtemp(prefix="minidiff-grades-"))
        except OSError as error:
            return f", nor elsewhere ({error}): make room and grade again"
        try:
            for kind, path in self._files.items():
                write_atomically(folder / path.name, _content(kind, results))
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            return f", nor elsewhere ({error}): make room and grade again"
        return f"; the grades are in {folder}"


def _content(kind: str, results: list[dict]) -> bytes:
    text = to_csv(results) if kind == "csv" else json.dumps(results, indent=1) + "\n"
    return text.encode("utf-8", "backslashreplace")


def _prove_writable(path: Path, kind: str) -> None:
    if path.exists() and not path.is_file():
        raise ValueError(f"the {kind} file {path} is no file that could be written")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(b"grades")
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError("the file there may not be changed")
    except OSError as error:
        raise ValueError(f"the {kind} file {path} cannot be written: {error.strerror or error}") from error


def to_csv(results: list[dict]) -> str:
    """The grade book: a row per hand-in and exercise, one without an exercise for a hand-in that could not be read."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for r in results:
        unread = {"id": "", "points": 0.0, "max": 0.0, "status": r["status"], "message": r["message"]}
        for e in r["exercises"] or [unread]:
            message = re.sub(r"[\x00-\x1f\x7f\s]+", " ", e["message"]).strip()[:MESSAGE_LENGTH]
            cells = (e["id"], f"{e['points']:g}", f"{e['max']:g}", e["status"], printable(message))
            writer.writerow([_quoted(cell) for cell in (name_of(r["handin"]), *cells)])
    return text.getvalue()


def name_of(path: str) -> str:
    """The name of a hand-in on one line: never cut, and different for different names."""
    return printable(path.replace("\\", "\\\\"))


def printable(text: str) -> str:
    """What a terminal would act on (line ends, escapes, marks of direction, bytes of no character) as backslashes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _quoted(cell: str) -> str:
    """Never a formula: a spreadsheet would run what a hand-in wrote. The quote itself too, so that names differ."""
    return "'" + cell if cell.startswith((*FORMULAS, "'")) else cell
