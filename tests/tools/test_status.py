"""The tables of the status page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minidiff.course import notebook
from minidiff.course.claims import claim
from tools import status

FIXTURE = Path(__file__).parent / "fixtures/course"
KEYS = {"claims", "exercises", "lessons", "checkpoints"}


@pytest.fixture(autouse=True)
def report(monkeypatch):
    """Stands in for the mutation run of the real exercises."""
    import tools.exercises

    row = {"id": "ex-a", "lesson": "01_first", "cases": 2, "mutants": 4, "killed": 3}
    rows = [row, row | {"id": "ex-b", "mutants": 0, "killed": 0}]
    monkeypatch.setattr(tools.exercises, "exercise_report", lambda: rows)


def test_without_records_everything_is_not_run_yet(tmp_path, monkeypatch):
    monkeypatch.delenv("MINIDIFF_RECORDS", raising=False)
    for folder in (None, tmp_path / "nothing", tmp_path):
        made = status.tables(folder, FIXTURE)
        assert made.keys() == KEYS
        assert (
            made["claims"].startswith("2 claims; not run yet: 2; no control yet: 0.")
            and "The slope is one." in made["claims"]
        )
        assert "| 01\\_first | not run yet |" in made["lessons"] and made["checkpoints"] == "*not run yet*"
        assert made["exercises"].startswith("3 of 4 planted wrong answers are caught.")
        assert "| `ex-a` | 01\\_first | 2 | 4 | 3 | 75% |" in made["exercises"]
        assert "| `ex-b` | 01\\_first | 2 | 0 | 0 | – |" in made["exercises"]


def test_a_recorded_lesson_is_shown_beside_one_that_was_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDIFF_RECORDS", str(tmp_path))
    notebook.begin("second")
    claim(
        "tweedie-holds",
        "p(x|c) is the score's.",
        1e-9,
        below=1e-6,
        negative={"without-alpha": 0.3},
        tier="exact",
        source="R",
    )
    notebook.finish()
    made = status.tables(root=FIXTURE)
    assert made["claims"].startswith("2 claims; holds: 1; not run yet: 1; no control yet: 0.")
    link = '<a href="../lessons/02_second.html#claim-tweedie-holds"><code>tweedie-holds</code></a>'
    assert (
        f"| p(x\\|c) is the score's. <br> {link} | **holds** | 1e-09 | below 1e-06 "
        "| without-alpha: 0.3 (fails) | R <br> (exact) |" in made["claims"]
    )
    assert " s |" in made["lessons"] and "| 01\\_first | not run yet |" in made["lessons"]


def test_verdicts_and_debts_are_counted_by_lesson(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDIFF_RECORDS", str(tmp_path))
    small = {"above": 0.0, "tier": "small", "source": "R"}
    notebook.begin("second")
    claim("tweedie-holds", "It is.", -2.0, interval=(-3, -1), no_control="none was measured", **small)
    notebook.begin("first")
    claim("slope-is-one", "It is.", 2.0, interval=(-3, 3), control={"untrained": -1.0}, **small)
    lines = status.tables(tmp_path, FIXTURE)["claims"].splitlines()
    assert lines[0] == "2 claims; refuted here: 1; undecided: 1; no control yet: 1."
    assert [line for line in lines[2:7] if "---" not in line] == [
        "| lesson | refuted here | undecided | claims | no control yet |",
        "| 01\\_first | 0 | 1 | 1 | 0 |",
        "| 02\\_second | 1 | 0 | 1 | 1 |",
        "| all | 1 | 1 | 2 | 1 |",
    ]
    assert "| untrained: -1 (fails) |" in "\n".join(lines) and "| none: none was measured |" in "\n".join(lines)


def test_checkpoints_come_from_their_cards(tmp_path):
    folder = tmp_path / "digits"
    folder.mkdir()
    card = {
        "recipe": {"system": "class", "training": {"steps": 3000, "seed": 0}},
        "parameters": 1234567,
        "seconds": 1801.5,
    }
    (folder / "card.json").write_text(json.dumps(card | {"metrics": {"accuracy": 0.98765}, "data": "digits"}))
    text = status.checkpoints_table(tmp_path)
    assert "| `digits` | digits | 1,234,567 | 3,000 | 0 | 1802 | accuracy 0.9877 | – |" in text
    card["longer"] = {"change": -0.0123, "low": -0.02, "high": 0.001}
    (folder / "card.json").write_text(json.dumps(card))
    assert "| -1.2% \\[-2.0%, +0.1%\\] |" in status.checkpoints_table(tmp_path)
