"""Lessons -> notebooks.

- ``notebooks/NN_slug.ipynb``: for students, on Jupyter, Colab and Binder: plain Markdown, stubs instead of solutions;
- ``build/reference/NN_slug.ipynb``: with solutions, for nbval;
- ``build/nbgrader/source/NN_slug/NN_slug.ipynb``: with solutions and nbgrader's marks, for an instructor.

Run after every change of a lesson: ``python tools/notebooks.py``; ``--check`` writes nothing and exits with 1 when
the committed student notebooks are not what the lessons make.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from tools.lessons import LessonError, read_all  # noqa: E402
from tools.render import Points, instructor, make_index, reference, student, text_of  # noqa: E402


def points(ex_id: str) -> float:
    """What an exercise is worth: the sum over its cases."""
    from minidiff.course.exercises import find

    return find(ex_id).points


def generate(root: Path = ROOT, worth: Points = points) -> dict[Path, str]:
    """All three kinds of notebooks: path -> text.

    Raises:
        LessonError: a lesson cannot be translated.
    """
    lessons = read_all(root)
    index = make_index(lessons, root)
    files = {}
    for lesson in lessons:
        stem = lesson.path.stem
        files[root / f"notebooks/{stem}.ipynb"] = text_of(student(lesson, index, root, worth))
        files[root / f"build/reference/{stem}.ipynb"] = text_of(reference(lesson))
        files[root / f"build/nbgrader/source/{stem}/{stem}.ipynb"] = text_of(instructor(lesson, index, root, worth))
    return files


def stale(root: Path = ROOT, worth: Points = points) -> list[str]:
    """What is wrong with the committed student notebooks: stale, missing or left over, one line each."""
    wanted = {p: t for p, t in generate(root, worth).items() if p.parent.name == "notebooks"}
    found = set((root / "notebooks").glob("*.ipynb"))
    lines = [f"missing: notebooks/{p.name}" for p in wanted if p not in found]
    lines += [
        f"stale: notebooks/{p.name}" for p, t in wanted.items() if p in found and p.read_text(encoding="utf-8") != t
    ]
    lines += [f"no lesson makes it: notebooks/{p.name}" for p in found - wanted.keys()]
    return sorted(lines)


def write(root: Path = ROOT, worth: Points = points) -> list[Path]:
    """Write the notebooks that changed, remove those of lessons that are gone; returns what changed."""
    files = generate(root, worth)
    old = {
        p
        for folder in ("notebooks", "build/reference", "build/nbgrader/source/*")
        for p in root.glob(f"{folder}/*.ipynb")
    }
    changed = sorted(old - files.keys())
    for path in changed:
        path.unlink()
    for path, text in files.items():
        if path not in old or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed


def nbval_command(*notebooks: Path) -> list[str]:
    """The command that runs reference notebooks and fails on a failing cell; run it with MINIDIFF_STRICT=1."""
    options = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=600", "-p", "no:cacheprovider", "-q"]
    return [sys.executable, "-m", "pytest", *options, *map(str, notebooks)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the notebooks from the lessons.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a notebook is stale")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder with lessons/ and _config.yml")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            if lines := stale(options.root):
                print(*lines, "run: python tools/notebooks.py", sep="\n", file=sys.stderr)
            return 1 if lines else 0
        for path in write(options.root):
            print(path.relative_to(options.root))
    except LessonError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
