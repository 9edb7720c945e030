"""``minidiff info``."""

from __future__ import annotations

import sys

import click

from .. import __version__
from ..recipes import available


@click.command()
@click.option("--presets", "published", is_flag=True, help="List the published models that can be loaded.")
def info(published) -> None:
    """Show versions, the device, and the checkpoints, presets and recipes that there are."""
    from ..pretrained import presets

    if published:
        for name, preset in presets().items():
            click.echo(f"{name:<28} {preset.parameters / 1e6:8.2f} M  {preset.file}")
        return

    import torch

    from ..store import card, checkpoints

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    click.echo(f"minidiff {__version__}, torch {torch.__version__}, python {sys.version.split()[0]}, {device}")
    for name in checkpoints():
        found = card(name)
        click.echo(f"checkpoint {name}: {found['parameters'] / 1e6:.2f} M, {found['steps']} steps, {found['metrics']}")
    named = ", ".join(presets())
    click.echo(f"presets, published models whose weights `minidiff download NAME` fetches: {named}")
    click.echo(f"recipes: {', '.join(available())}")
