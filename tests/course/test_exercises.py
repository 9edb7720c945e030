"""Every exercise of the course: right answers pass, wrong ones fail, no case is vacuous. And check() itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minidiff.course import exercises as registry
from minidiff.course.exercises import case, check, exercise, exercises, find, grade_answer, load
from minidiff.course.grading.handin import names_of
from tools.exercises import exercise_report, failed_cases, planted, reference_answers, survivors, too_easy
from tools.lessons import ROOT, read_all

TOY = Path(__file__).with_name("l99_toy.py")
LESSONS = read_all()
EXERCISES = exercises()
by_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.path.stem)
by_exercise = pytest.mark.parametrize("ex", EXERCISES, ids=lambda ex: ex.id)


@by_lesson
def test_lesson_and_declarations_agree(lesson):
    declared = {ex.id: ex.name for ex in exercises(lesson.path.stem)}
    assert {c.tag("ex"): c.tag("name") for c in lesson.code if "exercise" in c.tags} == declared
    assert len(declared) >= 4, "a lesson has at least four exercises"


@by_lesson
def test_no_other_cell_rebinds_an_answer(lesson):
    """The grader takes a name's last definition, so that a learner may improve an answer in a cell of their own."""
    answers = {ex.name for ex in exercises(lesson.path.stem)}
    for cell in lesson.code:
        if "exercise" not in cell.tags:
            bound = set().union(*(names_of(node)[0] for node in cell.tree.body))
            assert not bound & answers, f"{lesson.path}:{cell.line}"


@by_lesson
def test_the_lessons_own_answers_get_full_marks(lesson):
    for id, answer in reference_answers(lesson).items():
        assert failed_cases(id, answer) == {}, id


@by_exercise
def test_a_second_answer_gets_full_marks(ex):
    assert failed_cases(ex.id, planted(ex.lesson).SECOND[ex.id]) == {}


@by_exercise
def test_every_planted_answer_is_caught_and_every_case_catches_one(ex):
    assert list(survivors(ex, planted(ex.lesson).MUTANTS[ex.id])) == []


@by_exercise
def test_answers_without_thought_fail(ex):
    assert list(too_easy(ex)) == []


@pytest.mark.parametrize("path", sorted((ROOT / "tests/mutants").glob("l*.py")), ids=lambda path: path.stem)
def test_planted_answers_belong_to_exercises(path):
    module = planted(path.stem[1:])
    assert set(module.MUTANTS) == set(module.SECOND) == {ex.id for ex in exercises(path.stem[1:])}


def test_report_counts_every_planted_answer():
    for row in exercise_report():
        assert row["killed"] == row["mutants"] == len(planted(row["lesson"]).MUTANTS[row["id"]])


# -- the gate can fail, and check() says what it should ---------------------------------------------------


@pytest.fixture
def toy(monkeypatch):
    """A registry that holds the toy lesson alone."""
    monkeypatch.setattr(registry, "_exercises", {})
    monkeypatch.setattr(registry, "_loaded", {"minidiff.course.checks"})
    monkeypatch.delenv("MINIDIFF_STRICT", raising=False)
    load(TOY)


def marginal(x0, level, eps):
    return level.alpha * x0 + level.sigma * eps


MUTANTS = {
    "no-scale": (lambda x0, level, eps: x0 + level.sigma * eps, "mean"),
    "variance-as-deviation": (lambda x0, level, eps: level.alpha * x0 + level.sigma**2 * eps, "deviation"),
}


def test_gate_accepts_a_sound_exercise(toy):
    assert failed_cases("ex-99-marginal", marginal) == {}
    assert list(survivors(find("ex-99-marginal"), MUTANTS)) == []
    assert list(too_easy(find("ex-99-marginal"))) == []


def test_gate_finds_a_vacuous_case(toy):
    case("ex-99-marginal", "vacuous")(lambda answer: None)
    assert list(survivors(find("ex-99-marginal"), MUTANTS)) == [
        "ex-99-marginal: no planted wrong answer fails the case 'vacuous'"
    ]
    assert "stub passes vacuous" in " ".join(too_easy(find("ex-99-marginal")))


