"""Grading: hand-ins good, unfinished and hostile. One run over all of them, a good one after each hostile one."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import attacks
import nbformat
import pytest
from click.testing import CliRunner

from minidiff.cli import main
from minidiff.course.grading import grade_paths, sandbox
from minidiff.course.grading.files import collect, left_out
from minidiff.course.grading.grade import weaknesses
from tools.notebooks import generate

TOY = Path(__file__).with_name("l99_toy.py")
ROOT = Path(__file__).resolve().parents[2]
IDS = ["ex-99-marginal", "ex-99-scaled", "ex-99-gradient", "ex-99-number"]
FULL = {"ex-99-marginal": 3.0, "ex-99-scaled": 1.0, "ex-99-gradient": 1.0, "ex-99-number": 1.0}
HOSTILE = {
    name.lower(): getattr(attacks, name)
    for name in ("ENDLESS_IMPORT", "EXIT_IMPORT", "STOPS", "LIES", "YES", "MESSAGES", "THREADS")
}
LIMITS = {"time_limit_s": 15.0, "case_limit_s": 4.0, "memory_limit_mb": 1024}


def cell(source, *tags):
    return nbformat.v4.new_code_cell(textwrap.dedent(source).strip(), metadata={"tags": list(tags)} if tags else {})


def notebook(*cells, **metadata):
    return nbformat.writes(nbformat.v4.new_notebook(cells=list(cells), metadata=metadata))


SLOW = cell("import time\ntime.sleep(1000)")
MARGINAL = """
    def marginal(x0, level, eps):
        return level.alpha * x0 + level.sigma * eps
"""
TAGGED = notebook(
    cell("import torch\nfrom minidiff.course import NotAttempted\nfactor = 6", "setup"),
    cell("from minidiff.nowhere import nothing"),
    cell(MARGINAL, "exercise", "ex:ex-99-marginal", "name:marginal"),
    cell("check('ex-99-marginal', marginal)", "check", "ex:ex-99-marginal"),
    cell("def scaled(f, s):\n    return f(", "exercise", "ex:ex-99-scaled", "name:scaled"),
    SLOW,
    cell("def gradient(world, x, level):\n    raise NotAttempted", "exercise", "ex:ex-99-gradient"),
    cell("number = 0\nfor i in range(7):\n    number += factor", "exercise", "ex:ex-99-number", "name:number"),
)
UNTAGGED = notebook(  # as an editor leaves it that drops tags
    cell("%matplotlib inline\nimport torch\n!pip list\nunused = 1 / 0"),
    cell("helper_scale = 2 ** 0.5\nlog = []\nlog.append(3)"),
    SLOW,
    cell("%%bash\nsleep 1000"),
    cell("def helper(x):\n    return x * (helper_scale ** 2) / 2"),
    cell(MARGINAL.replace("return ", "return helper(1.0) * level.alpha * x0 + level.sigma * eps #")),
    cell("scaled = lambda f, s: lambda x: len(log) * s * f(x)"),
    cell("number = ...  # YOUR CODE HERE"),
    cell("samples = marginal(1, 2, 3)"),
)
DRESSED = notebook(  # what must work inside the sandbox, too
    cell("!pip install nothing \\\n    --quiet\nimport asyncio, torch"),
    cell("%%writefile helpers.py\ndef mix(a, x, b, y):\n    return a * x + b * y"),
    cell("from helpers import mix\n\ndef marginal(x0, level, eps):\n    return mix(level.alpha, x0, level.sigma, eps)"),
    cell("async def wait():\n    await asyncio.sleep(0.01)\n    return 42"),
    cell("input('ready? ')\nnumber = await wait()"),
)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A file that no hand-in may touch, the repository, and a process that none may kill."""
    victim = tmp_path_factory.mktemp("outside") / "victim.txt"
    victim.write_text("untouched")
    return {"victim": str(victim), "repository": str(ROOT), "pid": os.getpid()}


