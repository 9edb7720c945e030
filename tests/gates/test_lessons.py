"""The gates over the lessons, and for each gate a fault that it finds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tools import gates, notebooks
from tools.lessons import LessonError

FIXTURE = Path(__file__).parents[1] / "tools/fixtures/course"
CLAIM = '```{{code-cell}} ipython3\n:tags: [claim]\n\nclaim("{}", "It holds.", 1.0, above=0.0, {} source="R")\n```'
FIGURE = "```{{code-cell}} ipython3\n---\nmystnb: {{figure: {{{}}}, image: {{alt: {}}}}}\n---\n1\n```"
CARD = "```{exercise-start} Title\n:label: ex-second-new\n```\nText.\n\n```{exercise-end}\n```"
ANSWER = """```{code-cell} ipython3
:tags: [exercise, "ex:ex-second-new", "name:f"]

### BEGIN SOLUTION
f = 1
### END SOLUTION
```"""
CHECK = '```{code-cell} ipython3\n:tags: [check, "ex:ex-second-new"]\n\ncheck("ex-second-new", f)\n```'


def test_the_lessons_are_in_order():
    assert gates.problems() == []


def test_the_student_notebooks_are_up_to_date():
    assert notebooks.stale() == []


@pytest.fixture
def course(tmp_path):
    """A copy of the fixture course to spoil."""
    return Path(shutil.copytree(FIXTURE, tmp_path / "course"))


def cell(code: str) -> str:
    return f"```{{code-cell}} ipython3\n{code}\n```"


def test_an_appendix_is_held_to_the_same(course):
    path = course / "book/appendices/02_more.md"
    path.parent.mkdir(parents=True)
    wrong = CLAIM.format("slope-is-one", 'tier="exact",')
    head = "---\nkernelspec: {name: python3, display_name: Python 3, language: python}\n---"
    path.write_text("\n\n".join([head, cell("begin(1)"), wrong]))
    found = "\n".join(gates.problems(course))
    for message in ("begin('more') exactly once", "never calls finish()", "needs negative=", "is already made at"):
        assert f"{path.name}" in found and message in found


@pytest.mark.parametrize(
    "text, message",
    [
        ("$$ a = b $$ (eq-unclaimed)", "02_second.md:38: equation 'eq-unclaimed' is neither claimed nor listed"),
        (CLAIM.format("new", 'tier="production", equations=["eq-typo"],'), "no equation has the label 'eq-typo'"),
        (
            CLAIM.format("new", 'tier="production", equations="eq-model",'),
            "'eq-model' is listed as a definition although",
        ),
        (CLAIM.format("new", 'tier="exact",'), "exact claim 'new' needs negative="),
        (CLAIM.format("new", 'tier="exact", negative=None,'), "exact claim 'new' needs negative="),
        (CLAIM.format("slope-is-one", 'tier="production",'), "claim 'slope-is-one' is already made at"),
        (cell('claim("new", "It.", 1.0, above=0, tier="production", source="R")'), "the tag `claim` goes with"),
        ("```{code-cell} ipython3\n:tags: [claim]\n\n1\n```", "the tag `claim` goes with"),
        (cell('begin("third")'), "calls begin('second') exactly once"),
        (cell("import matplotlib.pyplot as plt\nfig, ax = plt.subplots()"), "the cell draws"),
        (cell("for _ in range(2):\n    plt.imshow(x)"), "the cell draws"),
        (cell("def draw():\n    return plt.figure()\nfig = draw()\nfig"), "the cell draws"),
        (cell('frames(lambda s: plt.figure(), [1], name="s")'), "frames() needs alt="),
        (FIGURE.format("name: fig-a, caption: Text", "''"), "the figure has no alt text"),
        (FIGURE.format("name: fig-a", "A line"), "needs a name and a caption"),
        (FIGURE.format("name: fig-a, caption: Text", "A line").replace("\n1\n", "\nax.legend()\n"), "a semicolon"),
        (CARD, "'ex-second-new' has 0 answer cells and 1 cards"),
        (f"{CARD}\n\n{ANSWER}", "'ex-second-new' has 0 check cells and 1 cards"),
        (f"{ANSWER}\n\n{CHECK}", "'ex-second-new' has 1 answer cells and 0 cards"),
        (f"{CARD}\n\n{ANSWER}\n\n{ANSWER}\n\n{CHECK}", "'ex-second-new' has 2 answer cells and 1 cards"),
    ],
)
def test_a_fault_in_a_lesson_is_found(course, text, message):
    path = course / "lessons/02_second.md"
    path.write_text(f"{path.read_text()}\n{text}\n")
    assert message in "\n".join(gates.problems(course))


@pytest.mark.parametrize(
    "text",
    [
        cell("def draw(s):\n    fig, ax = plt.subplots()\n    return fig"),
        cell('frames(lambda s: plt.figure(), [1], name="s", alt="A line")'),
        "```{code-cell} ipython3\n:tags: [live]\n\nplt.figure()\n```",
        FIGURE.format("name: fig-a, caption: Text", "A line"),
        CLAIM.format("new", 'tier="exact", no_negative="counting cannot go wrong",'),
        f"{CARD}\n\n{ANSWER}\n\n{CHECK}",
    ],
)
def test_what_is_right_is_left_alone(course, text):
    path = course / "lessons/02_second.md"
    path.write_text(f"{path.read_text()}\n{text}\n")
    assert gates.problems(course) == []


def test_a_definition_that_is_no_equation_is_found(course):
    path = course / "lessons/01_first.md"
    path.write_text(path.read_text().replace("[eq-model, eq-chain]", "[eq-model, eq-chain, eq-gone]"))
    assert "no equation has the label 'eq-gone'" in "\n".join(gates.problems(course))


@pytest.mark.parametrize(
    "line, found",
    [
        ('"""The mean (``eq-tweedie``; Robbins 1956)."""', []),
        ('"""The mean (``eq-tweede``)."""', ["eq-tweede"]),
        ("# eq-model, then eq-gone", ["eq-gone"]),
        ('"""Labels are written seq-length, eq-; not so: eq-model-of-all."""', ["eq-model-of-all"]),
    ],
)
def test_an_equation_that_code_mentions_is_in_a_lesson(course, line, found):
    (course / "minidiff").mkdir()
    (course / "minidiff/mean.py").write_text(f"\n{line}\n")
    wanted = [f"{course / 'minidiff/mean.py'}:2: no lesson has an equation {label!r}" for label in found]
    assert gates.problems(course) == wanted


def test_claims_are_readable_without_running(course):
    path = course / "lessons/02_second.md"
    path.write_text(path.read_text().replace('"tweedie-holds"', '"tweedie" + suffix'))
    with pytest.raises(LessonError, match=r"02_second.md:\d+: claim\(\): id must be given as a literal"):
        gates.problems(course)


def test_chapters_are_numbered_as_the_files(course):
    toc = course / "_toc.yml"
    toc.write_text(toc.read_text().replace("lessons/01_first", "lessons/02_second", 1))
    assert "the numbered chapters must be" in "\n".join(gates.problems(course))


def test_a_build_page_stands_in_a_part_without_numbers(course):
    lesson = (course / "lessons/02_second.md").read_text()
    start = lesson.index("# ", lesson.index("---", 3))
    (course / "lessons/build_third.md").write_text(
        lesson[:start] + "# Third\n\n" + cell('begin("third")\nfinish()') + "\n"
    )
    assert "['lessons/build_third'] must be chapters of parts without numbers" in "\n".join(gates.problems(course))
    with (course / "_toc.yml").open("a") as toc:
        toc.write("  - caption: Builds\n    chapters:\n      - file: lessons/build_third\n")
    assert "build_third" not in "\n".join(gates.problems(course))
