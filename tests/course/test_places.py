"""Where a grading is started from, and what else lies on the path: other copies of minidiff, other hand-ins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import attacks
import pytest

from minidiff.course.grading import process

TOY = Path(__file__).with_name("l99_toy.py")
ROOT = Path(__file__).resolve().parents[2]
PLANTED = "open({marker!r}, 'w').close()\n"


@pytest.fixture
def folder(tmp_path):
    """A folder of hand-ins, of which two are called as modules of Python are and leave a mark where they are run."""
    marker = str(tmp_path / "was run")
    (tmp_path / "hand-ins").mkdir()
    for name in ("csv.py", "secrets.py"):
        (tmp_path / "hand-ins" / name).write_text(PLANTED.format(marker=marker))
    return tmp_path / "hand-ins"


def start(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder.parent)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=500
    )


def test_no_hand_in_is_imported_by_the_grader(folder):
    done = start(folder, "-m", "minidiff", "grade", ".")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("0 of 0 points (error)") == 2
    assert sorted(os.listdir(folder)) == ["csv.py", "grades.csv", "secrets.py"]
    assert not (folder.parent / "was run").exists()


def test_another_copy_neither_judges_nor_is_read(folder):
    """The script lies among the hand-ins, and another checkout comes first on the path when the grading starts."""
    other, packages = folder.parent / "other", folder.parent / "site-packages"
    for place in (other, packages):
        for name in ("minidiff/__init__.py", "minidiff/course/checks/l99.py", "lessons/99.md"):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(PLANTED.format(marker=str(folder.parent / "was run")))
    (packages / "allowed.py").touch()
    tried = [
        str(place / name) for place in (other, packages) for name in ("minidiff/course/checks/l99.py", "lessons/99.md")
    ]
    tried += [
        str(folder / "csv.py"),
        str(folder / "start.py"),
        str(TOY),
        str(ROOT / "minidiff/course/checks/__init__.py"),
    ]
    lines = "\n".join(f"c(libc.open({os.fsencode(path)!r}, 0))" for path in [*tried, str(packages / "allowed.py")])
    (folder / "first.py").write_text(attacks.RIGHT + attacks.attempts(lines))
    (folder / "start.py").write_text(f"""
import sys
sys.path[:] = [entry for entry in sys.path if entry != {str(folder)!r}]
import json
from minidiff.course.grading import grade_paths, grade
sys.path[:] = [{str(other)!r}, {str(packages)!r}, {str(folder)!r}, *sys.path, {str(ROOT)!r}]
print(json.dumps(grade_paths(["first.py"], checks=[{str(TOY)!r}])))
""")
    done = start(folder, "start.py")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    assert (result["points"], result["max"]) == (6.0, 6.0), result
    ends = [line.split(" ", 1)[1] for line in result["output"].splitlines()]
    if "Landlock" in " ".join(result["layers"]):
        *outside, allowed = ends[: len(tried) + 1]
        assert {end.split(" ")[0] for end in outside} == {"refused"} and allowed == "DONE", ends
    assert not (folder.parent / "was run").exists()


def test_the_path_of_the_graders_processes(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path), "", *sys.path])
    path = process.import_path()
    assert str(tmp_path) not in path and "" not in path
    own = path.index(str(ROOT))
    assert all(Path(entry, "minidiff").exists() is False for entry in path[:own])


def test_hand_ins_in_a_readable_folder_are_denied(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIDIFF_DATA", str(tmp_path))
    (tmp_path / "a.py").touch()
    (tmp_path / "data.npz").touch()
    assert process.exposed([tmp_path / "a.py", "/nowhere/b.py"]) == [str(tmp_path / "a.py")]
    readable, _ = process.policy([tmp_path / "a.py"])
    assert str(tmp_path / "data.npz") in readable and str(tmp_path / "a.py") not in readable
