"""Files that commands write: proved writable before the work, and never somebody else's."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..files import require_writable


def checked(path: Path, suffixes: tuple[str, ...], facts: set[str]) -> Path:
    """A file of pictures that can be written, and the JSON beside it.

    Args:
        path: The file.
        suffixes: That it may have.
        facts: Keys of the JSON by which an earlier one of the same command is known, which may be replaced.

    Raises:
        UsageError: for another kind of file, or a JSON beside it that is somebody's.
        ValueError: for a place that cannot be written to.
    """
    if path.suffix not in suffixes:
        raise click.UsageError(f"--out must end in {' or '.join(suffixes)}, got {path.name}")
    beside = path.with_suffix(".json")
    for file in (path, beside):
        require_writable(file)
    if beside.exists() and not _ours(beside, facts):
        raise click.UsageError(f"{beside} was not written by this command and would be replaced; choose another --out")
    return path


def _ours(path: Path, facts: set[str]) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and facts <= found.keys()
