"""The command line, one module a command."""

from __future__ import annotations

import errno
import sys

import click

from .. import __version__
from ..files import FULL
from .bench import bench
from .course import claims, grade
from .data import data
from .doctor import doctor
from .download import download
from .edit import edit
from .evaluate import evaluate
from .info import info
from .sample import sample
from .train import train

ROOM = "; what was written before is as it was: make room, and the same command goes on, or begins again"
TOO_LARGE = (
    "out of memory: lower --batch; in training raise training.accumulate, the parts that a batch is cut into, or lower "
    "training.batch (see minidiff train RECIPE --dry-run)"
)


def _out_of_memory(error: Exception) -> bool:
    said = str(error).lower()  # torch's allocator of the CPU raises a plain RuntimeError
    return isinstance(error, MemoryError) or any(words in said for words in ("out of memory", "can't allocate memory"))


class OneLine(click.Group):
    """A group that answers bad usage with one line and exit code 2."""

    def main(self, *args, **kwargs):
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.ctx.get_help())
            sys.exit(2)
        except click.Abort:
            sys.exit(130)
        except (click.ClickException, ValueError) as error:
            message = error.format_message() if isinstance(error, click.ClickException) else str(error)
            click.echo(f"minidiff: {' '.join(message.split())}", err=True)
            sys.exit(2)
        except OSError as error:  # of a disk or a folder; torch raises others for what it cannot do
            if error.errno in (None, errno.EPIPE):
                raise
            where = f"{error.filename}: " if error.filename else ""
            click.echo(f"minidiff: {where}{error.strerror}{ROOM if error.errno in FULL else ''}", err=True)
            sys.exit(1)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            click.echo(f"minidiff: {TOO_LARGE}", err=True)
            sys.exit(1)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=OneLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Guided diffusion, derived, computed and checked.

    \b
    Examples:
      minidiff sample digits --label 7 --scale 3
      minidiff sample glide "a small red ring above a blue square"
      minidiff train digits training.steps=200 --out runs/try
      minidiff evaluate digits --scale 1 --scale 3
      minidiff grade hand-ins/ --csv grades.csv
      minidiff info
      minidiff doctor
    """


def _nothing(ctx, option: click.Option, value):
    if option.default != "" and (value == "" or (isinstance(value, tuple) and "" in value)):
        raise click.BadParameter("an empty word is not accepted", ctx, option)
    return value


def _guarded(command: click.Command) -> click.Command:
    """A command, with those below it, whose options take no empty words, unless one is their default.

    Options with a callback check for themselves.
    """
    for option in command.params:
        if isinstance(option, click.Option) and option.callback is None:
            option.callback = _nothing
    for below in getattr(command, "commands", {}).values():
        _guarded(below)
    return command


for command in (train, sample, edit, evaluate, bench, data, download, info, doctor, grade, claims):
    main.add_command(_guarded(command))
