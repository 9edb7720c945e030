"""``minidiff info``."""

from __future__ import annotations

import sys

import click

from .. import __version__
from ..recipes import available


@click.command()
def info() -> None:
    """Show versions, the device, and the checkpoints and recipes found."""
    import torch

    from ..systems.zoo import card, checkpoints

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    click.echo(f"minidiff {__version__}, torch {torch.__version__}, python {sys.version.split()[0]}, {device}")
    for name in checkpoints():
        found = card(name)
        click.echo(f"checkpoint {name}: {found['parameters'] / 1e6:.2f} M, {found['steps']} steps, {found['metrics']}")
    click.echo(f"recipes: {', '.join(available())}")
