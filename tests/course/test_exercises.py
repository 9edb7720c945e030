"""Every exercise: right answers pass, wrong ones fail as what they are, no case is vacuous. And check() itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minidiff.course import exercises as registry
from minidiff.course.comparing import expect
from minidiff.course.exercises import (
    FAILED,
    PASSED,
    NotAttempted,
    case,
    check,
    exercise,
    exercises,
    find,
    grade_answer,
    load,
    status,
)
from minidiff.course.forms import number
from minidiff.course.grading.handin import names_of
from tools.exercises import (
    exercise_report,
    failed_cases,
    frozen,
    planted,
    reference_answers,
    right_answers,
    survivors,
    too_easy,
)
from tools.lessons import ROOT, read_all

TOY = Path(__file__).with_name("l99_toy.py")
SEEDS = range(3)  # for wrong answers, which fail early
LESSONS = read_all()
EXERCISES = exercises()
by_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.path.stem)
by_exercise = pytest.mark.parametrize("ex", EXERCISES, ids=lambda ex: ex.id)
MORE = range(5)  # for right ones


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
        for seed in MORE:
            assert failed_cases(id, answer, seed) == {}, (id, seed)


@by_exercise
def test_answers_in_other_styles_get_full_marks(ex):
    for style, answer in right_answers(ex).items():
        for seed in MORE:
            assert failed_cases(ex.id, answer, seed) == {}, (style, seed)


@by_exercise
def test_there_are_three_styles(ex):
    assert len(right_answers(ex)) >= 3


@by_exercise
def test_every_planted_answer_is_caught_and_every_case_catches_one(ex):
    assert list(survivors(ex, planted(ex.lesson).MUTANTS[ex.id], SEEDS)) == []


@by_exercise
def test_an_answer_that_caches_is_caught(ex):
    answer = next(iter(right_answers(ex).values()))
    assert not callable(answer) or failed_cases(ex.id, frozen(answer))


@by_exercise
def test_answers_without_thought_fail(ex):
    assert list(too_easy(ex)) == []


@pytest.mark.parametrize("path", sorted((ROOT / "tests/mutants").glob("l*.py")), ids=lambda path: path.stem)
def test_planted_answers_belong_to_exercises(path):
    module = planted(path.stem[1:])
    assert set(module.MUTANTS) == set(module.RIGHT) == {ex.id for ex in exercises(path.stem[1:])}


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
    "variance-as-deviation": (
        lambda x0, level, eps: level.alpha * x0 + level.sigma**2 * eps,
        "deviation",
        "you used the variance",
    ),
    "half-the-noise": (lambda x0, level, eps: level.alpha * x0 + level.sigma * eps / 2, "deviation"),
}


def test_gate_accepts_a_sound_exercise(toy):
    assert failed_cases("ex-99-marginal", marginal) == {}
    assert list(survivors(find("ex-99-marginal"), MUTANTS, SEEDS)) == []
    assert list(too_easy(find("ex-99-marginal"))) == []


def test_gate_finds_a_vacuous_case(toy):
    case("ex-99-marginal", "vacuous", assumes=())(lambda answer: None)
    assert list(survivors(find("ex-99-marginal"), MUTANTS)) == [
        "ex-99-marginal: no planted wrong answer fails the case 'vacuous'"
    ]


def test_gate_finds_a_planted_answer_that_passes(toy):
    (line,) = survivors(find("ex-99-marginal"), MUTANTS | {"right": (marginal, "mean")})
    assert line == "ex-99-marginal, seed 0: the planted 'right' must fail the case 'mean' but passes them all"


def test_gate_finds_a_diagnosis_that_is_wrong_or_missing(toy):
    variance = MUTANTS["variance-as-deviation"]
    for planted_as in (variance[:2], (*variance[:2], "another mistake")):
        (line,) = survivors(find("ex-99-marginal"), MUTANTS | {"variance-as-deviation": planted_as})
        assert "but the message is 'mistake recognised: you used the variance" in line


def test_gate_finds_an_exercise_that_anything_solves(toy):
    exercise("ex-99-free", name="free", lesson="99_toy")
    case("ex-99-free", "anything")(lambda answer: None)
    found = list(too_easy(find("ex-99-free")))
    assert len(found) > 40 and not any("free: None" in line for line in found), "all but None, which has no form"


def test_gate_finds_points_for_a_constant(toy):
    exercise("ex-99-positive", name="positive", lesson="99_toy", form=number())
    case("ex-99-positive", "positive")(lambda answer: expect(answer > 0, True, "it is above zero"))
    case("ex-99-positive", "pi")(lambda answer: expect(answer, 3.14159265, "it is pi"))
    assert "ex-99-positive: 0.5 passes form, positive" in list(too_easy(find("ex-99-positive")))


def test_check_prints_each_case(toy, capsys):
    assert check("ex-99-marginal", marginal) is None
    assert capsys.readouterr().out == "PASS form\nPASS mean\nPASS deviation\nex-99-marginal: 3 of 3 points\n"


def test_check_names_a_mistake_and_does_not_raise(toy, capsys):
    check("ex-99-marginal", MUTANTS["variance-as-deviation"][0])
    assert capsys.readouterr().out.splitlines() == [
        "PASS form",
        "PASS mean",
        "FAIL deviation: mistake recognised: you used the variance where the standard deviation belongs",
        "ex-99-marginal: 1 of 3 points",
    ]


def test_cases_that_assume_a_failed_one_are_not_run(toy, capsys):
    case("ex-99-marginal", "of-itself", assumes=())(lambda answer: None)
    case("ex-99-marginal", "of-deviation", assumes=["deviation"])(lambda answer: None)
    check("ex-99-marginal", MUTANTS["no-scale"][0])
    assert capsys.readouterr().out.splitlines() == [
        "PASS form",
        "FAIL mean: without noise, alpha x_0 is left",
        "---- deviation: not run, mean comes first",
        "PASS of-itself",
        "---- of-deviation: not run, mean comes first",
        "ex-99-marginal: 1 of 5 points",
    ]


def test_the_learners_own_exception_is_said_once_with_its_line(toy, capsys):
    def divides(x0, level, eps):
        assert x0.sum() == 1 / 0
        return x0

    case("ex-99-marginal", "again", assumes=())(lambda answer: answer(1, 2, 3))
    case("ex-99-marginal", "once-more", assumes=())(lambda answer: answer(torch.ones(1), 2, 3))
    check("ex-99-marginal", divides)
    out = capsys.readouterr().out
    assert "FAIL form: ZeroDivisionError: division by zero (line " in out
    assert out.count(": assert x0.sum() == 1 / 0)") == 1 and "once-more: not run, form comes first" in out


def test_an_exception_of_two_cases_is_said_once(toy):
    exercise("ex-99-free", name="free", lesson="99_toy")
    for name in ("first", "second"):
        case("ex-99-free", name, assumes=())(lambda answer: answer(0))
    failed = failed_cases("ex-99-free", lambda x: 1 / x)
    assert failed["first"].startswith("ZeroDivisionError: division by zero (line")
    assert failed["second"] == "the same as in first"


def test_an_assertion_of_the_answer_is_no_judgement(toy):
    def refuses(x0, level, eps):
        raise AssertionError("mistake recognised: none")

    assert failed_cases("ex-99-marginal", refuses)["form"].startswith("AssertionError: ")


def test_torchs_not_implemented_is_an_ordinary_failure(toy):
    def unfinished(x0, level, eps):
        raise NotImplementedError("no kernel")

    results = grade_answer("ex-99-marginal", unfinished)
    assert status(results) == FAILED and results[0].message.startswith("NotImplementedError: no kernel (line ")


def test_the_form_alone_earns_nothing(toy):
    results = grade_answer("ex-99-marginal", lambda x0, level, eps: x0 * 0)
    assert results[0].status == PASSED and status(results) == FAILED and not sum(r.points for r in results)


@pytest.mark.parametrize("answer", [..., "stub"], ids=["value", "function"])
def test_check_of_a_stub(toy, capsys, answer):
    def stub(x0, level, eps):
        raise NotAttempted

    check("ex-99-number" if answer is ... else "ex-99-marginal", answer if answer is ... else stub)
    assert capsys.readouterr().out.endswith(": not attempted\n")


def test_strict_check_raises(toy, monkeypatch):
    monkeypatch.setenv("MINIDIFF_STRICT", "1")
    check("ex-99-number", 42)
    for wrong, first in ((41, "value: the answer is 42"), (..., "form: not attempted yet"), (None, "form: the answer")):
        with pytest.raises(AssertionError, match=f"ex-99-number: {first}"):
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
        lambda: case("ex-99-number", "form")(print),
        lambda: load("nowhere.py"),
    ],
    ids=["id", "name", "case", "form", "module"],
)
def test_bad_declarations(toy, again):
    with pytest.raises(ValueError, match=r"already|no checks module"):
        again()
    with pytest.raises(ValueError, match="'late' of ex-99-number assumes"):
        case("ex-99-number", "late", assumes=["later"])(print)
    exercise("ex-98-number", name="number", lesson="98_other")  # the same name in another lesson is another answer


def test_an_answer_is_seen_as_the_grader_sees_it(toy):
    """No overloaded operator, no shared memory and no gradient reaches a case."""

    class Yes(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            return True

    assert "mean" in failed_cases("ex-99-marginal", lambda x0, level, eps: x0.as_subclass(Yes))
    seen = []
    exercise("ex-99-free", name="free", lesson="99_toy")
    case("ex-99-free", "kept")(lambda answer: seen.append(answer))
    value = torch.ones(2, requires_grad=True)
    grade_answer("ex-99-free", value)
    assert not seen[0].requires_grad and seen[0].data_ptr() != value.data_ptr()


def test_cases_draw_from_the_seed_and_leave_the_random_state_alone(toy):
    seen = []
    case("ex-99-number", "draws")(lambda answer, rng: seen.append((torch.rand(1, generator=rng).item(), torch.rand(1))))
    before = torch.random.get_rng_state()
    for seed in (0, 0, 1):
        grade_answer("ex-99-number", 42, seed)
    assert seen[0] == seen[1] and seen[0] != seen[2] and torch.equal(before, torch.random.get_rng_state())
