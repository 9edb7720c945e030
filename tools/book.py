"""Render the book: execute the lessons that changed, fail on any warning and on any failing cell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tools import cache


def build(*options: str) -> int:
    """Run Jupyter Book with further `options`; 0 when it made the book without a warning."""
    jupyter_book = str(Path(sys.executable).with_name("jupyter-book"))
    command = [jupyter_book, "build", ".", "-n", "-W", "--keep-going", *options]
    if subprocess.run(command, cwd=cache.ROOT, env=cache.environment(), check=False).returncode:
        print("make book: failed; the first warning or traceback above says where", file=sys.stderr)
        return 1
    print(f"\nThe book is at {cache.ROOT / '_build' / 'html' / 'index.html'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(build(*sys.argv[1:]))
