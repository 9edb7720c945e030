"""What was graded is kept: when the grader is killed, when a process of its own is, when its files go."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import attacks
import pytest
from test_grading import descendants, wait_for

from minidiff.course.grading import grade_paths
from minidiff.course.grading.book import COLUMNS

TOY = Path(__file__).with_name("l99_toy.py")
SCRIPT = """
import sys
from minidiff.course.grading import grade_paths
grade_paths([sys.argv[1]], sys.argv[2], checks=[sys.argv[3]], progress=lambda r: print(r["points"], flush=True))
"""
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="follows processes in /proc")


@pytest.fixture
def folder(tmp_path):
    """A folder of hand-ins, the right answers each."""
    (tmp_path / "hand-ins").mkdir()
    for i in range(5):
        (tmp_path / f"hand-ins/{i}.py").write_text(attacks.RIGHT)
    return tmp_path / "hand-ins"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Where temporary files go."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


@pytest.mark.parametrize("moment", range(3))
def test_a_grader_that_is_killed_leaves_what_it_knew(folder, moment):
    rng, grades = random.Random(moment), folder.parent / "grades.csv"
    arguments = [sys.executable, "-c", SCRIPT, folder, grades, TOY]
    grader = subprocess.Popen(
        [*map(str, arguments)], stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(folder.parent)}
    )
    known = rng.randrange(1, 5)
    for _ in range(known):
        assert grader.stdout.readline() == b"6.0\n"
    time.sleep(rng.uniform(0, 0.5))
    grader.kill()
    grader.communicate()
    header, *rows = csv.reader(grades.open())
    assert tuple(header) == COLUMNS and len(rows) % 4 == 0 and len(rows) >= 4 * known
    assert {(row[2] == row[3], row[4]) for row in rows} == {(True, "passed")}


@pytest.mark.parametrize("depth", [1, 2])
def test_a_process_that_is_killed_costs_one_hand_in(folder, depth):
    """The referee (with all below it), or the nursery alone."""
    killed = []

    def kill(result):
        if not killed:
            (referee,) = (pid for pid in descendants(os.getpid()) if "referee" in said(pid))
            killed.append(referee if depth == 1 else next(p for p in descendants(referee) if "nursery" in said(p)))
            os.kill(killed[0], signal.SIGKILL)

    results = grade_paths([folder], checks=[TOY], progress=kill)
    assert len(results) == 5 and sorted(r["points"] for r in results)[1:] == [6.0] * 4, results
    assert wait_for(lambda: not Path(f"/proc/{killed[0]}").exists(), 30)


def said(pid: int) -> str:
    """How a process was started; "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("main(config)")[0]
    except OSError:
        return ""


def test_files_that_cannot_be_written_any_more_are_written_elsewhere(folder, elsewhere):
    place = folder.parent / "grades"

    def spoil(result):
        if place.is_dir():
            (place / "grades.csv").rename(folder.parent / "kept.csv")
            place.rmdir()
            place.touch()

    with pytest.raises(OSError, match=r"cannot be written any more .* the grades are in") as error:
        grade_paths([folder], place / "grades.csv", checks=[TOY], progress=spoil)
    (written,) = elsewhere.rglob("grades.csv")
    assert str(written.parent) in str(error.value)
    assert len(list(csv.reader(written.open()))) == 1 + 5 * 4
    assert len(list(csv.reader((folder.parent / "kept.csv").open()))) == 1 + 4
