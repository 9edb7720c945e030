"""Run each lesson once, by nbval, and keep what it showed: the book renders from there and runs nothing itself.

`python -m tools.run_lessons` runs every page with code that the cache lacks, as many at a time as there are cores, and
fails when a cell does. Only a page that ran to its end is kept, and with it the record of its claims.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.cache.main import JupyterCacheBase
from jupyter_cache.readers import get_reader
from myst_nb.core.read import is_myst_markdown_notebook

from tools import cache
from tools.notebooks import nbval_command

TAIL = 6000  # characters of a failed run's report; the traceback stands at its end


class Outputs(JupyterCacheBase):
    """The notebook cache."""

    def truncate_caches(self) -> None:
        """Keeps all: outputs of a lesson as it was before are of use when an edit is taken back."""


@dataclass(frozen=True)
class Page:
    """A page of the book with code, as the book reads it; `kept` is what the cache knows of its run, or None."""

    path: Path
    notebook: nbformat.NotebookNode
    kept: dict[str, Any] | None


@dataclass(frozen=True)
class Ran:
    """What came of running a page: its notebook with outputs and the record of its claims, or a failure."""

    page: Page
    seconds: float
    failure: str = ""
    notebook: nbformat.NotebookNode | None = None
    record: dict[str, Any] | None = None


def open_cache(root: Path = cache.ROOT) -> Outputs:
    """The cache of the tree as it is now."""
    return Outputs(cache.prepare(root) / "outputs")


def pages(outputs: Outputs, root: Path = cache.ROOT) -> list[Page]:
    """All pages with code, the lessons first, in the order of their numbers.

    Raises:
        ValueError: a page cannot be read; says which.
    """
    found = []
    for path in [*sorted(root.glob("lessons/*.md")), *sorted(root.glob("book/**/*.md"))]:
        if is_myst_markdown_notebook(path.read_text(encoding="utf-8")):
            notebook, kept = read(path), None
            with contextlib.suppress(KeyError):
                kept = outputs.match_cache_notebook(notebook).data
            found.append(Page(path, notebook, kept))
    return found


def read(path: Path) -> nbformat.NotebookNode:
    """A page as the book reads it. Tags are part of the cache's key, so live cells have those of `course_ext`."""
    try:
        notebook = get_reader({"name": "myst_nb_md", "type": "plugin"})(str(path))
    except Exception as error:
        raise ValueError(f"{path}: {error}") from error
    for cell in notebook.cells:
        if "live" in (tags := cell.metadata.get("tags", [])):
            tags[:0] = ["remove-cell", "skip-execution"]
    return notebook


def run(page: Page, environment: dict[str, str]) -> Ran:
    """Run a page in a process of its own, in an empty folder."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="minidiff-") as folder:
        source, shown, records = (Path(folder, name) for name in (f"{page.path.stem}.ipynb", "shown.ipynb", "records"))
        nbformat.write(page.notebook, source)
        done = subprocess.run(
            [*nbval_command(source), "-p", "tools.shown", f"--shown={shown}"],
            cwd=cache.ROOT,
            env=environment | {"MINIDIFF_RECORDS": str(records)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - began
        if done.returncode != 0:
            return Ran(page, seconds, failure=done.stdout[-TAIL:])
        record = next((json.loads(path.read_text(encoding="utf-8")) for path in records.glob("*.json")), None)
        return Ran(page, seconds, notebook=nbformat.read(shown, as_version=4), record=record)


def run_all(lacking: list[Page], root: Path = cache.ROOT) -> Iterator[Ran]:
    """Run pages side by side, each result as it comes; later lessons take longer and come first."""
    environment = cache.environment(root) | {"MINIDIFF_STRICT": "1"}
    environment.pop("MPLBACKEND", None)
    pool = ThreadPoolExecutor(max_workers=os.cpu_count())
    try:
        runs = [pool.submit(run, page, environment) for page in reversed(lacking)]
        yield from (done.result() for done in as_completed(runs))
    finally:
        pool.shutdown(cancel_futures=True)


def keep(outputs: Outputs, ran: Ran) -> None:
    """Put what a page showed into the cache."""
    data = {"execution_seconds": ran.seconds, "record": ran.record}
    bundle = CacheBundleIn(ran.notebook, ran.page.path, data=data)
    outputs.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def fill(root: Path = cache.ROOT, names: tuple[str, ...] = ()) -> list[str]:
    """Run the pages that the cache lacks, say how long each took, and write the records of all; what failed.

    Args:
        names: run the pages whose file names begin with one of these, and those again that the cache has.
    """
    outputs = open_cache(root)
    try:
        found = pages(outputs, root)
    except ValueError as error:
        return [str(error)]
    lacking = [page for page in found if (page.path.name.startswith(names) if names else page.kept is None)]
    for page in found:
        if page.kept and page not in lacking:
            print(
                f"kept {page.kept['execution_seconds']:5.0f} s  {page.path.stem}: not changed since it ran", flush=True
            )
    failures = []
    for ran in run_all(lacking, root):
        print(f"{'FAIL' if ran.failure else 'ok  '} {ran.seconds:5.0f} s  {ran.page.path.stem}", flush=True)
        if cache.folder(root) != outputs.path.parent:
            return [*failures, "what the lessons import or read was changed while they ran; run them again"]
        if ran.failure:
            failures.append(f"{ran.page.path}:\n{ran.failure}")
        else:
            keep(outputs, ran)
    write_records(outputs, root)
    return failures


def write_records(outputs: Outputs, root: Path = cache.ROOT) -> None:
    """The records of the runs whose outputs the book shows, for its status page; no others are left."""
    folder = outputs.path.parent / "records"
    for old in folder.glob("*.json"):
        old.unlink()
    for page in pages(outputs, root):
        if page.kept and (record := page.kept["record"]):
            text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
            (folder / f"{record['lesson']}.json").write_text(text, encoding="utf-8")


def shown(path: Path, root: Path = cache.ROOT) -> nbformat.NotebookNode | None:
    """A page as it was run, with its outputs; None when the cache lacks it."""
    with contextlib.suppress(KeyError):
        return open_cache(root).merge_match_into_notebook(read(path))[1]
    return None


def times(root: Path = cache.ROOT) -> dict[str, float]:
    """Seconds that each page took when it ran, the slowest first."""
    kept = {page.path.stem: page.kept["execution_seconds"] for page in pages(open_cache(root), root) if page.kept}
    return dict(sorted(kept.items(), key=lambda item: -item[1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="run (again) only pages whose file names begin so")
    failures = fill(names=tuple(parser.parse_args().names))
    print(*failures, sep="\n\n")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
