"""The generated notebooks: what students get, what is refused, when they are stale."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tools import gates, notebooks
from tools.lessons import LessonError, read

FIXTURE = Path(__file__).parent / "fixtures/course"
HEADER = "---\njupytext:\n  text_representation:\n    extension: .md\n    format_name: myst\n---\n\n"
CELL = '```{{code-cell}} ipython3\n:tags: [exercise, "ex:ex-a", "name:f"]\n\n{}\n```\n'


def two_points(ex_id: str) -> float:
    return 2.0


@pytest.fixture(scope="module")
def made():
    files = notebooks.generate(FIXTURE, two_points)
    return {path.relative_to(FIXTURE).as_posix(): nbformat.reads(text, as_version=4) for path, text in files.items()}


@pytest.fixture(scope="module")
def first(made):
    """The student notebook of the first lesson."""
    return made["notebooks/01_first.ipynb"]


@pytest.fixture
def course(tmp_path):
    """A copy of the fixture course to change."""
    return Path(shutil.copytree(FIXTURE, tmp_path / "course"))


def add(course: Path, text: str) -> int:
    """Append to the second lesson; returns the line where the addition begins."""
    path = course / "lessons/02_second.md"
    old = path.read_text()
    path.write_text(old + "\n" + text + "\n")
    return old.count("\n") + 2


def markdown(notebook) -> str:
    return "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")


@pytest.mark.parametrize(
    "text",
    [
        "\\vect{x}_t = \\alpha \\vect{x}_0 + \\sigma\\vect{\\epsilon},\\quad \\vect{x}\\in\\R^d\n\\tag{1.1}\n$$",
        "costs \\$5, as code `{eq}` stays code",
        "$$\n\\alpha^2 + \\sigma^2 = 1\n\\tag{1.2}\n$$",
        "   $$\n   \\begin{aligned}\n   a &= b \\\\\n     &= c\n   \\end{aligned}\n   \\tag{1.3}\n   $$\n\n   which",
        "\\begin{cases} 0 & a \\\\ 1 & b \\end{cases}\n\\tag{1.4}",
        "> **Note**\n>\n> A box with maths\n>\n> $$u = v \\tag{1.5}$$\n>\n> and `diffuse()`,",
        "<details>\n<summary><b>Hint <code>one</code></b></summary>\n\nLook at (1.1).",
        "x = 1  # {eq}`not-a-role`",
        "> **With a GPU**\n>\n> Train it: $T = 1000$.",
        "> **Theorem 1.1 (Composition)**\n>\n> It holds.",
        "> By Theorem 1.1.",
        "![A square](https://github.com/example-org/minidiff/raw/main/book/notation.md)\n\n**Figure 1.1.** The logo.",
        "**Table 1.1.** Spellings",
        "| a | b |\n|---|---|\n| (1.5) | 2 |",
        "**Figure 1.2.** A line, see (1.1).",
        "The slope is `slope-is-one`.",
        "### Exercise 1.1: Marginal",
        "After Exercise 1.1.",
        "Read *The second lesson*, *Notation* and the start (Ho et al., 2020; Robbins, 1956),\nor Robbins (1956).",
        "See Figure 1.2, panel 1.1, Table 1.1 and\n(2.1) of the next lesson.",
        "https://github.com/example-org/minidiff/blob/main/notebooks/02_second.ipynb",
        "Ho et al. (2020). *Denoising Diffusion Probabilistic Models*. NeurIPS. https://arxiv.org/abs/2006.11239.",
        "\\newcommand{\\E}{\\mathbb{E}}\n\\newcommand{\\R}{\\mathbb{R}}\n\\newcommand{\\vect}[1]{\\boldsymbol{#1}}",
        "colab.research.google.com/github/example-org/minidiff/blob/main/notebooks/01_first.ipynb",
    ],
)
def test_myst_becomes_plain_markdown(first, text):
    assert text in markdown(first)


def test_numbers_agree_across_lessons(made):
    second = markdown(made["notebooks/02_second.ipynb"])
    assert "From (1.1) follows" in second and "\\tag{2.1}" in second


def test_no_myst_and_no_comment_is_left(first):
    text = re.sub(r"```.*?```|`[^`]*`", "CODE", markdown(first), flags=re.S)
    assert not re.search(r"\{[a-z:]+\}CODE|^:::|^\([\w-]+\)=|\$\$ \(|nobody sees", text, flags=re.M)


def test_solutions_become_stubs(first):
    code = {c.id: c.source for c in first.cells if c.cell_type == "code"}
    assert code["ex-first-marginal-answer"].endswith('"""The mean."""\n    # YOUR CODE HERE\n    raise NotAttempted')
    assert code["ex-first-number-answer"] == "answer = ...  # YOUR CODE HERE"
    assert "SOLUTION" not in str(first) and "return level * x0" not in str(first)
    assert "git+https://github.com/example-org/minidiff@main" in code["install"]


def test_solutions_stay_in_the_reference_and_in_nbgraders_source(made):
    for name in ("build/reference/01_first.ipynb", "build/nbgrader/source/01_first/01_first.ipynb"):
        assert "### BEGIN SOLUTION\n    return level * x0" in "".join(c.source for c in made[name].cells)


@pytest.mark.parametrize("name", ["notebooks/01_first.ipynb", "build/nbgrader/source/01_first/01_first.ipynb"])
def test_nbgrader_finds_its_marks(made, name):
    marks = {c.id: c.metadata.nbgrader for c in made[name].cells if "nbgrader" in c.metadata}
    answer, check = marks["ex-first-marginal-answer"], marks["ex-first-marginal-check"]
    assert answer.solution and not answer.grade and not answer.locked and answer.grade_id == "ex-first-marginal"
    assert check.grade and check.locked and check.points == 2 and check.grade_id == "ex-first-marginal-check"


def test_figures_keep_their_alt_text(first):
    (figure,) = [c for c in first.cells if "mystnb" in c.metadata]
    assert figure.metadata.mystnb.image.alt == "A straight line" and "tags" not in figure.metadata


def test_notebooks_have_no_outputs(made):
    cells = [c for notebook in made.values() for c in notebook.cells if c.cell_type == "code"]
    assert cells and all(not c.outputs and c.execution_count is None for c in cells)


def test_an_edit_changes_only_the_ids_of_its_section(course, made):
    path = course / "lessons/02_second.md"
    path.write_text(path.read_text().replace("```{code-cell}", "A new section:\n\n## New\n\n```{code-cell}", 1))
    new = notebooks.generate(course, two_points)
    for name in ("notebooks/01_first.ipynb", "build/reference/01_first.ipynb"):
        assert nbformat.reads(new[course / name], 4).cells == made[name].cells
    path.write_text(path.read_text() + "\n## Step 2\n\n## Step\n\n```{code-cell}\n1\n```\n\n```{code-cell}\n2\n```\n")
    notebooks.generate(course, two_points)  # colliding names of sections still make unique ids


@pytest.mark.parametrize(
    "text, message",
    [
        ("```{mermaid}\nx\n```", "directive {mermaid}"),
        ("{wiki}`x`", "role {wiki}"),
        ("As {eq}`eq-none` says", "eq-none"),
        ("As {numref}`fig-none` shows", "fig-none"),
        ("As {ref}`sec-none`", "sec-none"),
        ("As {doc}`none`", "none"),
        ("{cite:p}`nobody1999`", "nobody1999"),
        ("A {{ substitution }}", "substitution"),
        ("A footnote[^1]", "\\[\\^1\\]"),
        ("[span]{.red}", "red"),
        ("[gone](../book/gone.md)", "gone.md"),
        ("![](../book/notation.md)", "alt text"),
        ("```{figure} ../book/notation.md\nCaption\n```", "alt text"),
        ("```{note}\nopen", "never closed"),
        ("$$\na\n\nb\n$$", "blank line"),
        ("\\begin{align}\na\n\\end{align}", "aligned"),
        ("$$\n\\begin{equation}a\\end{equation}\n$$", "aligned"),
        ("$$ a $$ (eq-model)", "already used at .*01_first.md:3"),
        ("$$ a $$ (eq:model)", "hyphens"),
        ("```{admonition} a `tick`\nx\n```", "backtick"),
        (CELL.format("def f(x):\n    return x"), "BEGIN SOLUTION"),
        (CELL.format("### BEGIN SOLUTION\ndef f(x):\n    return x\n### END SOLUTION"), "inside f"),
        ("```{code-cell} ipython3\n:tags: [check]\n\n1\n```", "ex:<id>"),
    ],
)
def test_what_cannot_be_translated_is_refused_with_file_and_line(course, text, message):
    line = add(course, text)
    with pytest.raises(LessonError, match=message) as caught:
        notebooks.generate(course, two_points)
    where = re.match(r".*02_second\.md:(\d+): ", str(caught.value))
    assert where and line <= int(where[1]) <= line + 5


def test_the_line_of_an_error_is_exact(course):
    line = add(course, "First\nline, then\n{wiki}`x`")
    with pytest.raises(LessonError, match=f"02_second.md:{line + 2}: "):
        notebooks.generate(course, two_points)


def test_code_must_be_python(course):
    line = add(course, "```{code-cell} ipython3\nx = 1\ny = (\n```")
    with pytest.raises(LessonError, match=f"02_second.md:{line + 2}: not Python"):
        notebooks.generate(course, two_points)


def test_lesson_files_are_named_and_numbered(course):
    shutil.copy(course / "lessons/01_first.md", course / "lessons/01_again.md")
    with pytest.raises(LessonError, match="number"):
        notebooks.generate(course, two_points)
    with pytest.raises(LessonError, match="NN_slug"):
        read(course / "lessons/first.md")


def test_pages_without_a_number_count_on_from_each_other(course):
    """As the book does, which numbers the figures of all of them in one row."""
    marks = "mystnb:\n  figure: {name: fig-%s, caption: Text.}\n  image: {alt: A line}"
    figure = f"```{{code-cell}} ipython3\n---\n{marks}\n---\n1;\n```"
    for slug in ("one", "two"):
        (course / f"lessons/build_{slug}.md").write_text(f"{HEADER}# {slug}\n\n{figure % slug}\n")
    files = {p.stem: t for p, t in notebooks.generate(course, two_points).items() if p.parent.name == "notebooks"}
    assert '"# one' in files["build_one"] and re.findall(r"Fig\S* (\d+)", files["build_one"]) == ["1"]
    assert re.findall(r"Fig\S* (\d+)", files["build_two"]) == ["2"]


def test_writing_is_idempotent_and_checked(course):
    assert len(notebooks.write(course, two_points)) == 6
    assert notebooks.write(course, two_points) == [] and notebooks.stale(course, two_points) == []
    (course / "notebooks/01_first.ipynb").unlink()
    shutil.copy(course / "notebooks/02_second.ipynb", course / "notebooks/03_gone.ipynb")
    path = course / "notebooks/02_second.ipynb"
    path.write_text(path.read_text().replace("second lesson", "2nd lesson"))
    assert notebooks.stale(course, two_points) == [
        "missing: notebooks/01_first.ipynb",
        "no lesson makes it: notebooks/03_gone.ipynb",
        "stale: notebooks/02_second.ipynb",
    ]
    notebooks.write(course, two_points)
    assert notebooks.stale(course, two_points) == []


def test_the_gates_are_content_with_the_fixture():
    assert gates.problems(FIXTURE) == []


def test_a_kernel_of_another_python_is_not_asked(tmp_path, monkeypatch):
    """Jupyter finds a "python3" on its path before that of the environment."""
    (tmp_path / "kernels/python3").mkdir(parents=True)
    foreign = {"argv": ["/nowhere/python", "{connection_file}"], "display_name": "Foreign", "language": "python"}
    (tmp_path / "kernels/python3/kernel.json").write_text(json.dumps(foreign))
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cell = nbformat.v4.new_code_cell(f"import sys\nassert sys.executable == {sys.executable!r}")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=metadata), tmp_path / "x.ipynb")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    result = subprocess.run(notebooks.nbval_command(tmp_path / "x.ipynb"), capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "1 passed" in result.stdout, result.stdout
