"""Where the outputs of executed lessons live.

The notebook cache keys on a notebook's code only and does not see that the code it imports has changed. So its folder
is named after everything the lessons import or read, and after what runs them: a change there starts an empty cache,
and the records of claims beside it start afresh too.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INPUTS = ("minidiff", "data", "requirements.lock", "tools/run_lessons.py", "tools/shown.py")


def key(root: Path = ROOT) -> str:
    """Hash of the names and bytes of all that lessons depend on besides their own text."""
    digest = hashlib.sha256(platform.python_version().encode())
    for name in INPUTS:
        top = root / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def folder(root: Path = ROOT) -> Path:
    """The cache folder of the tree as it is now."""
    return root / "_build" / ".cache" / key(root)


def prepare(root: Path = ROOT) -> Path:
    """Make the cache folder and remove those of earlier trees."""
    here = folder(root)
    (here / "records").mkdir(parents=True, exist_ok=True)
    for other in here.parent.iterdir():
        if other != here:
            shutil.rmtree(other)
    return here


def environment(root: Path = ROOT) -> dict[str, str]:
    """This process's environment plus what every run of lessons gets: records, no network, one thread unless asked for
    more. On a busy machine two threads of a small network wait for each other most of the time: minutes, not seconds.
    """
    here = prepare(root)
    return (
        {"OMP_NUM_THREADS": "1"}
        | os.environ
        | {
            "MINIDIFF_CACHE": str(here / "outputs"),
            "MINIDIFF_RECORDS": str(here / "records"),
            "HF_HUB_OFFLINE": "1",
        }
    )
