"""What `make book` and `make test` do around the tools they call: caches, stale pages, gates that fail."""

from __future__ import annotations

import re
import sys
from subprocess import CompletedProcess

import pytest
from myst_nb.core.read import read_myst_markdown_notebook
from myst_parser.config.main import MdParserConfig

from tools import book, cache, run_gates, run_lessons
from tools.lessons import config


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A tiny project."""
    for name in (
        "minidiff/sampler.py",
        "data/checkpoints/x/card.json",
        "requirements.lock",
        "tools/shown.py",
        "lessons/01_one.md",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a")
    monkeypatch.setattr(cache, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["minidiff/sampler.py", "data/checkpoints/x/card.json", "requirements.lock", "tools/shown.py"]
)
def test_what_lessons_depend_on_starts_an_empty_cache(tree, name):
    before = cache.key(tree)
    (tree / name).write_text("b")
    assert cache.key(tree) != before


def test_a_renamed_module_starts_an_empty_cache(tree):
    before = cache.key(tree)
    (tree / "minidiff/sampler.py").rename(tree / "minidiff/samplers.py")
    assert cache.key(tree) != before


def test_lessons_and_bytecode_do_not(tree):
    before = cache.key(tree)
    (tree / "lessons/01_one.md").write_text("b")
    (tree / "minidiff/__pycache__").mkdir()
    (tree / "minidiff/__pycache__/sampler.pyc").write_text("b")
    assert cache.key(tree) == before


def test_old_caches_go(tree):
    old = tree / "_build/.cache/0123456789abcdef"
    old.mkdir(parents=True)
    here = cache.prepare(tree)
    (here / "records/one.json").write_text("{}")
    assert cache.prepare(tree) == here and not old.exists()
    assert (here / "records/one.json").exists()


@pytest.mark.parametrize("code", [0, 1])
def test_after_a_failure_every_page_is_read_again(tree, monkeypatch, code, capsys):
    """Sphinx repeats no warning of a page that has not changed, so the second build would succeed."""
    pages = tree / "_build/.doctrees"
    pages.mkdir(parents=True)
    monkeypatch.setattr(book.subprocess, "run", lambda command, **options: CompletedProcess(command, code))
    monkeypatch.setattr(book.run_lessons, "fill", lambda: [])
    assert book.build() == code
    assert pages.exists() == (code == 0)
    assert ("_build/html/index.html" in capsys.readouterr().out) == (code == 0)


def test_the_book_finds_every_page_that_was_run_before_it(tmp_path, monkeypatch):
    """Sphinx reads them by itself: where a cell or a tag came out otherwise, it would not find them."""
    monkeypatch.syspath_prepend(cache.ROOT / "book" / "_ext")
    from course_ext import leave_out_live_cells

    markdown = MdParserConfig(enable_extensions=config()["parse"]["myst_enable_extensions"])
    outputs = run_lessons.Outputs(tmp_path)
    for page in run_lessons.pages(outputs):
        assert page.kept is None
        run_lessons.keep(outputs, run_lessons.Ran(page, 1.5, notebook=page.notebook))
        source = [page.path.read_text(encoding="utf-8")]
        leave_out_live_cells(None, None, source)
        assert outputs.match_cache_notebook(read_myst_markdown_notebook(source[0], markdown)).uri == str(page.path)
    assert {page.kept["execution_seconds"] for page in run_lessons.pages(outputs)} == {1.5}


def gate(name: str, code: int) -> run_gates.Gate:
    return run_gates.Gate(name, f"ends with {code}", ((sys.executable, "-c", f"raise SystemExit({code})"),))


@pytest.fixture
def gates(tree, monkeypatch):
    monkeypatch.setattr(run_gates, "GATES", (gate("first", 0), gate("second", 3), gate("third", 0)))
    return lambda *names: monkeypatch.setattr(sys, "argv", ["run_gates", *names])


def test_a_failing_gate_does_not_stop_the_others(gates, capsys):
    gates()
    assert run_gates.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "2 passed, 1 failed"
    assert [line.split()[0] for line in lines[-6:-3]] == ["ok", "FAIL", "ok"]


SLEEPY = """
import time
import pytest

@pytest.mark.parametrize("tenths", range(1, 13))
def test_sleep(tenths):
    time.sleep(tenths / 10)
