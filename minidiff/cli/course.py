"""``minidiff grade`` and ``minidiff claims``: what instructors and readers of the course need."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from .finite import Finite


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("--csv", "csv_path", type=click.Path(dir_okay=False), default="grades.csv", show_default=True)
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Also all details: cases, what was printed.")
@click.option("--time-limit", type=Finite(1, 86_400), default=120.0, show_default=True, help="Seconds a hand-in.")
@click.option(
    "--memory-limit", type=click.IntRange(512, 1 << 20), default=2048, show_default=True, help="MB a hand-in."
)
@click.option("--jobs", type=click.IntRange(1, 1024), default=1, show_default=True, help="Hand-ins at a time.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the inputs that the cases draw (default: a new one).")
def grade(paths, csv_path, json_path, time_limit, memory_limit, jobs, seed) -> None:
    """Grade hand-ins: notebooks (.ipynb, .md), .py files, or folders of them. What a folder holds beside is named.

    Each runs in a process of its own, with limits and without network; what one does costs that one its points only.
    All are asked the same questions; --seed repeats those of an earlier run. The files are rewritten as each hand-in
    is known: a run that is stopped loses none of those.

    \b
    Examples:
      minidiff grade hand-ins/ --csv grades.csv
      minidiff grade alice.ipynb bob.py --time-limit 60
    """
    from ..course.grading import grade_paths
    from ..course.grading.book import name_of, printable
    from ..course.grading.files import left_out

    files = ", ".join(printable(path) for path in (csv_path, json_path) if path)
    written = {Path(path).resolve() for path in (csv_path, json_path) if path}
    _name({path: why for path, why in left_out(paths).items() if path.resolve() not in written})
    try:
        results = grade_paths(
            [Path(p) for p in paths],
            out_csv=csv_path,
            out_json=json_path,
            time_limit_s=time_limit,
            memory_limit_mb=memory_limit,
            jobs=jobs,
            seed=seed,
            progress=lambda r: _say(f"{name_of(r['handin'])}: {r['points']:g} of {r['max']:g} points ({r['status']})"),
        )
    except (ValueError, OSError) as error:
        raise click.UsageError(printable(str(error))) from error
    except KeyboardInterrupt:
        click.echo(f"minidiff: stopped; what was graded until now is in {files}", err=True)
        raise
    _say(f"{len(results)} hand-ins graded (--seed {results[0]['seed']}): {files}")


def _name(others: dict[Path, str], most: int = 20) -> None:
    """Say what is not graded, archives first: they may hold hand-ins."""
    from ..course.grading.book import printable

    lines = sorted((f"minidiff: left out: {path} is {why}" for path, why in others.items()), key=_no_archive)
    more = f"minidiff: left out: {len(lines) - most} more files"
    for line in lines[:most] + [more] * (len(lines) > most):
        click.echo(printable(line), err=True)


def _no_archive(line: str) -> bool:
    return not line.endswith("unpack it")


def _say(line: str) -> None:
    """Print, whatever the terminal can show, and whether or not anybody still reads it: the grades are in files."""
    try:
        encoding = sys.stdout.encoding or "utf-8"
        click.echo(line.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  nobody reads; Python must not fail on it at its end


@click.command()
@click.option("--records", type=click.Path(file_okay=False), help="Folder of records (default: $MINIDIFF_RECORDS).")
def claims(records) -> None:
    """List the claims that the lessons recorded in their last run, with what was measured.

    \b
    Examples:
      minidiff claims --records _build/records
    """
    from ..course.claims import ledger, load_records

    folder = records or os.environ.get("MINIDIFF_RECORDS")
    if not folder:
        raise click.UsageError("name the folder with --records, or set MINIDIFF_RECORDS; `make book` prints it")
    if not Path(folder).is_dir():
        raise click.UsageError(f"there is no folder {folder}; `make book` records claims and prints where")
    rows = ledger(load_records(Path(folder)))
    for row in rows:
        click.echo(f"{row['verdict']:<12} {row['id']:<40} {row['measured']}")
    click.echo(f"{len(rows)} claims")
