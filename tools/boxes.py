"""Algorithm boxes of the lessons: numbered in order, and named as the function that is the algorithm.

A box is an admonition of the class `algorithm` whose title is ``Algorithm N.k: `name` ...``. Its text links what the
name means, or several things that together are the algorithm; Sphinx looks whether they exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tools.lessons import ROOT, Lesson, read_all

BOX = re.compile(r"^:::\{admonition\} *(?P<title>.*)\n(?P<body>[\s\S]*?)^:::$", re.M)
TITLE = re.compile(r"Algorithm (?P<lesson>\d+)\.(?P<number>\d+): `(?P<name>\w+)`.*")
LINK = re.compile(r"\{py:(?:func|meth|class)\}`~?([\w.]+)`")


def problems(root: Path = ROOT) -> list[str]:
    """What is wrong with the boxes of the lessons below ``root``."""
    return [found for lesson in read_all(root) for found in boxes(lesson)]


def boxes(lesson: Lesson) -> Iterator[str]:
    """Boxes without the class, out of order, or without a link to what they are named after."""
    wanted = 1
    for cell in lesson.cells:
        for match in BOX.finditer(cell.source) if cell.kind == "markdown" else ():
            here = f"{lesson.path}:{cell.line + cell.source.count(chr(10), 0, match.start())}"
            title, body = TITLE.fullmatch(match["title"].strip()), match["body"]
            if (":class: algorithm" in body) != bool(title):
                yield f"{here}: the title 'Algorithm N.k: `name`' and the class `algorithm` go together"
            if not title:
                continue
            if (int(title["lesson"]), int(title["number"])) != (lesson.number, wanted):
                yield f"{here}: this is algorithm {lesson.number}.{wanted}"
            linked = LINK.findall(body)
            if not linked:
                yield f"{here}: the box links nothing of the package"
            elif title["name"] != "loss" and title["name"] not in {link.rpartition(".")[2] for link in linked}:
                yield f"{here}: the box is named {title['name']!r} and links {linked}"
            wanted += 1
