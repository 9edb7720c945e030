"""``minidiff bench``."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Images at a time.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Turns of every contestant.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the networks, but for the plain and default ones.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False), help="Write the figures here as well.")
def bench(batch, rounds, compiled, threads, json_path) -> None:
    """Race our U-Net against diffusers' of equal size: sampling, training, memory.

    \b
    Examples:
      minidiff bench
      minidiff bench --rounds 11 --threads 2 --json bench.json
    """
    import torch

    from ..bench import bench as race
    from ..files import require_writable, write_atomically

    if threads:
        torch.set_num_threads(threads)
    if json_path:
        require_writable(Path(json_path))
    result = race(batch, rounds, compiled)
    ceilings = ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in result["ceiling"].items())
    where = f"{result['device']}, {result['threads']} threads, batch {batch}"
    click.echo(f"{where}; at best, in convolutions and a matrix product: {ceilings}")
    header = ("task", "network", "images/s", "ours is faster by (range)", "GFLOP/s", "of ceiling", "peak MB")
    rows = [
        (
            row["task"],
            row["name"],
            f"{row['images_per_second']:.1f}",
            "{:.2f} ({:.2f}-{:.2f})".format(*row["ratio"]),
            f"{row['flops_per_second'] / 1e9:.0f}",
            f"{row['of_ceiling']:.0%}",
            f"{row['peak_memory'] / 1e6:.0f}",
        )
        for row in result["rows"]
    ]
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if json_path:
        write_atomically(Path(json_path), (json.dumps(result, indent=2) + "\n").encode())
