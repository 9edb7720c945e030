"""``minidiff doctor``."""

from __future__ import annotations

import shutil
import sys
import textwrap

import click

WIDTH = 8, 19  # of state and question


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, exists=True), default=".")
def doctor(folder) -> None:
    """Say what of this machine will not do, and what to do about it.

    Looks at packages, checkpoints, FOLDER (this one when left out), memory, cores, GPU, and the files that are not part
    of the package. Exit code 1 where something is missing that nothing works without; a note is no failure.

    \b
    Examples:
      minidiff doctor
      minidiff doctor /content/drive/MyDrive/runs
    """
    from ..doctor import MISSING, NOTE, examine

    answers = examine(folder)
    width = max(60, min(shutil.get_terminal_size((120, 20)).columns, 160))
    for answer in answers:
        click.echo(_row(answer.state, answer.question, answer.found, width))
        if answer.do:
            click.echo(_row("", "", f"-> {answer.do}", width))
    missing, notes = (sum(answer.state == state for answer in answers) for state in (MISSING, NOTE))
    click.echo(f"{len(answers)} questions: {missing} missing, {notes} notes")
    sys.exit(1 if missing else 0)


def _row(state: str, question: str, text: str, width: int) -> str:
    first, second = WIDTH
    indent = " " * (first + second)
    begin = f"{state:<{first}}{question:<{second}}"
    lines = textwrap.wrap(text, width, initial_indent=begin, subsequent_indent=indent, break_long_words=False)
    return "\n".join(lines)
