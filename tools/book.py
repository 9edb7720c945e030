"""Render the book: execute the lessons that changed, fail on any warning and on any failing cell."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from jupyter_cache import get_cache
from jupyter_cache.cache.db import NbProjectRecord
from jupyter_cache.executors import load_executor

from tools import cache

READER = {"name": "myst_nb_md", "type": "plugin"}  # how the book reads a lesson: both find it in the cache


def execute() -> list[str]:
    """Run the lessons that the cache lacks, as many at a time as there are cores; the tracebacks of those that fail.

    Jupyter Book runs what it does not find in the cache as well, but one after the other.
    """
    how = yaml.safe_load((cache.ROOT / "_config.yml").read_text(encoding="utf-8"))["execute"]
    outputs = get_cache(os.environ["MINIDIFF_CACHE"])
    lessons = [outputs.add_nb_to_project(str(path), read_data=READER) for path in cache.ROOT.glob("lessons/*.md")]
    logger = logging.getLogger(__name__)
    logger.setLevel(logging.INFO)
    options = {"timeout": how["timeout"], "allow_errors": how["allow_errors"]}
    ran = load_executor("local-parallel", outputs, logger).run_and_cache(filter_pks=[x.pk for x in lessons], **options)
    records = (NbProjectRecord.record_from_uri(uri, outputs.db) for uri in ran.excepted + ran.errored)
    return [f"{record.uri}: {record.traceback or 'could not be run'}" for record in records]


def build(*options: str) -> int:
    """Run Jupyter Book with further `options`; 0 when it made the book without a warning."""
    os.environ |= cache.environment()
    failures = execute()
    jupyter_book = str(Path(sys.executable).with_name("jupyter-book"))
    command = [jupyter_book, "build", ".", "-n", "-W", "--keep-going", *options]
    built = False
    try:
        built = not failures and subprocess.run(command, cwd=cache.ROOT, check=False).returncode == 0
    finally:
        if not built:  # a page that is not read again would not warn again, and the next build would succeed
            shutil.rmtree(cache.ROOT / "_build" / ".doctrees", ignore_errors=True)
    if not built:
        print(*failures, sep="\n\n", file=sys.stderr)
        print("make book: failed; the first warning or traceback above says where", file=sys.stderr)
        return 1
    print(f"\nThe book is at {cache.ROOT / '_build' / 'html' / 'index.html'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(build(*sys.argv[1:]))
