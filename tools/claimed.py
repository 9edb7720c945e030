"""Gates over the words and criteria of claims; each returns its findings as lines that begin with file and line."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tools.bibliography import Bibliography
from tools.criteria import CRITERIA
from tools.lessons import ROOT, Lesson, claims

TOLERANCE = 1e-6
ORDER = re.compile(r"\b(orders?|slopes?|fall)\b")  # what measures an order of convergence is called
WIDEST = 0.3  # around an order of convergence, which is a multiple of one half
YEAR = re.compile(r"\b((?:19|20)\d\d)[a-z]?\b")
NO_PAPER = re.compile(
    r"this (lesson|course)|lecture|lesson \d\d|Bayes' rule|Jensen's inequality|law of total variance"
    r"|Gaussian conditioning|composition of Gaussians|minidiff's convention|the grammar of the captions"
    r"|(GLIDE's )?released code|open_clip|often said of|the tempting conclusion|reports of"
)  # what a claim may come from that has no year
KEYS = re.compile(r"\{cite(?::\w+)?\}`([^`]+)`")


def criteria(lesson: Lesson) -> Iterator[str]:
    """Exact and production claims have a tolerance of 1e-6, measure an order of convergence, or say why not."""
    for line, given in claims(lesson):
        name = next((name for name in ("below", "above", "between") if name in given), None)
        if given["tier"] == "small" or name is None:
            continue
        text = _source(lesson, line, given["id"])
        written = f"{name} {text[name]}"
        if not (_tight(name, given[name]) or (ORDER.search(text["value"]) and _order(name, given[name]))):
            accepted, _ = CRITERIA.get(given["id"], ("", ""))
            if written != accepted:
                known = f"{accepted!r} there" if accepted else "not there"
                yield (
                    f"{lesson.path}:{line}: claim {given['id']!r} accepts {written!r}: a tolerance is at most "
                    f"{TOLERANCE}, or has its reason in tools/criteria.py ({known})"
                )


def unused_criteria(lessons: list[Lesson]) -> Iterator[str]:
    """Reasons for criteria of claims that no lesson makes."""
    made = {given["id"] for lesson in lessons for _, given in claims(lesson)}
    for id in sorted(CRITERIA.keys() - made):
        yield f"tools/criteria.py:1: no lesson makes the claim {id!r}"


def _source(lesson: Lesson, line: int, id: str) -> dict[str, str]:
    """Argument -> its source, of the claim that begins at a line."""
    for cell in lesson.code:
        for call in cell.calls("claim"):
            if cell.line + call.lineno - 1 == line:
                given = dict(zip(("id", "statement", "value"), call.args, strict=False))
                return {n: ast.unparse(v) for n, v in (given | {k.arg: k.value for k in call.keywords}).items()}
    raise ValueError(f"{lesson.path}:{line}: no claim {id!r}")


def _tight(name: str, ends) -> bool:
    """Whether a criterion is zero up to the tolerance, or a sign."""
    if name == "between":
        return isinstance(ends, tuple) and all(abs(end) <= TOLERANCE for end in ends)
    return isinstance(ends, int | float) and (ends == 0 or 0 < abs(ends) <= TOLERANCE)


def _order(name: str, ends) -> bool:
    """Whether a criterion is a narrow range around a multiple of one half that is not zero, or a small distance."""
    if name == "below":
        return isinstance(ends, int | float) and ends <= WIDEST / 2
    if name != "between" or not isinstance(ends, tuple):
        return False
    middle, half = sum(ends) / 2, (ends[1] - ends[0]) / 2
    return abs(middle) > 0.4 and abs(2 * middle - round(2 * middle)) < 1e-9 and half <= WIDEST + 1e-9


def sources(lesson: Lesson, root: Path = ROOT) -> Iterator[str]:
    """The papers that claims name by author and year, and those that the text cites, are in the bibliography."""
    books = Bibliography(root / "book/references.bib")
    known = {" ".join(books.author_year(key)) for key in books}
    for line, given in claims(lesson):
        for part in given["source"].split(";"):
            problem = _unknown(part, known)
            if problem:
                yield f"{lesson.path}:{line}: claim {given['id']!r}: {problem}"
    for cell in lesson.cells:
        for match in KEYS.finditer(cell.source) if cell.kind == "markdown" else ():
            line = cell.line + cell.source.count("\n", 0, match.start())
            for key in re.split(r"[,;]\s*", match[1]):
                if key not in books:
                    yield f"{lesson.path}:{line}: {key!r} is not in book/references.bib"


def _unknown(part: str, known: set[str]) -> str:
    """What is wrong with one source of a claim; nothing where all is well."""
    years = list(YEAR.finditer(part))
    if not years and not NO_PAPER.search(part):
        return f"the source {part.strip()!r} is neither a paper nor one of the others that tools/claimed.py lists"
    for year in years:
        cited = part[: year.start()] + year[1]
        if not any(cited.endswith(name) for name in known):
            return f"the source {part.strip()!r} is not in book/references.bib under these authors and this year"
    return ""
