"""Render the book: execute the lessons that changed, fail on any warning and on any failing cell."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from jupyter_cache.base import ProjectNb
from jupyter_cache.cache.db import NbProjectRecord
from jupyter_cache.cache.main import JupyterCacheBase
from jupyter_cache.executors.basic import REPORT_LEVEL, ExecutionWorkerLocalMProc, ProcessData
from jupyter_cache.readers import NbReadError

from tools import cache

READER = {"name": "myst_nb_md", "type": "plugin"}  # how the book reads a lesson: both find it in the cache


class Outputs(JupyterCacheBase):
    """The notebook cache. Tags are part of its key, so live cells have here those that `course_ext` gives them."""

    def get_project_notebook(self, uri_or_pk: int | str) -> ProjectNb:
        lesson = super().get_project_notebook(uri_or_pk)
        for cell in lesson.nb.cells:
            if "live" in (tags := cell.metadata.get("tags", [])):
                tags[:0] = ["remove-cell", "skip-execution"]
        return lesson

    def truncate_caches(self) -> None:
        """Keeps all: what another process adds at this moment, jupyter-cache would take for too old and delete."""


def lacking(outputs: Outputs) -> list[ProcessData]:
    """The lessons whose outputs the cache lacks, each with how to run it; later ones take longer and come first."""
    how = yaml.safe_load((cache.ROOT / "_config.yml").read_text(encoding="utf-8"))["execute"]
    work = []
    for path in sorted(cache.ROOT.glob("lessons/*.md"), reverse=True):
        lesson = outputs.add_nb_to_project(str(path), read_data=READER)
        with contextlib.suppress(NbReadError):  # Sphinx meets it too and says which lesson it is
            if outputs.get_cached_project_nb(lesson.pk) is None:
                work.append(ProcessData(lesson.pk, lesson.uri, outputs, how["timeout"], how["allow_errors"]))
    return work


def execute() -> str:
    """Run the lessons that the cache lacks, as many at a time as there are cores; the traceback of the first to fail.

    Jupyter Book runs what it does not find in the cache as well, but one after the other.
    """
    outputs = Outputs(os.environ["MINIDIFF_CACHE"])
    if not (work := lacking(outputs)):
        return ""
    multiprocessing.log_to_stderr(REPORT_LEVEL)
    # jupyter-cache's own pool cannot be interrupted: nbclient catches the signal, and the process waits for more work
    with multiprocessing.get_context("spawn").Pool(min(os.cpu_count() or 1, len(work)), maxtasksperchild=1) as pool:
        for outcome, uri in pool.imap_unordered(ExecutionWorkerLocalMProc(), work):
            if outcome == 1:  # a cell failed; what could not be run at all is left to Jupyter Book
                return f"{uri}: {NbProjectRecord.record_from_uri(uri, outputs.db).traceback}"
    return ""


def build(*options: str) -> int:
    """Run Jupyter Book with further `options`; 0 when it made the book without a warning."""
    os.environ |= cache.environment()
    failure = execute()
    jupyter_book = str(Path(sys.executable).with_name("jupyter-book"))
    command = [jupyter_book, "build", ".", "-n", "-W", "--keep-going", *options]
    built = False
    try:
        built = not failure and subprocess.run(command, cwd=cache.ROOT, check=False).returncode == 0
    finally:
        if not built:  # a page that is not read again would not warn again, and the next build would succeed
            shutil.rmtree(cache.ROOT / "_build" / ".doctrees", ignore_errors=True)
    if not built:
        print(f"{failure}\nmake book: failed; the first warning or traceback above says where", file=sys.stderr)
        return 1
    print(f"\nThe book is at {cache.ROOT / '_build' / 'html' / 'index.html'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(build(*sys.argv[1:]))
