"""One lesson as a notebook: for students, for nbgrader, and with its solutions for nbval."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_raw_cell

from tools.bibliography import Bibliography
from tools.inline import Index
from tools.lessons import Cell, Lesson, config, repository
from tools.myst import Translator

SOLUTION = re.compile(r"^([ \t]*)### BEGIN SOLUTION\n(.*?)^[ \t]*### END SOLUTION[ \t]*(\n|\Z)", re.S | re.M)
BOOK_ONLY = re.compile(r"(hide|remove)-.*|full-width|margin")
NOTE = "Names set like `this-value` in the text stand for numbers: the cell that measures them shows them when it runs."
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
Notebook = nbformat.NotebookNode
Points = Callable[[str], float]


def make_index(lessons: list[Lesson], root: Path) -> Index:
    """First pass: numbers and titles of everything that a lesson can refer to."""
    index = Index(Bibliography(root / "book/references.bib"), repository(root))
    index.formats = {"figure": "Fig. %s"} | (config(root)["sphinx"]["config"].get("numfig_format") or {})
    for page in sorted((root / "book").glob("**/*.md")):
        text = page.read_text(encoding="utf-8")
        if title := re.search(r"^# +(.+)$", text, flags=re.M):
            index.documents[page.stem] = title[1]
        for label, heading in re.findall(r"^\(([\w-]+)\)=\n+#+ +(.+)$", text, flags=re.M):
            index.titles[label] = heading
    for lesson in lessons:
        for _ in translated(lesson, Translator(lesson, index)):
            pass
    index.complete = True
    return index


def translated(lesson: Lesson, translator: Translator) -> Iterator[tuple[Cell, str]]:
    """Each cell with its text; a figure's caption is an extra Markdown cell after the code that draws it."""
    for cell in lesson.cells:
        yield cell, translator.cell(cell.source, cell.line) if cell.kind == "markdown" else cell.source
        if cell.figure:
            yield Cell("markdown", "", {}, cell.line), translator.caption(cell.figure, cell.line)


def header(lesson: Lesson, root: Path, with_note: bool) -> Iterator[Notebook]:
    """Badge and TeX macros, and the cell that installs the package where it is missing."""
    url, branch = repository(root)
    place = urlsplit(url)
    text = [NOTE] if with_note else []
    if place.netloc == "github.com":
        colab = f"https://colab.research.google.com/github{place.path}/blob/{branch}/notebooks/{lesson.path.stem}.ipynb"
        text[:0] = [f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})"]
    if defined := macros(root):
        text.append(f"${defined}$")
    yield new_markdown_cell("\n\n".join(text), id="header")
    install = f'import sys\n\nif "google.colab" in sys.modules:\n    %pip install -q "minidiff @ git+{url}@{branch}"'
    yield new_code_cell(install, id="install")


def macros(root: Path) -> str:
    """The book's TeX macros as ``\\newcommand`` lines."""
    settings = config(root)["sphinx"]["config"].get("mathjax3_config") or {}
    lines = []
    for name, value in settings.get("tex", {}).get("macros", {}).items():
        body, *arguments = [value] if isinstance(value, str) else value
        lines.append(rf"\newcommand{{\{name}}}" + "".join(f"[{x}]" for x in arguments) + f"{{{body}}}")
    return "\n".join(lines)


def student(lesson: Lesson, index: Index, root: Path, worth: Points) -> Notebook:
    """The notebook that a learner opens."""
    return _plain(lesson, index, root, worth, stubs=True)


def instructor(lesson: Lesson, index: Index, root: Path, worth: Points) -> Notebook:
    """The same with solutions: nbgrader's source."""
    return _plain(lesson, index, root, worth, stubs=False)


def reference(lesson: Lesson) -> Notebook:
    """The lesson as it is, with solutions: what nbval runs."""
    make = {"markdown": new_markdown_cell, "code": new_code_cell, "raw": new_raw_cell}
    ids = _ids()
    cells = [make[c.kind](c.source, metadata={"tags": c.tags}, id=ids(c, c.source)) for c in lesson.cells]
    return new_notebook(cells=cells, metadata=METADATA)


