"""The command line, one module a command."""

from __future__ import annotations

import sys

import click

from .. import __version__
from .bench import bench
from .course import claims, grade
from .data import data
from .download import download
from .evaluate import evaluate
from .info import info
from .sample import sample
from .train import train


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
    """


for command in (train, sample, evaluate, bench, data, download, info, grade, claims):
    main.add_command(command)
