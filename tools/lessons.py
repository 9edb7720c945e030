"""The lessons as data: cells with their line numbers, front matter, claims, exercises, figures."""

from __future__ import annotations

import ast
import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import yaml

ROOT = Path(__file__).resolve().parents[1]
NAME = re.compile(r"(\d\d|build)_([a-z][a-z0-9_]*)")


class LessonError(Exception):
    """A fault in a lesson's source; the message begins with file and line."""

    def __init__(self, path: Path, line: int, message: str) -> None:
        super().__init__(f"{path}:{line}: {message}")


@dataclass(frozen=True)
class Cell:
    """One cell; ``line`` is where its source begins in the lesson file, counted from 1."""

    kind: str
    source: str
    metadata: dict[str, Any]
    line: int

    @property
    def tags(self) -> list[str]:
        return self.metadata.get("tags", [])

    def tag(self, prefix: str) -> str | None:
        """What follows ``prefix:`` in one of the tags (``ex``, ``name``)."""
        return next((t.partition(":")[2] for t in self.tags if t.startswith(prefix + ":")), None)

    @property
    def figure(self) -> dict[str, Any] | None:
        """``name`` and ``caption`` of the figure that this code cell draws."""
        return self.metadata.get("mystnb", {}).get("figure")

    @property
    def alt(self) -> str:
        return str(self.metadata.get("mystnb", {}).get("image", {}).get("alt") or "").strip()

    @functools.cached_property
    def tree(self) -> ast.Module:
        """The code as a syntax tree, IPython's magics left out."""
        return ast.parse(re.sub(r"^[ \t]*[%!].*$", "", self.source, flags=re.M))

    def calls(self, name: str) -> Iterator[ast.Call]:
        """Calls of the function ``name`` in this code cell."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name:
                yield node


@dataclass(frozen=True)
class Lesson:
    """One file ``lessons/NN_slug.md``, or ``lessons/build_slug.md``: something to build beside the numbered lessons."""

    path: Path
    cells: tuple[Cell, ...]
    metadata: dict[str, Any]

    @property
    def number(self) -> int | None:
        """The chapter's number in the book, hence the first part of its equations' numbers; a build page has none."""
        first = self.path.stem.partition("_")[0]
        return int(first) if first.isdigit() else None

    @property
    def slug(self) -> str:
        return self.path.stem.partition("_")[2]

    @property
    def place(self) -> str:
        """Its path in the book, without the suffix."""
        folder = self.path.parent
        return f"lessons/{self.path.stem}" if folder.name == "lessons" else f"book/{folder.name}/{self.path.stem}"

    @property
    def definitions(self) -> list[str]:
        """Equation labels that the front matter lists as definitions: nothing to check."""
        return self.metadata.get("minidiff", {}).get("definitions", [])

    @property
    def code(self) -> list[Cell]:
        return [c for c in self.cells if c.kind == "code"]

    def error(self, line: int, message: str) -> LessonError:
        return LessonError(self.path, line, message)


def read(path: Path) -> Lesson:
    """Read one lesson.

    Raises:
        LessonError: the name is neither ``NN_slug.md`` nor ``build_slug.md``, or a code cell is not Python.
    """
    if not NAME.fullmatch(path.stem):
        raise LessonError(
            path, 1, "a lesson's file is named NN_slug.md or build_slug.md, in lower case with underscores"
        )
    text = path.read_text(encoding="utf-8")
    notebook = jupytext.reads(text, fmt="md:myst")
    cells, at = [], 0
    for cell in notebook.cells:
        found = text.find(cell.source, at)
        at = at if found < 0 else found + len(cell.source)
        line = text.count("\n", 0, max(found, 0)) + 1
        cells.append(Cell(cell.cell_type, cell.source, dict(cell.metadata), line))
        if cell.cell_type == "code":
            try:
                cells[-1].tree  # noqa: B018  parsed here so that the fault is reported with its line
            except SyntaxError as error:
                raise LessonError(path, line + (error.lineno or 1) - 1, f"not Python: {error.msg}") from error
    return Lesson(path, tuple(cells), dict(notebook.metadata))


def read_all(root: Path = ROOT) -> list[Lesson]:
    """All lessons below ``root``, in order.

    Raises:
        LessonError: as :func:`read`, or two lessons have one number.
    """
    lessons = [read(path) for path in sorted((root / "lessons").glob("*.md"))]
    for one, two in itertools.pairwise(lessons):
        if one.number == two.number is not None:
            raise two.error(1, f"has the number of {one.path.name}")
    return lessons


def appendices(root: Path = ROOT) -> list[Lesson]:
    """The pages beside the lessons that make claims, ``book/appendices/NN_slug.md``, NN that of the lesson.

    Raises:
        LessonError: as :func:`read`.
    """
    return [read(path) for path in sorted((root / "book/appendices").glob("*.md"))]


def config(root: Path = ROOT) -> dict[str, Any]:
    """The book's ``_config.yml``."""
    return yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))


def repository(root: Path = ROOT) -> tuple[str, str]:
    """Address and branch of the code, from the one place that names them."""
    settings = config(root)["repository"]
    return settings["url"].rstrip("/"), settings.get("branch", "main")


def claims(lesson: Lesson) -> Iterator[tuple[int, dict[str, Any]]]:
    """``(line, arguments)`` of each ``claim(...)`` in the lesson.

    Arguments that are literals have their value, others are ``...``; positional ones are named. An argument that is
    the literal ``None`` is left out.

    Raises:
        LessonError: id, statement, tier, source or equations is not a literal.
    """
    for cell in lesson.code:
        for call in cell.calls("claim"):
            line = cell.line + call.lineno - 1
            given = dict(zip(("id", "statement", "value"), call.args, strict=False))
            given |= {k.arg: k.value for k in call.keywords if k.arg}
            values = {name: _literal(node) for name, node in given.items()}
            for name in ("id", "statement", "tier", "source", "equations"):
                if values.get(name, "" if name == "equations" else ...) is ...:
                    raise lesson.error(line, f"claim(): {name} must be given as a literal, it is read without running")
            yield line, {name: v for name, v in values.items() if v is not None}


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ...
