"""Render the book: run the pages that changed, fail on any warning and on any failing cell."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tools import cache, run_lessons


def render(*options: str) -> bool:
    """Let Jupyter Book make the pages, with further `options`; whether it did so without a warning."""
    jupyter_book = str(Path(sys.executable).with_name("jupyter-book"))
    command = [jupyter_book, "build", ".", "-n", "-W", "--keep-going", *options]
    made = False
    try:
        made = subprocess.run(command, cwd=cache.ROOT, env=cache.environment(), check=False).returncode == 0
    finally:
        if not made:  # a page that is not read again would not warn again, and the next build would succeed
            shutil.rmtree(cache.ROOT / "_build" / ".doctrees", ignore_errors=True)
    return made


def build(*options: str) -> int:
    """Make the book; 0 when no cell failed and nothing was warned of."""
    failures = run_lessons.fill()
    print(*failures, sep="\n\n", file=sys.stderr)
    if failures or not render(*options):
        print("make book: failed; the first warning or traceback above says where", file=sys.stderr)
        return 1
    print(f"\nThe book is at {cache.ROOT / '_build' / 'html' / 'index.html'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(build(*sys.argv[1:]))
