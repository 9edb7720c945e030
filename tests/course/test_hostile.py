"""Hand-ins that mean harm, beside those of ``test_grading``: none has points for nothing, none costs another."""

from __future__ import annotations

from pathlib import Path

import attacks
import forgeries
import pytest
import sabotage

from minidiff.course.grading import grade_paths

TOY = Path(__file__).with_name("l99_toy.py")
LIMITS = {"time_limit_s": 10.0, "case_limit_s": 3.0, "memory_limit_mb": 512}
SOURCES = {
    name: source
    for module in (forgeries, sabotage)
    for name, source in vars(module).items()
    if name.isupper() and name not in ("RIGHT", "WRONG")
}
STATED = {"IMPOSTORS": 1.0, "KILLS_ITSELF": 1.0, "DEAF": 3.0, "FILLS": 4.0, "STARVES": 6.0}  # answers that are right


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """Results by file name, all of one run; after each of the saboteurs, a good one."""
    folder = tmp_path_factory.mktemp("hand-ins")
    for name, source in SOURCES.items():
        (folder / f"{name}.py").write_text(attacks.RIGHT + source)
        if name in vars(sabotage):
            (folder / f"{name}_good.py").write_text(attacks.RIGHT)
    for name, content in sabotage.files().items():
        (folder / name).write_bytes(content)
    (folder / "zz_good.py").write_text(attacks.RIGHT)
    return {Path(r["handin"]).name: r for r in grade_paths([folder], checks=[TOY], jobs=2, seed=1, **LIMITS)}


@pytest.mark.parametrize("name", SOURCES)
def test_no_point_that_was_not_earned(graded, name):
    result = graded[f"{name}.py"]
    assert result["status"] == "graded" and result["points"] <= STATED.get(name, 0.0), result["exercises"]
    assert result["seconds"] < 60


def test_the_others_get_full_marks(graded):
    good = {name: result["points"] for name, result in graded.items() if name.endswith("_good.py")}
    assert len(good) > 4 and set(good.values()) == {6.0}, good


@pytest.mark.parametrize("name", sabotage.files())
def test_files_that_are_hard_to_read(graded, name):
    result = graded[name]
    assert result["seconds"] < 60 and "referee" not in result["message"]
    assert result["status"] == "graded" or result["message"]


def test_what_can_be_read_of_a_damaged_file_counts(graded):
    points = {name: graded[name]["points"] for name in ("parens.py", "signs.py", "branches.py", "counters.py")}
    assert set(points.values()) == {6.0}, points
