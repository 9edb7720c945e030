"""Which files are hand-ins, and what the others are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from minidiff.course.grading.formats import is_hand_in

LINK = "a link, which could point to anything"
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


def collect(paths: Iterable[str | Path]) -> list[Path]:
    """The hand-ins among files and folders: notebooks and .py, hidden ones and checkpoints left out, in stable order.

    Raises:
        ValueError: a path does not exist or is another kind of file, or there is no hand-in at all.
    """
    paths = list(map(Path, paths))
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            found.update(dict.fromkeys(file for file in _files_below(path) if not _why_not(file)))
        elif path.is_symlink():
            raise ValueError(f"{path} is {LINK}: name the file itself")
        elif path.is_file() and not (why := _why_not(path)):
            found[path] = None
        else:
            why = f"{path} is {why}" if path.is_file() else f"there is no {path}"
            raise ValueError(f"{why}; folders, notebooks (.ipynb, or as .md) and .py files are accepted")
    if not found:
        others = ", ".join(f"{path} is {why}" for path, why in list(left_out(paths).items())[:5])
        raise ValueError(
            f"no hand-in found: give notebooks (.ipynb), .py files or folders of them; {others}".rstrip("; ")
        )
    return list(found)


def left_out(paths: Iterable[str | Path]) -> dict[Path, str]:
    """The files in folders that are no hand-ins, and what they are instead; of hidden ones nothing is said."""
    files = [file for path in map(Path, paths) if path.is_dir() for file in _files_below(path)]
    return {file: why for file in files if (why := _why_not(file))}


def _files_below(folder: Path) -> list[Path]:
    hidden = lambda path: any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
    return sorted(path for path in folder.rglob("*") if not hidden(path) and (path.is_symlink() or path.is_file()))


def _why_not(path: Path) -> str:
    """What a file is instead of a hand-in; "" for one. A link could make the grader report on a file of its owner."""
    if path.is_symlink():
        return LINK
    if path.suffix.lower() in ARCHIVES:
        return "an archive: unpack it"
    return "" if is_hand_in(path) else "neither a notebook nor a .py file"