@pytest.fixture(scope="module")
def graded(places, tmp_path_factory):
    """Results by name of hand-in, all of one run."""
    folder = tmp_path_factory.mktemp("handins")
    sources = HOSTILE | {
        "python_attempts": attacks.attempts(attacks.PYTHON, **places),
        "native_attempts": attacks.attempts(attacks.NATIVE, **places),
        "asking_attempts": attacks.attempts(attacks.ASKING, **places),
    }
    for i, (name, source) in enumerate(sources.items()):
        (folder / f"{i:02}_{name}.py").write_text(attacks.RIGHT + source)
        (folder / f"{i:02}_{name}_then_good.py").write_text(attacks.RIGHT)
    (folder / "tagged.ipynb").write_text(TAGGED)
    (folder / "untagged.ipynb").write_text(UNTAGGED)
    (folder / "dressed.ipynb").write_text(DRESSED)
    (folder / "broken.ipynb").write_text('{"cells": 3}')
    (folder / "unknown.py").write_text("x = 1")
    (folder / "cannot_import.py").write_text("import minidiff.nowhere\n" + attacks.RIGHT)
    scratch = tmp_path_factory.mktemp("scratch")
    done = []
    files = (folder / "out/grades.csv", folder / "out/grades.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(scratch))
        patch.setattr("tempfile.tempdir", None)
        results = grade_paths([folder], *files, checks=[TOY], jobs=2, progress=done.append, **LIMITS)
    names = [r["handin"] for r in results]
    assert names == sorted(r["handin"] for r in done) == [str(path) for path in collect([folder])]
    return {Path(r["handin"]).stem.lstrip("0123456789_"): r for r in results} | {
        "folder": folder,
        "scratch": scratch,
        "all": results,
    }


def points(result):
    return {e["id"]: e["points"] for e in result["exercises"]}


def statuses(result):
    return [e["status"] for e in result["exercises"]]


@pytest.mark.parametrize("name", [*HOSTILE, "python_attempts", "native_attempts", "asking_attempts"])
def test_the_next_hand_in_gets_full_marks(graded, name):
    assert points(graded[f"{name}_then_good"]) == FULL


def test_hand_ins_that_stop(graded):
    for name, why in (("endless_import", "took too long"), ("exit_import", "ended its process (exit code 0)")):
        assert statuses(graded[name]) == ["stopped"] * 4
        assert {e["message"] for e in graded[name]["exercises"]} == {f"the hand-in {why}"}


def test_an_answer_that_stops_costs_that_exercise_alone(graded):
    assert statuses(graded["stops"]) == ["stopped", "stopped", "stopped", "passed"]
    assert [e["message"] for e in graded["stops"]["exercises"]] == [
        "the hand-in took too long",
        "the hand-in took too long",
        "the hand-in ended its process (exit code 3)",
        "",
    ]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
def test_too_many_threads_end_the_process(graded):
    assert statuses(graded["threads"]) == ["stopped", "passed", "passed", "passed"]
    assert graded["threads"]["exercises"][0]["message"] == "the hand-in ended its process (signal 9)"
    assert "still here" not in graded["threads"]["output"]


@pytest.mark.parametrize("name", ["lies", "yes"])
def test_no_point_by_printing_patching_or_agreeing(graded, name):
    assert set(points(graded[name]).values()) == {0.0}


def test_prints_are_kept_up_to_a_limit(graded):
    assert graded["lies"]["output"].startswith("PASS mean") and len(graded["lies"]["output"]) == 20_000


def test_messages_that_are_too_large_or_no_messages(graded):
    large, garbage, exits, _ = graded["messages"]["exercises"]
    assert statuses(graded["messages"]) == ["failed", "stopped", "failed", "passed"]
    assert "is too large" in large["message"] and "the hand-in sent a message of" in garbage["message"]
    assert exits["message"] == "of-a-mixture: SystemExit: 0 (line 38: sys.exit(0))"


def outcome(result, lines):
    assert points(result) == FULL, "it may write to its own folder, and answers right after the attempts"
    tried = [line.split(" ", 1) for line in result["output"].splitlines() if line[:1].isdigit()]
    wanted = lines.strip().splitlines()
    return {wanted[int(i)]: end for i, end in tried[: len(wanted)]}, wanted


def test_attempts_in_python_are_refused(graded, places):
    found, wanted = outcome(graded["python_attempts"], attacks.PYTHON)
    assert {line: end for line, end in found.items() if not end.startswith("refused")} == {}
    assert len(found) == len(wanted)
    assert Path(places["victim"]).read_text() == "untouched"
    assert os.listdir(Path(places["victim"]).parent) == ["victim.txt"]


def test_attempts_through_c_are_refused(graded, places):
    layers = " ".join(graded["native_attempts"]["layers"])
    if "Landlock" not in layers or "seccomp" not in layers:
        pytest.skip(f"this kernel offers only: {layers}")
    found, wanted = outcome(graded["native_attempts"], attacks.NATIVE)
    assert {line: end for line, end in found.items() if not end.startswith("refused")} == {}
    assert len(found) == len(wanted)
    assert Path(places["victim"]).read_text() == "untouched"


def test_nothing_can_be_asked_about_other_files(graded, places):
    if "private root" not in graded["asking_attempts"]["layers"]:
        pytest.skip(f"this system offers only: {graded['asking_attempts']['layers']}")
    found, wanted = outcome(graded["asking_attempts"], attacks.ASKING)
    assert {line: end for line, end in found.items() if not end.startswith("refused")} == {}
    assert len(found) == len(wanted)


def test_no_folder_is_left(graded):
    assert os.listdir(graded["scratch"]) == []


def test_a_tagged_notebook(graded):
    result = graded["tagged"]
    assert statuses(result) == ["passed", "missing", "not attempted", "passed"]
    assert "SyntaxError" in result["exercises"][1]["message"] and result["seconds"] < 60


def test_a_notebook_that_lost_its_tags(graded):
    result = graded["untagged"]
    assert statuses(result) == ["passed", "passed", "missing", "not attempted"]
    assert result["exercises"][2]["message"] == "the hand-in does not define gradient"


def test_a_notebook_of_magics_files_and_waiting(graded):
    assert statuses(graded["dressed"]) == ["passed", "missing", "missing", "passed"], graded["dressed"]


def test_hand_ins_that_cannot_be_graded(graded):
    assert graded["broken"]["message"] == "not a notebook of nbformat 4 or 3"
    assert "cannot tell which lesson" in graded["unknown"]["message"]


def test_a_file_goes_on_after_an_import_that_fails(graded):
    assert points(graded["cannot_import"]) == FULL


def test_layers_are_reported(graded):
    layers = graded["yes_then_good"]["layers"]
    assert "audit hook" in layers and any(layer.startswith("limits (CPU") for layer in layers)
    if sys.platform.startswith("linux"):
        assert "no capabilities" in layers and any("AS, DATA" in layer for layer in layers)


def test_files(graded):
    rows = list(csv.reader((graded["folder"] / "out/grades.csv").open()))
    assert rows[0] == ["hand-in", "exercise", "points", "max", "status", "message"]
    assert len(rows) == 1 + sum(max(1, len(r["exercises"])) for r in graded["all"])
    assert [str(graded["folder"] / "unknown.py"), "", "0", "0", "error"] in [row[:5] for row in rows]
    assert len({r["seed"] for r in graded["all"]}) == 1, "all are asked the same questions"
    assert json.loads((graded["folder"] / "out/grades.json").read_text()) == graded["all"]
    assert sorted(os.listdir(graded["folder"] / "out")) == ["grades.csv", "grades.json"]


def test_lessons_grade_themselves(tmp_path):
    """Each lesson as a notebook with its solutions gets full marks, as a student's notebook untouched it gets none."""
    made = {path: text for path, text in generate().items() if path.parent.name in ("notebooks", "reference")}
    for path, text in made.items():
        (tmp_path / f"{path.parent.name}-{path.name}").write_text(text, encoding="utf-8")
    for r in grade_paths([tmp_path], jobs=2, time_limit_s=600, case_limit_s=120) if made else ():
        solved = Path(r["handin"]).name.startswith("reference")
        assert (r["status"], r["points"]) == ("graded", r["max"] if solved else 0.0), (r["handin"], r)
        assert set(statuses(r)) == {"passed" if solved else "not attempted"}, (r["handin"], r["exercises"])


# -- without a sandbox -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"paths": ["nowhere.ipynb"]}, "there is no nowhere.ipynb; folders"),
        ({"paths": []}, "no hand-in found"),
        ({"paths": [TOY], "time_limit_s": 0}, "time_limit_s must be above 0 and at most 86400, got 0"),
        ({"paths": [TOY], "time_limit_s": float("inf")}, "time_limit_s must be above 0 and at most 86400, got inf"),
        ({"paths": [TOY], "memory_limit_mb": float("nan")}, "memory_limit_mb must be above 0 .* got nan"),
        ({"paths": [TOY], "memory_limit_mb": 10**20}, "memory_limit_mb must be above 0 .* got 100000000000000000000"),
        ({"paths": [TOY], "jobs": -1}, "jobs must be above 0 and at most 1024, got -1"),
        ({"paths": [TOY], "out_csv": TOY}, "would overwrite the hand-in"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        grade_paths(**arguments)


def test_windows_is_told_in_one_line(tmp_path):
    """Where ``resource`` and ``fcntl`` are not, and nothing that needs them may be imported."""
    (tmp_path / "x.py").touch()
    script = """
import sys
sys.modules |= dict.fromkeys(["resource", "fcntl"])
from click.testing import CliRunner
from minidiff.cli import main
sys.platform = "win32"
result = CliRunner().invoke(main, ["grade", *sys.argv[1:]])
print(result.output, result.exit_code)
"""
    arguments = [sys.executable, "-c", script, str(tmp_path / "x.py"), "--csv", str(tmp_path / "grades.csv")]
    said = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    assert said == "minidiff: grading needs Linux or macOS (on Windows: WSL)\n 2\n"


def test_weak_isolation_is_named():
    assert weaknesses([{"layers": ["Landlock (version 7)", "seccomp"]}, {"layers": []}]) == ""
    assert weaknesses([{"layers": ["audit hook"]}]).startswith("no Landlock: ")


def test_collect_leaves_out_hidden_files_checkpoints_and_links(tmp_path):
    for name in (
        "b/x.ipynb",
        "a.py",
        ".hidden/x.py",
        "b/.ipynb_checkpoints/x-checkpoint.ipynb",
        "__pycache__/x.py",
        "notes.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link.py").symlink_to(TOY)
    assert collect([tmp_path, tmp_path / "a.py"]) == [tmp_path / "a.py", tmp_path / "b/x.ipynb"]
    with pytest.raises(ValueError, match="is a link, which"):
        collect([tmp_path / "link.py"])


def test_what_is_no_hand_in_is_named(tmp_path):
    """Notebooks in capitals are hand-ins; archives may hold some."""
    for name in ("A.IPYNB", "b.Py", "c.zip", "d/e.tar.gz", "f.ipynb.zip", "g.docx", ".hidden.zip", "d/__MACOSX/h.zip"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{")
    (tmp_path / "h.py").symlink_to(TOY)
    assert collect([tmp_path]) == [tmp_path / "A.IPYNB", tmp_path / "b.Py"]
    archive, other = "an archive: unpack it", "neither a notebook nor a .py file"
    expected = {"c.zip": archive, "d/e.tar.gz": archive, "f.ipynb.zip": archive, "g.docx": other}
    found = {str(path.relative_to(tmp_path)): why for path, why in left_out([tmp_path]).items()}
    assert found == expected | {"h.py": "a link, which could point to anything"}
    for name, why in expected.items():
        with pytest.raises(ValueError, match=f"{name} is {why}"):
            collect([tmp_path / name])
    result = CliRunner().invoke(main, ["grade", str(tmp_path), "--csv", str(tmp_path / "grades.csv")])
    assert result.exit_code == 0, result.output
    said = [line for line in result.output.splitlines() if line.startswith("minidiff: ")]
    assert [line.split()[3] for line in said] == [str(tmp_path / name) for name in (*sorted(expected), "h.py")]
    for name in ("A.IPYNB", "b.Py"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"no hand-in found: .*c\.zip is an archive: unpack it"):
        collect([tmp_path])


def test_denied_folders_are_carved_out(tmp_path):
    for name in ("p/keep.py", "p/course/exercises.py", "p/course/checks/l01.py", "q/x.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    read, listed = sandbox.except_below(str(tmp_path), [tmp_path / "p/course/checks"])
    inside = lambda paths: sorted(os.path.relpath(p, tmp_path) for p in paths)
    assert inside(read) == ["p/course/exercises.py", "p/keep.py", "q"]
    assert inside(listed) == [".", "p", "p/course"]
    assert sandbox.except_below(str(tmp_path / "p/course/checks"), [tmp_path / "p"]) == ([], [])


def test_audit_hook_alone(places, tmp_path):
    """What is left where the kernel offers nothing (macOS)."""
    script = f"""
import os, sys
sys.path.insert(0, {str(Path(sandbox.__file__).parent)!r})
import sandbox
lines = {attacks.PYTHON.format(**places).strip().splitlines()!r}
readable = [sys.prefix, sys.base_prefix]
sandbox.add_audit_hook(readable, [{str(tmp_path)!r}])
open("mine", "w").close(); open("mine").close(); os.rename("mine", "mine2"); os.remove("mine2")
for line in lines:
    try:
        eval(line)
    except BaseException as error:
        assert not isinstance(error, (SyntaxError, NameError)), line
    else:
        print("DONE", line)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="follows processes in /proc")
def test_killing_the_grader_leaves_no_process(tmp_path):
    (tmp_path / "endless.py").write_text(attacks.RIGHT + attacks.ENDLESS_IMPORT)
    script = f"from minidiff.course.grading import grade_paths; grade_paths([{str(tmp_path)!r}], checks=[{str(TOY)!r}])"
    grader = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)})
    try:
        started = wait_for(lambda: len(found := descendants(grader.pid)) == 4 and found, 300)
    finally:
        grader.kill()
        grader.wait()
    assert wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started), 30)


def descendants(pid):
    """Ids of the processes below one: referee, nursery, supervisor, worker."""
    try:
        lists = [(thread / "children").read_text() for thread in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return []
    children = [int(child) for text in lists for child in text.split()]
    return [*children, *(d for child in children for d in descendants(child))]


def wait_for(condition, seconds):
    limit = time.monotonic() + seconds
    while not (result := condition()) and time.monotonic() < limit:
        time.sleep(0.05)
    assert result, f"not within {seconds} s"
    return result