def test_gate_finds_a_planted_answer_that_passes(toy):
    (line,) = survivors(find("ex-99-marginal"), MUTANTS | {"right": (marginal, "mean")})
    assert line == "ex-99-marginal: the planted 'right' must fail the case 'mean' but passes them all"


def test_gate_finds_an_exercise_that_anything_solves(toy):
    exercise("ex-99-free", name="free", lesson="99_toy")
    case("ex-99-free", "anything")(lambda answer: None)
    assert len(list(too_easy(find("ex-99-free")))) == 6


def test_check_prints_each_case(toy, capsys):
    assert check("ex-99-marginal", marginal) is None
    assert capsys.readouterr().out == "PASS mean\nPASS deviation\nex-99-marginal: 3 of 3 points\n"


def test_check_names_a_mistake_and_does_not_raise(toy, capsys):
    check("ex-99-marginal", MUTANTS["variance-as-deviation"][0])
    assert capsys.readouterr().out.splitlines() == [
        "PASS mean",
        "FAIL deviation: mistake recognised: you used the variance where the standard deviation belongs",
        "ex-99-marginal: 1 of 3 points",
    ]


def test_check_shows_the_learners_own_exception(toy, capsys):
    check("ex-99-marginal", lambda x0, level: x0)
    assert "FAIL mean: TypeError: " in capsys.readouterr().out


@pytest.mark.parametrize("answer", [..., "stub"], ids=["value", "function"])
def test_check_of_a_stub(toy, capsys, answer):
    def stub(*args):
        raise NotImplementedError

    check("ex-99-number" if answer is ... else "ex-99-marginal", answer if answer is ... else stub)
    assert capsys.readouterr().out.endswith(": not attempted\n")


def test_strict_check_raises(toy, monkeypatch):
    monkeypatch.setenv("MINIDIFF_STRICT", "1")
    check("ex-99-number", 42)
    for wrong in (41, ..., None):
        with pytest.raises(AssertionError, match="ex-99-number: value: "):
            check("ex-99-number", wrong)


def test_unknown_exercise_suggests_the_nearest(toy):
    with pytest.raises(ValueError, match=r"no exercise 'ex-99-marignal'; did you mean 'ex-99-marginal'\?"):
        check("ex-99-marignal", marginal)
    with pytest.raises(ValueError, match="no exercise 'ex-98'"):
        case("ex-98", "name")(print)


@pytest.mark.parametrize(
    "again",
    [
        lambda: exercise("ex-99-number", name="other", lesson="98_other"),
        lambda: exercise("ex-99-more", name="number", lesson="99_toy"),
        lambda: case("ex-99-number", "value")(print),
        lambda: load("nowhere.py"),
    ],
    ids=["id", "name", "case", "module"],
)
def test_bad_declarations(toy, again):
    with pytest.raises(ValueError, match=r"already|no checks module"):
        again()
    exercise("ex-98-number", name="number", lesson="98_other")  # the same name in another lesson is another answer


def test_an_answer_is_seen_as_the_grader_sees_it(toy):
    """No overloaded operator, no shared memory and no gradient reaches a case."""

    class Yes(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            return True

    assert set(failed_cases("ex-99-marginal", lambda x0, level, eps: x0.as_subclass(Yes))) == {"mean", "deviation"}
    seen = []
    case("ex-99-number", "kept")(lambda answer: seen.append(answer))
    value = torch.ones(2, requires_grad=True)
    grade_answer("ex-99-number", value)
    assert not seen[0].requires_grad and seen[0].data_ptr() != value.data_ptr()


def test_cases_are_deterministic_and_leave_the_random_state_alone(toy):
    seen = []
    case("ex-99-number", "draws")(lambda answer: seen.append(torch.rand(1).item()))
    before = torch.random.get_rng_state()
    grade_answer("ex-99-number", 42)
    grade_answer("ex-99-number", 42)
    assert seen[0] == seen[1] and torch.equal(before, torch.random.get_rng_state())
