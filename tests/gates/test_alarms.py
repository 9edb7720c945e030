"""The alarm is tested: a planted fault turns the real gate red, with a message that names it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minidiff.course import exercises as registry
from tools import run_lessons
from tools.exercises import planted, survivors
from tools.lessons import ROOT

HEADER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  name: python3
  display_name: Python 3
  language: python
---

# A lesson

```{code-cell} ipython3
one = 1
```
"""
PLANTED = '\n```{code-cell} ipython3\nassert one == 2, "a planted failure"\n```\n'
TOC = "format: jb-book\nroot: lessons/01_planted\n"


def start(command: list, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """Run a gate as the test command does; its output is one text."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def root(tmp_path):
    """A course of one small lesson with the project's own tools and configuration."""
    (tmp_path / "lessons").mkdir()
    (tmp_path / "lessons/01_planted.md").write_text(HEADER)
    for name in ("tools", "book/_ext", "book/_static"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "book/references.bib", tmp_path / "book")
    shutil.copy(ROOT / "_config.yml", tmp_path)
    (tmp_path / "_toc.yml").write_text(TOC)
    return tmp_path


RUN, MAKE = ["-m", "tools.run_lessons"], ["-m", "tools.book"]
CLAIM = """
```{code-cell} ipython3
from minidiff.course import begin, claim

begin("planted")
claim("one-is-two", "One is two.", 1.0, above=2.0, tier="exact", source="nobody", negative={"wrong": 0.5})
```
"""


@pytest.mark.parametrize("gate", [RUN, MAKE], ids=["lessons", "book"])
def test_a_failing_cell_or_claim_fails_the_gate_and_is_not_kept(root, gate):
    (root / "lessons/01_planted.md").write_text(HEADER + PLANTED + CLAIM)
    (root / "lessons/02_good.md").write_text(HEADER)
    done = start(gate, root)
    assert done.returncode == 1 and "2 failed, 1 passed" in done.stdout, done.stdout[-3000:]
    assert "a planted failure" in done.stdout and "claim one-is-two: fails" in done.stdout
    assert list(run_lessons.times(root)) == ["02_good"]
    assert list(root.glob("_build/.cache/*/records/*.json")) == []


def test_a_lesson_that_cannot_be_read_fails_the_gate(root):
    (root / "lessons/01_planted.md").write_text(HEADER.replace("one = 1", "---\n: {\n---\none = 1"))
    done = start(RUN, root)
    assert done.returncode == 1 and "lessons/01_planted.md: " in done.stdout


COUNTED = '\n```{{code-cell}} ipython3\nwith open("{}", "a") as log:\n    log.write("ran ")\n```\n'
MEETING = """
```{{code-cell}} ipython3
import time
from pathlib import Path

Path("{mine}").touch()
ends = time.monotonic() + 100
while not Path("{theirs}").exists():
    assert time.monotonic() < ends, "the other lesson does not run at the same time"
    time.sleep(0.1)
```

```{{code-cell}} ipython3
:tags: [live]

print("only for a live notebook")
```
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core runs one lesson at a time")
def test_the_book_runs_lessons_side_by_side_and_once(root):
    """Each waits for the other, and both are counted; the book shows what they showed then."""
    for name, mine, theirs in (("01_planted", "a", "b"), ("02_other", "b", "a")):
        meeting = MEETING.format(mine=root / mine, theirs=root / theirs)
        glued = (
            f'\n```{{code-cell}} ipython3\nfrom myst_nb import glue\nglue("mine", "I am {mine}", display=False)\n```\n'
        )
        text = "\nSays {glue:text}`mine`.\n"
        (root / f"lessons/{name}.md").write_text(HEADER + meeting + COUNTED.format(root / "log") + glued + text)
    (root / "_toc.yml").write_text(TOC + "chapters:\n- file: lessons/02_other\n")
    for _ in range(2):
        done = start(MAKE, root)
        assert done.returncode == 0, done.stdout[-3000:]
    assert (root / "log").read_text().split() == ["ran", "ran"]
    page = (root / "_build/html/lessons/02_other.html").read_text()
    assert "I am b" in page and "only for a live notebook" not in page


def test_the_book_runs_nothing_itself(root):
    done = start(["-c", "from tools import book; raise SystemExit(not book.render())"], root)
    assert done.returncode == 1 and "is not in the cache as the book reads it" in done.stdout


def test_a_stale_notebook_fails_the_check(root):
    command = [ROOT / "tools/notebooks.py", "--root", root]
    assert start(command, root).returncode == 0
    assert start([*command, "--check"], root).returncode == 0
    (root / "lessons/01_planted.md").write_text(HEADER.replace("one = 1", "one = 1.0"))
    done = start([*command, "--check"], root)
    assert done.returncode == 1 and "stale: notebooks/01_planted.ipynb" in done.stdout


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("uncond.eps + scale * (cond.eps - uncond.eps)", "uncond.eps - scale * (cond.eps - uncond.eps)"),
        ("uncond.eps + scale * (cond.eps - uncond.eps)", "uncond.eps + (1 + scale) * (cond.eps - uncond.eps)"),
    ],
    ids=["sign", "w-for-s"],
)
def test_a_wrong_formula_fails_the_unit_tests(tmp_path, right, wrong):
    ignore = shutil.ignore_patterns("__pycache__", "course")
    shutil.copytree(ROOT / "minidiff", tmp_path / "minidiff", ignore=ignore)
    for name in ("pyproject.toml", "tests/conftest.py", "tests/test_guidance.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    guidance = tmp_path / "minidiff/guidance.py"
    source = guidance.read_text()
    assert source.count(right) == 1, "the formula is written differently now: plant the fault in its new form"
    guidance.write_text(source.replace(right, wrong))
    done = start(
        ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "free", "tests/test_guidance.py"], tmp_path
    )
    assert done.returncode == 1 and "AssertionError" in done.stdout and " error" not in done.stdout.splitlines()[-1]


def test_a_case_that_cannot_fail_is_caught(monkeypatch):
    exercise = registry.exercises()[0]
    mutants = planted(exercise.lesson).MUTANTS[exercise.id]
    assert list(survivors(exercise, mutants)) == []
    spoilt = dataclasses.replace(
        exercise, cases=[*exercise.cases, registry.Case("vacuous", lambda answer, rng: None, 1.0)]
    )
    monkeypatch.setitem(registry._exercises, exercise.id, spoilt)
    assert list(survivors(spoilt, mutants)) == [f"{exercise.id}: no planted wrong answer fails the case 'vacuous'"]


VACUOUS = """
from minidiff.course import claim
claim("one-is-one", "One is one.", 0.0, below=1.0, tier="exact", source="nobody", negative={"wrong": 0.5})
"""


def test_a_claim_that_cannot_fail_is_caught(tmp_path):
    done = start(["-c", VACUOUS], tmp_path)
    assert (
        done.returncode == 1
        and "VacuousCheck" in done.stdout
        and "its negative control 'wrong' gives 0.5" in done.stdout
    )