def _plain(lesson: Lesson, index: Index, root: Path, worth: Points, stubs: bool) -> Notebook:
    translator, ids, cells = Translator(lesson, index), _ids(), []
    for cell, text in translated(lesson, translator):
        if not text.strip():
            continue
        if cell.kind == "markdown":
            cells.append(new_markdown_cell(text, id=ids(cell, text)))
            continue
        if "exercise" in cell.tags:
            text = stub(lesson, cell) if stubs else text
        cells.append(new_code_cell(text, metadata=_metadata(lesson, cell, worth), id=ids(cell, text)))
    if translator.cited and not translator.listed:
        cells.append(new_markdown_cell("## References\n\n" + "\n".join(translator.references()), id="references"))
    return new_notebook(cells=[*header(lesson, root, translator.glued), *cells], metadata=METADATA)


def stub(lesson: Lesson, cell: Cell) -> str:
    """The answer cell without its solution.

    Inside a function the solution becomes ``raise NotAttempted``; a solution at the left margin, one that makes
    a plain value, becomes ``name = ...``, so that running all cells does not stop there.
    """
    name, count = cell.tag("name"), 0
    if not name or not cell.tag("ex"):
        raise lesson.error(cell.line, "an answer cell needs the tags ex:<id> and name:<object>")

    def replace(match: re.Match) -> str:
        nonlocal count
        count += 1
        indent = match[1]
        if indent:
            return f"{indent}# YOUR CODE HERE\n{indent}raise NotAttempted\n"
        if any(getattr(node, "name", None) == name for node in ast.parse(match[2]).body):
            raise lesson.error(cell.line, f"put the marks inside {name}, so that a learner sees its signature")
        return f"{name} = ...  # YOUR CODE HERE\n"

    text = SOLUTION.sub(replace, cell.source).rstrip("\n")
    if not count or "SOLUTION" in text:
        raise lesson.error(
            cell.line, "an answer cell needs ### BEGIN SOLUTION and ### END SOLUTION, on lines of their own"
        )
    return text


def _metadata(lesson: Lesson, cell: Cell, worth: Points) -> dict:
    metadata: dict = {}
    if tags := [t for t in cell.tags if not BOOK_ONLY.fullmatch(t)]:
        metadata["tags"] = tags
    if cell.alt:
        metadata["mystnb"] = {"image": {"alt": cell.alt}}
    ex_id, mark = cell.tag("ex"), {"locked": False, "schema_version": 3, "task": False}
    if "exercise" in cell.tags:
        metadata["nbgrader"] = mark | {"grade": False, "grade_id": ex_id, "solution": True}
    elif "check" in cell.tags:
        if not ex_id:
            raise lesson.error(cell.line, "a check cell needs the tag ex:<id>")
        marks = {"grade": True, "grade_id": f"{ex_id}-check", "locked": True, "points": worth(ex_id), "solution": False}
        metadata["nbgrader"] = mark | marks
    return metadata


def _ids() -> Callable[[Cell, str], str]:
    """Cell ids that survive edits elsewhere: the exercise, or the section and the place in it."""
    section, used, taken = "top", Counter(), {"header", "install", "references"}

    def make(cell: Cell, text: str) -> str:
        nonlocal section
        if cell.kind == "markdown" and (heading := re.search(r"^#{1,6} +(.+)$", text, flags=re.M)):
            section = re.sub(r"[^a-z0-9]+", "-", heading[1].lower()).strip("-")[:40].strip("-") or "section"
        base = section
        if ex_id := cell.tag("ex"):
            base = ex_id + ("-check" if "check" in cell.tags else "-answer" if "exercise" in cell.tags else "")
        used[base] += 1
        made = base if used[base] == 1 else f"{base}-{used[base]}"
        while made in taken:  # a heading "Step 2" and the second cell below "Step"
            made += "x"
        taken.add(made)
        return made

    return make


def text_of(notebook: Notebook) -> str:
    """The notebook as the bytes that are written."""
    nbformat.validate(notebook)
    return nbformat.writes(notebook, version=4) + "\n"
