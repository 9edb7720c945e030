"""Every lesson runs: with its solutions under nbval, and as a student first opens it, without the book's packages."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tools import notebooks, render
from tools.lessons import ROOT, read

LESSONS = sorted((ROOT / "lessons").glob("*.md"))
STUDENT = sorted((ROOT / "notebooks").glob("*.ipynb"))
stem = lambda path: path.stem

# As on Colab: the packages that render the book are not there.
BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"sphinx", "myst_nb", "myst_parser", "jupytext", "jupyter_book"}:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked by the test)", name=name)

sys.meta_path.insert(0, Blocker())
"""


def run_as_student(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Execute all cells in ``folder``, where the book's packages cannot be imported; the outputs are added in place.

    Live cells are left to nbval: they talk to a front end, and nbclient's stand-in for one can wait for ever.
    """
    notebook.cells = [cell for cell in notebook.cells if "live" not in cell.metadata.get("tags", [])]
    (folder / "sitecustomize.py").write_text(BLOCKER)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MINIDIFF_") or k == "MINIDIFF_DATA"}
    environment |= {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
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
    ran = run_as_student(nbformat.read(path, as_version=4), tmp_path)
    code = [c for c in ran.cells if c.cell_type == "code"]
    for cell in code:
        tags = cell.metadata.get("tags", [])
        if "check" in tags:
            assert "not attempted" in outputs(cell), f"{cell.id}: a check of an untouched stub says so"
        if "claim" in tags:
            assert "claim " in outputs(cell), f"{cell.id}: a claim shows its verdict"
        assert "live" in tags or not pictures_without_alt(cell), f"{cell.id}: a picture has no alt text"


@pytest.mark.parametrize("path", LESSONS, ids=stem)
def test_the_reference_notebook_passes_nbval(path, tmp_path):
    notebook = tmp_path / f"{path.stem}.ipynb"
    notebook.write_text(render.text_of(render.reference(read(path))), encoding="utf-8")
    environment = os.environ | {"MINIDIFF_STRICT": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("MPLBACKEND", None)
    done = subprocess.run(
        notebooks.nbval_command(notebook), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:]


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
