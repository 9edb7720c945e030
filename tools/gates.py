"""Gates over the lessons' sources; each returns its findings as lines that begin with file and line."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from tools.lessons import ROOT, Cell, Lesson, appendices, claims, config, read_all
from tools.render import make_index, stub

EQUATION = re.compile(r"(?<![\w-])eq-[a-z0-9]+(?:-[a-z0-9]+)*")
DRAWS = {"show", "subplots", "figure", "subplot_mosaic", "imshow", "plot"}


def problems(root: Path = ROOT) -> list[str]:
    """Everything the gates find in the lessons below ``root``; empty when all is well."""
    lessons, beside = read_all(root), appendices(root)
    found = list(coverage(lessons, root))
    for page in [*lessons, *beside]:
        found += [*structure(page), *alt_text(page)]
    found += [*exercises(lessons), *unique_claims([*lessons, *beside]), *chapter_numbers(lessons, root)]
    return found


def coverage(lessons: list[Lesson], root: Path = ROOT) -> Iterator[str]:
    """Every labelled equation is claimed or listed as a definition, and every mention of a label names an equation."""
    index = make_index(lessons, root)
    equations = {label for label, (kind, _) in index.numbers.items() if kind == "equation"}
    mentioned: dict[str, str] = {}
    defined: dict[str, str] = {}
    for lesson in lessons:
        defined |= {label: f"{lesson.path}:1" for label in lesson.definitions}
        for line, given in claims(lesson):
            labels = given.get("equations", [])
            mentioned |= {x: f"{lesson.path}:{line}" for x in ([labels] if isinstance(labels, str) else labels)}
    for label in sorted(equations - mentioned.keys() - defined.keys()):
        yield f"{index.places[label]}: equation {label!r} is neither claimed nor listed in minidiff: definitions"
    for label, place in {**defined, **mentioned}.items():
        if label not in equations:
            yield f"{place}: no equation has the label {label!r}"
    for label in sorted(mentioned.keys() & defined.keys()):
        yield f"{defined[label]}: {label!r} is listed as a definition although {mentioned[label]} claims it"
    for place, label in labels_in_code(root):
        if label not in equations:
            yield f"{place}: no lesson has an equation {label!r}"


def labels_in_code(root: Path = ROOT) -> Iterator[tuple[str, str]]:
    """File and line, and label, of every equation that the package mentions, mostly in a docstring."""
    for path in sorted((root / "minidiff").rglob("*.py")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for label in EQUATION.findall(line):
                yield f"{path}:{number}", label


def structure(lesson: Lesson) -> Iterator[str]:
    """begin() names the file, finish() is there, claims stand in cells that say so, exact ones have a control."""
    begun = [call for cell in lesson.code for call in cell.calls("begin")]
    if [ast.unparse(a) for call in begun for a in call.args] != [repr(lesson.slug)]:
        yield f"{lesson.path}:1: the lesson calls begin({lesson.slug!r}) exactly once"
    if not any(True for cell in lesson.code for _ in cell.calls("finish")):
        yield f"{lesson.path}:1: the lesson never calls finish()"
    for cell in lesson.code:
        if ("claim" in cell.tags) != any(True for _ in cell.calls("claim")):
            yield f"{lesson.path}:{cell.line}: the tag `claim` goes with a call of claim(), and the call with the tag"
    for line, given in claims(lesson):
        if given["tier"] == "exact" and not {"negative", "no_negative"} & given.keys():
            yield f"{lesson.path}:{line}: exact claim {given['id']!r} needs negative=, or no_negative='why'"


def unique_claims(lessons: list[Lesson]) -> Iterator[str]:
    """No two claims of the course have one id."""
    places: dict[str, str] = {}
    for lesson in lessons:
        for line, given in claims(lesson):
            here = f"{lesson.path}:{line}"
            if places.setdefault(given["id"], here) != here:
                yield f"{here}: claim {given['id']!r} is already made at {places[given['id']]}"


def exercises(lessons: list[Lesson]) -> Iterator[str]:
    """Each exercise has its card, one answer cell with a stub, and one check cell; ids are unique in the course."""
    for lesson in lessons:
        cards = [label for label in _labels(lesson) if label.startswith("ex-")]
        answers, checks = ([c for c in lesson.code if tag in c.tags] for tag in ("exercise", "check"))
        for cell in answers:
            stub(lesson, cell)
        for kind, cells in (("answer", answers), ("check", checks)):
            ids = [c.tag("ex") for c in cells]
            for ex_id in sorted(set(cards) | {i or "?" for i in ids}):
                if ids.count(ex_id) != 1 or ex_id not in cards:
                    cells_found = ids.count(ex_id)
                    yield (
                        f"{lesson.path}:1: exercise {ex_id!r} has {cells_found} {kind} cells and "
                        f"{cards.count(ex_id)} cards; one of each is needed"
                    )


def _labels(lesson: Lesson) -> list[str]:
    lines = [x for c in lesson.cells if c.kind == "markdown" for x in c.source.splitlines()]
    return [
        after.partition(":label:")[2].strip()
        for line, after in itertools.pairwise(lines)
        if "{exercise-start}" in line and ":label:" in after
    ]


def alt_text(lesson: Lesson) -> Iterator[str]:
    """Every cell that draws has a figure's name, caption and alt text; every frames() has alt=."""
    for cell in lesson.code:
        here = f"{lesson.path}:{cell.line}"
        if cell.figure is not None:
            if not cell.alt:
                yield f"{here}: the figure has no alt text (mystnb: image: alt)"
            if not (cell.figure.get("name") and cell.figure.get("caption")):
                yield f"{here}: the figure needs a name and a caption (mystnb: figure)"
            if _shows_twice(cell):
                yield f"{here}: end the last line with a semicolon; its value would be a second output of this figure"
        elif "live" not in cell.tags and _draws(cell):
            yield f"{here}: the cell draws, so it needs mystnb: figure (name, caption) and image: alt"
        for call in cell.calls("frames"):
            if "alt" not in {k.arg for k in call.keywords}:
                yield f"{here}: frames() needs alt="


