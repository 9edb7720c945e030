"""Render the book: execute the lessons that changed, fail on any warning and on any failing cell."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tools import cache


def build(*options: str) -> int:
    """Run Jupyter Book with further `options`; 0 when it made the book without a warning."""
    jupyter_book = str(Path(sys.executable).with_name("jupyter-book"))
    command = [jupyter_book, "build", ".", "-n", "-W", "--keep-going", *options]
    built = False
    try:
        built = subprocess.run(command, cwd=cache.ROOT, env=cache.environment(), check=False).returncode == 0
    finally:
        if not built:  # a page that is not read again would not warn again, and the next build would succeed
            shutil.rmtree(cache.ROOT / "_build" / ".doctrees", ignore_errors=True)
    if not built:
        print("make book: failed; the first warning or traceback above says where", file=sys.stderr)
        return 1
    print(f"\nThe book is at {cache.ROOT / '_build' / 'html' / 'index.html'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(build(*sys.argv[1:]))
