"""``minidiff download``."""

from __future__ import annotations

import click


@click.command()
@click.argument("preset")
@click.option("--out", type=click.Path(file_okay=False), default="weights", show_default=True, help="Folder.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def download(preset, out, quiet) -> None:
    """Fetch the released files of a PRESET (see info --presets); a broken transfer goes on where it stood.

    \b
    Examples:
      minidiff download adm-imagenet64
      minidiff download adm-classifier-64 --out /data/weights
    """
    from ..pretrained import download as fetch

    for found in fetch(preset, out, quiet=quiet):
        click.echo(f"{found.path}: {found.bytes / 1e6:.1f} MB; {found.checked}")
