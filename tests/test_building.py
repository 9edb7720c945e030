"""What `make book` and `make test` do around the tools they call: caches, stale pages, gates that fail."""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from jupyter_cache.base import CacheBundleIn
from myst_nb.core.read import read_myst_markdown_notebook
from myst_parser.config.main import MdParserConfig

from tools import book, cache, run_gates
from tools.lessons import config


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A tiny project."""
    for name in ("minidiff/sampler.py", "data/checkpoints/x/card.json", "requirements.lock", "lessons/01_one.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a")
    monkeypatch.setattr(cache, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["minidiff/sampler.py", "data/checkpoints/x/card.json", "requirements.lock"])
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


def test_old_caches_and_records_of_lost_lessons_go(tree):
    old = tree / "_build/.cache/0123456789abcdef"
    old.mkdir(parents=True)
    here = cache.prepare(tree)
    for name in ("one", "gone"):
        (here / "records" / f"{name}.json").write_text("{}")
    assert cache.prepare(tree) == here and not old.exists()
    assert [path.name for path in (here / "records").iterdir()] == ["one.json"]


@pytest.mark.parametrize("code", [0, 1])
def test_after_a_failure_every_page_is_read_again(tree, monkeypatch, code, capsys):
    """Sphinx repeats no warning of a page that has not changed, so the second build would succeed."""
    pages = tree / "_build/.doctrees"
    pages.mkdir(parents=True)
    monkeypatch.setattr(book.subprocess, "run", lambda command, **options: CompletedProcess(command, code))
    monkeypatch.setattr(book, "execute", lambda: "")
    monkeypatch.setattr(book.os, "environ", {})
    assert book.build() == code
    assert pages.exists() == (code == 0)
    assert ("_build/html/index.html" in capsys.readouterr().out) == (code == 0)


def test_the_book_finds_every_lesson_that_was_run_before_it(tmp_path, monkeypatch):
    """Sphinx reads them by itself: where a cell or a tag came out otherwise, it would run the lesson once more."""
    monkeypatch.syspath_prepend(cache.ROOT / "book" / "_ext")
    from course_ext import leave_out_live_cells

    markdown = MdParserConfig(enable_extensions=config()["parse"]["myst_enable_extensions"])
    outputs = book.Outputs(tmp_path)
    work = book.lacking(outputs)
    assert len(work) == len(list(cache.ROOT.glob("lessons/*.md")))
    for lesson in work:
        source = [Path(lesson.uri).read_text(encoding="utf-8")]
        leave_out_live_cells(None, None, source)
        read = CacheBundleIn(read_myst_markdown_notebook(source[0], markdown), lesson.uri)
        outputs.cache_notebook_bundle(read, check_validity=False)
    assert [lesson.uri for lesson in book.lacking(outputs)] == []


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
    assert [line.split()[0] for line in lines[-5:-2]] == ["ok", "FAIL", "ok"]


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
