"""What a build page leans on."""

import pytest

from minidiff.course import NotAttempted, attempted, building, exercises, training_steps


def stub():
    raise NotAttempted


def test_an_answer_is_used_where_there_is_one(capsys):
    assert attempted(lambda: 1, otherwise=stub, note="missing") == 1
    assert capsys.readouterr().out == ""


def test_a_stand_in_is_used_and_named_where_there_is_none(capsys):
    assert attempted(lambda: 1 + stub(), otherwise=lambda: 2, note="Step 1 is missing.") == 2
    assert capsys.readouterr().out == "Step 1 is missing.\n"


def test_other_faults_of_an_answer_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        attempted(lambda: 1 / 0, otherwise=lambda: 2, note="missing")


@pytest.mark.parametrize(
    "notebook, strict, silent, steps",
    [(True, "0", False, 90), (False, "0", False, 9), (True, "1", False, 9), (True, "0", True, 9)],
    ids=["learner", "plain Python", "tests", "grader"],
)
def test_only_a_learners_notebook_trains_in_full(monkeypatch, notebook, strict, silent, steps):
    monkeypatch.setattr(building, "in_notebook", lambda: notebook)
    monkeypatch.setattr(exercises, "silent", silent)
    monkeypatch.setenv("MINIDIFF_STRICT", strict)
    assert training_steps(90, rehearsal=9) == steps