"""


def test_the_slowest_tests_stand_at_the_end(tree, gates, monkeypatch, capsys):
    (tree / "test_sleepy.py").write_text(SLEEPY)
    options = ("-q", "-p", "no:cacheprovider", "-n", "4", "test_sleepy.py")
    slow = run_gates.Gate("slow", "it sleeps", run_gates.pytest(*options))
    monkeypatch.setattr(run_gates, "GATES", (slow, gate("quick", 0)))
    gates()
    assert run_gates.main() == 0
    lines = capsys.readouterr().out.splitlines()
    listed = lines[lines.index("The slowest tests:") + 1 : -2]
    assert [line.split()[2:] for line in listed] == [
        ["slow", f"test_sleepy.py::test_sleep[{tenths}]"] for tenths in range(12, 2, -1)
    ]
    assert all(float(line.split()[0]) >= tenths / 10 for line, tenths in zip(listed, range(12, 2, -1), strict=True))


def test_the_lessons_stand_at_the_end(tree, monkeypatch, capsys):
    monkeypatch.setattr(run_gates.run_lessons, "times", lambda: {"02_two": 61.4, "01_one": 9.0})
    result = run_gates.Result(gate("lessons", 0), True, 0.0, 70.4, ())
    lines = list(run_gates.summary([result]))
    assert [line.split() for line in lines[-3:-1]] == [["61", "s", "02_two"], ["9", "s", "01_one"]]


SPAN = """
import pathlib, sys, time
here = pathlib.Path(sys.argv[1])
print("begin", sys.argv[2], flush=True)
begun = time.monotonic()
(here / f"{sys.argv[2]}.begun").touch()
while len(sys.argv) > 3 and not (here / f"{sys.argv[3]}.begun").exists():
    assert time.monotonic() < begun + 60, "the other gate does not run at the same time"
    time.sleep(0.05)
print("end", sys.argv[2], flush=True)
"""


def span(tree, name: str, meets: str = "", **how) -> run_gates.Gate:
    """A gate that says when it begins and ends, and waits for another to begin."""
    words = [sys.executable, "-c", SPAN, str(tree), name, *([meets] if meets else [])]
    return run_gates.Gate(name, "says so", (tuple(words),), **how)


def test_two_gates_run_side_by_side_and_each_speaks_at_once(tree, monkeypatch, capsys):
    pair = (span(tree, "left", meets="right"), span(tree, "right", meets="left"))
    results = run_gates.run_all(pair)
    assert [result.gate.name for result in results] == ["left", "right"] and all(result.held for result in results)
    said = capsys.readouterr().out
    assert all(f"=== {name}: says so\nbegin {name}\nend {name}\n" in said for name in ("left", "right"))
    whole = next(line for line in run_gates.summary(results) if line.endswith("in all"))
    assert float(whole.split()[0]) == round(max(r.ended for r in results) - min(r.began for r in results))


def test_a_gate_waits_for_what_it_reads_and_a_lone_one_for_the_cores(tree, capsys):
    gates = [span(tree, "reads", after=("makes",)), span(tree, "first"), span(tree, "lone", alone=True)]
    gates += [span(tree, "makes"), span(tree, "last")]
    results = {result.gate.name: result for result in run_gates.run_all(gates)}
    assert list(results) == [gate.name for gate in gates] and all(result.held for result in results.values())
    assert results["reads"].began >= results["makes"].ended
    others = [result for name, result in results.items() if name != "lone"]
    assert all(each.ended <= results["lone"].began or each.began >= results["lone"].ended for each in others)


def test_a_gate_runs_without_those_it_comes_after_when_they_are_not_asked_for(tree):
    (result,) = run_gates.run_all([span(tree, "reads", after=("makes",))])
    assert result.held and result.said == ""


def test_files_that_begin_early_are_there():
    stems = {path.stem for path in (cache.ROOT / "tests").rglob("test_*.py")}
    listed = re.search(
        r"^LONG = \((.*?)\)", (cache.ROOT / "tests/conftest.py").read_text(encoding="utf-8"), re.M | re.S
    )[1]
    assert set(re.findall(r'"(\w+)"', listed)) <= stems


def test_what_is_read_is_made_by_a_gate():
    names = {gate.name for gate in run_gates.GATES}
    assert all(set(gate.after) < names for gate in run_gates.GATES)


def test_chosen_gates_only(gates, capsys):
    gates("third", "first")
    assert run_gates.main() == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 passed, 0 failed"


def test_an_unknown_gate_is_named(gates, capsys):
    gates("fourth")
    with pytest.raises(SystemExit) as stopped:
        run_gates.main()
    assert stopped.value.code == 2
    assert "no gate fourth; the gates are first, second, third" in capsys.readouterr().err