def _draws(cell: Cell) -> bool:
    """Whether matplotlib is called at the cell's top level, or the cell ends in a figure: functions only define."""
    body = [n for n in cell.tree.body if not isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    calls = (n for top in body for n in _outside_functions(top) if isinstance(n, ast.Call))
    if any(isinstance(c.func, ast.Attribute) and c.func.attr in DRAWS and _root(c.func) == "plt" for c in calls):
        return True
    last = body[-1] if body else None
    return isinstance(last, ast.Expr) and isinstance(last.value, ast.Name) and last.value.id in ("fig", "figure")


def _shows_twice(cell: Cell) -> bool:
    """Whether the cell ends in a method call on axes, whose value the notebook shows beside the figure."""
    last = cell.tree.body[-1] if cell.tree.body else None
    method = (
        isinstance(last, ast.Expr) and isinstance(last.value, ast.Call) and isinstance(last.value.func, ast.Attribute)
    )
    return method and _root(last.value.func) in ("ax", "axes") and not cell.source.rstrip().endswith(";")


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if not isinstance(node, (ast.FunctionDef, ast.Lambda)):
        for child in ast.iter_child_nodes(node):
            yield from _outside_functions(child)


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def chapter_numbers(lessons: list[Lesson], root: Path = ROOT) -> Iterator[str]:
    """The book numbers its chapters as the files are numbered, else equation numbers differ in book and notebook.

    Build pages stand in parts without numbers.
    """
    import yaml

    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    numbered = [c["file"] for part in toc["parts"] if part.get("numbered") for c in part["chapters"]]
    others = [c["file"] for part in toc["parts"] if not part.get("numbered") for c in part["chapters"]]
    pages = {f"lessons/{lesson.path.stem}": lesson.number for lesson in lessons}
    wanted = [page for page, number in pages.items() if number]
    if numbered != wanted or [pages[page] for page in wanted] != list(range(1, len(wanted) + 1)):
        yield f"{root / '_toc.yml'}:1: the numbered chapters must be {wanted}, without a gap; they are {numbered}"
    builds = [page for page, number in pages.items() if not number]
    if [page for page in others if page.startswith("lessons/")] != builds:
        yield f"{root / '_toc.yml'}:1: {builds} must be chapters of parts without numbers, in this order"
    if not config(root)["sphinx"]["config"].get("numfig"):
        yield f"{root / '_config.yml'}:1: numfig must be true"
