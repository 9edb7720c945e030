"""Right answers get full marks in every form that people write and export them in; see ``honest``."""

from __future__ import annotations

import sys
from pathlib import Path

import honest
import pytest

from minidiff.course.grading import grade_paths

TOY = Path(__file__).with_name("l99_toy.py")
NEEDS_A_ROOT = {"kaggle.py", "own_home.py", "content_folder.ipynb"}  # writing where a sandbox without one forbids it


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """Results by file name, all of one run."""
    folder = tmp_path_factory.mktemp("hand-ins")
    for name, content in honest.FORMS.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    results = grade_paths([folder], checks=[TOY], jobs=2, case_limit_s=60, time_limit_s=120)
    return {Path(r["handin"]).name: r for r in results}


@pytest.mark.skipif(sys.platform == "win32", reason="grading needs Linux or macOS")
@pytest.mark.parametrize("name", honest.FORMS)
def test_full_marks(graded, name):
    result = graded[name]
    if name in NEEDS_A_ROOT and "private root" not in result["layers"]:
        pytest.skip("this system gives a hand-in no root of its own")
    wrong = [(e["id"], e["status"], e["message"]) for e in result["exercises"] if e["status"] != "passed"]
    assert (result["points"], result["max"], wrong) == (6.0, 6.0, []), (result["message"], result["output"][-1000:])
