"""One alphabet: what each letter of a lesson means, and that no letter means two things.

A numbered lesson states its letters in tables whose head is ``| letter | meaning |``; those that all lessons share
stand in such a table of `book/notation.md`. A row may hold a family, as x_0 and x_t: indices, hats, bars, dots and
primes make no new letter, fonts do. Every letter of a displayed equation needs a row, and no letter has two. Not looked
at are letters of the text alone, the d of a derivative, and whether a letter is used as its row says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tools.lessons import ROOT, Lesson, read_all

WAITING: set[str] = set()  # slugs of lessons whose letters are still told in a paragraph
COMMON = "book/notation.md"
HEAD = re.compile(r"^ *\| *letter *\| *meaning *\| *$", re.M)
GREEK = set(
    re.findall(
        r"\w+",
        "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi pi rho sigma varsigma varrho tau phi "
        "varphi chi psi omega ell Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega",
    )
)
FONTS = "mathbb|mathbf|mathcal"
GROUP = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
WORDS = re.compile(rf"\\(?:text|operatorname|mathrm|begin|end|tag|widehat)\*?{GROUP}|\\(?:Normal|E|R|KL)\b")
INDEX = re.compile(rf"_\s*(?:\\(?:text|mathrm)\s*{GROUP}|{GROUP}|\\[A-Za-z]+|[^\s\\{{])")
DERIVATIVE = re.compile(
    r"(?<![\\A-Za-z_])d(?=\s*(?:[A-Za-z]|\\(?!sqrt|big|Big|cdot|left|right)[a-z]))|(?<=frac\{)d(?=[\s}])"
)
LETTER = re.compile(rf"\\(?P<font>{FONTS})\s*\{{?\s*(?P<fonted>\w+)\s*\}}?|\\(?P<name>[A-Za-z]+)|(?P<plain>[A-Za-z])")
INLINE = re.compile(r"(?<![\\$])\$([^$\n]+)\$(?!\$)")
DISPLAY = re.compile(r"\$\$(.*?)\$\$", re.S)


def letters(tex: str) -> set[str]:
    """The letters of a formula, without their indices and decorations: ``x``, ``\\alpha``, ``\\mathcal{L}``."""
    for pattern in (DERIVATIVE, INDEX, WORDS):  # while its index stands there, d_c is no derivative
        tex = pattern.sub(" ", tex)
    found = set()
    for match in LETTER.finditer(tex):
        if match["font"]:
            found.add(f"\\{match['font']}{{{match['fonted']}}}")
        elif match["plain"] or match["name"] in GREEK:
            found.add(match[0])
    return found


def rows(text: str) -> Iterator[tuple[int, set[str]]]:
    """Line, counted from 0, and letters of every row of a text's tables of letters."""
    lines = text.split("\n")
    for head in HEAD.finditer(text):
        first = text.count("\n", 0, head.start()) + 2
        for number, line in enumerate(lines[first:], first):
            if not line.lstrip().startswith("|"):
                break
            yield number, set().union(*map(letters, INLINE.findall(line.split("|")[1])))


def problems(root: Path = ROOT) -> list[str]:
    """Everything that is wrong with the alphabets of the lessons below ``root``."""
    text = (root / COMMON).read_text(encoding="utf-8")
    common = [(f"{root / COMMON}:{line + 1}", found) for line, found in rows(text)]
    wrong = list(_twice(common))
    for lesson in read_all(root):
        wrong += alphabet(lesson, common)
    return wrong


def alphabet(lesson: Lesson, common: list[tuple[str, set[str]]]) -> Iterator[str]:
    """Missing, double and idle letters of one lesson, given the rows that all lessons share."""
    told = [c for c in lesson.cells if c.kind == "markdown"]
    own = [(f"{lesson.path}:{cell.line + line}", found) for cell in told for line, found in rows(cell.source)]
    if lesson.slug in WAITING:
        if own:
            yield f"{own[0][0]}: {lesson.slug!r} has a table of letters now; take it out of WAITING in tools/letters.py"
        return
    if not own and lesson.number is not None:
        yield f"{lesson.path}:1: the lesson needs a table of its letters, with the head | letter | meaning |"
        return
    yield from _twice(common + own)
    known = set().union(*(found for _, found in common + own))
    used: set[str] = set()
    for cell in told:
        for match in DISPLAY.finditer(cell.source):
            line = cell.line + cell.source.count("\n", 0, match.start())
            for letter in sorted(letters(match[1]) - known):
                yield f"{lesson.path}:{line}: {letter} stands in an equation and not in the table of letters"
                known.add(letter)
        used |= _anywhere(cell.source)
    for place, found in own:
        for letter in sorted(found - used):
            yield f"{place}: {letter} has a row and is not used"


def _anywhere(text: str) -> set[str]:
    """The letters of all formulas of a text, as indices too; its tables of letters left out."""
    own = {line for line, _ in rows(text)}
    kept = "\n".join(line for i, line in enumerate(text.split("\n")) if i not in own)
    formulas = [*DISPLAY.findall(kept), *INLINE.findall(DISPLAY.sub(" ", kept))]
    return set().union(*(letters(formula.replace("_", ",")) for formula in formulas))


def _twice(table: list[tuple[str, set[str]]]) -> Iterator[str]:
    """Letters that have two rows."""
    places: dict[str, str] = {}
    for place, found in table:
        for letter in sorted(found):
            if letter in places:
                yield f"{place}: {letter} has a meaning already, at {places[letter]}"
            places.setdefault(letter, place)


if __name__ == "__main__":
    print("\n".join(problems()) or "every letter has one meaning")
