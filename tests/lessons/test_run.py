"""A student notebook runs as it is first opened, without the book's packages; what of it does not run, nbval has run.

The lessons themselves are run by `tools/run_lessons.py`.
"""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from minidiff.course.grading.dialect import parse
from minidiff.course.grading.formats import Block
from tools import reach, render, run_lessons
from tools.lessons import ROOT, read

LESSONS = sorted((ROOT / "lessons").glob("*.md"))
STUDENT = sorted((ROOT / "notebooks").glob("*.ipynb"))
stem = lambda path: path.stem

BLOCKED = {"sphinx", "myst_nb", "myst_parser", "jupytext", "jupyter_book"}  # as on Colab: what renders the book
BLOCKER = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked by the test)", name=name)

sys.meta_path.insert(0, Blocker())
"""


def code_of(path: Path) -> tuple[list[nbformat.NotebookNode], list[nbformat.NotebookNode]]:
    """The code cells of a student notebook: those to run, and the others.

    Live cells are left to nbval: they talk to a front end, and nbclient's stand-in for one can wait for ever.
    """
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    blocks = [Block(cell.source, tuple(cell.metadata.get("tags", []))) for cell in cells]
    live = {i for i, block in enumerate(blocks) if "live" in block.tags}
    run = set(reach.to_run(blocks)) - live
    return [c for i, c in enumerate(cells) if i in run], [c for i, c in enumerate(cells) if i not in run]


def notebook_of(cells: list[nbformat.NotebookNode]) -> nbformat.NotebookNode:
    return nbformat.v4.new_notebook(cells=cells, metadata=render.METADATA)


def imported(cell: nbformat.NotebookNode) -> set[str]:
    """The packages that a cell imports, anywhere in it."""
    nodes = list(ast.walk(parse(cell.source)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {name.partition(".")[0] for name in names}


def run_as_student(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Execute all cells in ``folder``, where the book's packages cannot be imported; the outputs are added in place."""
    (folder / "sitecustomize.py").write_text(BLOCKER)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MINIDIFF_") or k == "MINIDIFF_DATA"}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    client = NotebookClient(notebook, timeout=180, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    return client.execute(env=environment)


def outputs(cell) -> str:
    """Everything a cell shows, as text and HTML."""
    shown = [
        o.get("text", "") + "".join(o.get("data", {}).get(k, "") for k in ("text/plain", "text/html"))
        for o in cell.outputs
    ]
    return "".join(shown)


def pictures_without_alt(cell) -> bool:
    """Whether a cell shows a picture that a reader who cannot see it learns nothing about."""
    drawn = any(mime.startswith("image/") for o in cell.outputs for mime in o.get("data", {}))
    named = cell.metadata.get("mystnb", {}).get("image", {}).get("alt")
    return (drawn and not named) or any('alt="' not in tag for tag in re.findall(r"<img[^>]*>", outputs(cell)))


@pytest.mark.parametrize("path", STUDENT, ids=stem)
def test_the_student_notebook_runs_to_its_end(path, tmp_path):
    """The cells that an unsolved answer can reach, and what they need."""
    ran = run_as_student(notebook_of(code_of(path)[0]), tmp_path)
    for cell in ran.cells:
        tags = cell.metadata.get("tags", [])
        if "check" in tags:
            assert "not attempted" in outputs(cell), f"{cell.id}: a check of an untouched stub says so"
        if "claim" in tags:
            assert "claim " in outputs(cell), f"{cell.id}: a claim shows its verdict"
        assert not pictures_without_alt(cell), f"{cell.id}: a picture has no alt text"


@pytest.mark.parametrize("path", STUDENT, ids=stem)
def test_every_other_cell_is_one_that_nbval_runs(path):
    """The same text as in the reference notebook, which is what the book reads and `run_lessons` runs."""
    reference = render.reference(read(ROOT / f"lessons/{path.stem}.md"))
    solved = [cell.source for cell in reference.cells if cell.cell_type == "code"]
    others = code_of(path)[1]
    assert others and {cell.source for cell in others} <= set(solved)
    assert not set().union(*map(imported, others)) & BLOCKED, "it would not run without the book's packages"
    tags = {tag for cell in others for tag in cell.metadata.get("tags", [])}
    assert not tags & {"exercise", "check"}


def test_nbval_runs_what_the_book_reads(tmp_path):
    read_by_book = {page.path: page.notebook for page in run_lessons.pages(run_lessons.Outputs(tmp_path))}
    for path in LESSONS:
        sources = [[c.source for c in notebook.cells if c.cell_type == "code"]
                   for notebook in (read_by_book[path], render.reference(read(path)))]  # fmt: skip
        assert sources[0] == sources[1], path


@pytest.mark.parametrize("path", LESSONS, ids=stem)
def test_what_a_lesson_shows_has_alt_text_and_verdicts(path):
    """In the notebook that nbval ran, which the book shows."""
    shown = run_lessons.shown(path)
    if shown is None:
        pytest.skip("the lesson has not been run since it was changed: python -m tools.run_lessons")
    for cell in (c for c in shown.cells if c.cell_type == "code"):
        tags = cell.metadata.get("tags", [])
        assert "claim" not in tags or "claim " in outputs(cell), f"a claim shows its verdict: {cell.source}"
        assert "live" in tags or not pictures_without_alt(cell), f"a picture has no alt text: {cell.source}"


SMALL = ["import importlib.util", 'assert importlib.util.find_spec("nbformat")', "import {}"]


@pytest.mark.parametrize(
    "package, blocked", [("sphinx", True), ("myst_nb.ext", True), ("jupytext", True), ("json", False)]
)
def test_the_books_packages_are_out_of_reach(package, blocked, tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("\n".join(SMALL).format(package))])
    if not blocked:
        run_as_student(notebook, tmp_path)
        return
    with pytest.raises(Exception, match="blocked by the test"):
        run_as_student(notebook, tmp_path)


def test_pictures_without_alt_are_seen():
    picture = nbformat.v4.new_output("display_data", data={"image/png": "", "text/plain": "<Figure>"})
    web = nbformat.v4.new_output("display_data", data={"text/html": '<img src="x">'})
    good = nbformat.v4.new_output("display_data", data={"text/html": '<img alt="A line" src="x">'})
    alt = {"mystnb": {"image": {"alt": "A line"}}}
    cases = [(picture, {}, True), (picture, alt, False), (web, alt, True), (good, {}, False)]
    for output, metadata, expected in cases:
        assert pictures_without_alt(nbformat.v4.new_code_cell(outputs=[output], metadata=metadata)) is expected
