"""``minidiff evaluate``."""

from __future__ import annotations

import json
import platform
import time
from dataclasses import replace
from pathlib import Path

import click

from .. import __version__
from .finite import Finite
from .systems import DRAWING, drawing_of, drawing_options, scale_of, stages_of

INTERVALS = (
    "half-sample bootstrap, see minidiff.metrics.bootstrap; Wilson's for class_accuracy and what the oracle sees"
)
FOREIGN = {  # options that a kind of source has no use for
    "images": {*DRAWING, "scales", "bound_images", "captions", "again"},
    "class": {"captions", "again"},
    "caption": {"images", "neighbours"},
}


@click.command()
@click.argument("source", metavar="NAME_OR_PATH")
@click.option(
    "--scale",
    "scales",
    type=Finite(),
    multiple=True,
    help="Guidance scale s, as often as wanted (default: as sample's).",
)
@click.option("--images", type=click.IntRange(min=1), help="Images to judge (default: 1000 drawn, or all of a set).")
@click.option("--captions", type=click.IntRange(min=2), help="Captions of each sheet (default: up to 500).")
@click.option("--again", type=click.IntRange(min=0), help="Captions drawn twice, for diversity (default: up to 100).")
@click.option(
    "--reference", default="heldout", show_default=True, help="heldout, train, a folder, zip or npz file; shards."
)
@click.option("--features", help="A classifier, inception[:WEIGHTS], or for captions a CLIP (default: the data set's).")
@click.option("--bits-per-dim", "bound_images", type=click.IntRange(min=4), help="Bound on so many held-out images.")
@click.option(
    "--neighbours", type=click.IntRange(min=1), default=3, show_default=True, help="For precision and recall."
)
@click.option("--draws", type=click.IntRange(min=20), default=200, show_default=True, help="Resamples an interval.")
@click.option("--json", "out", type=click.Path(dir_okay=False), help="File to write (default: evaluation-NAME.json).")
@click.option("--card", is_flag=True, help="Write it into the card of the checkpoint as well.")
@click.option("--cpu", is_flag=True, help="Stay on the CPU.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@drawing_options
@click.pass_context
def evaluate(context, source, out, card, cpu, bound_images, quiet, **options) -> None:
    """Judge a model, or a set of images, with 95 % intervals.

    Measures FID, KID, Inception score, precision, recall, class accuracy and bits per dimension; of a model that reads
    captions, what of them is in the pictures, CLIP score, Frechet distance and diversity, for held-out captions and for
    seen ones. NAME_OR_PATH is a committed checkpoint, the folder of a run (its averaged weights) or of what it
    published, a preset with its released --weights, or images: a folder, a zip archive, or an npz file with uint8
    images (N, height, width, channels) as arr_0 and labels as arr_1. A model draws as many images of each class, and as
    `minidiff sample` does where nothing else is said: with the steps, sampler and scale that were published. The first
    row judges as many real images: what could be reached. All of the table, and what it takes to measure it again, goes
    into a JSON file.

    \b
    Examples:
      minidiff evaluate digits --scale 1 --scale 3
      minidiff evaluate runs/mine --images 2000 --bits-per-dim 64
      minidiff evaluate drawn.npz --features digits-classifier-clean
      minidiff evaluate glide --captions 500 --scale 1 --scale 3
      minidiff evaluate glide --captions 100 --scale 3 --upsample glide-up32
      minidiff evaluate glide-base --weights base.pt --reference coco/val --captions 30000 --features inception
      torchrun --standalone --nproc-per-node 2 -m minidiff evaluate shapes16 --images 5000
    """
    from ..files import require_writable, write_atomically
    from ..metrics.evaluation import judge
    from ..metrics.plans import Evaluation
    from ..metrics.processes import processes
    from ..store import weights_path

    described = weights_path(source).with_name("card.json") if card else None
    path = Path(out or f"evaluation-{Path(source).stem}.json")
    for file in filter(None, (path, described)):
        require_writable(file)
    began = time.monotonic()
    same = ("images", "captions", "again", "reference", "features", "neighbours", "seed", "draws", "batch")
    how = Evaluation(quiet=quiet, **{name: options[name] for name in same})
    with processes(cpu) as here:
        records = [judge(plan, here) for plan in _plans(context, source, how, here, options, bound_images)]
        if here.rank > 0:
            return
    found = records[0] | {"rows": [row for record in records for row in record["rows"]]}
    found |= {
        "source": source,
        "options": {name: value for name, value in context.params.items() if name != "out"},
        "intervals": {"level": 0.95, "method": INTERVALS},
        "versions": _versions(here),
        "seconds": round(time.monotonic() - began, 1),
    }
    if described:
        _onto_card(described, found)
    write_atomically(path, (json.dumps(found, indent=2) + "\n").encode())
    _show(found, path)


def _plans(context, source: str, how, here, options: dict, bound_images: int | None) -> list:
    """What to judge: a set of images once, of a model as many sheets as its kind of values has."""
    from ..files import sha256
    from ..metrics.evaluation import bound
    from ..metrics.plans import judges, plan_of_images, plans
    from ..metrics.sources import is_image_set

    if is_image_set(source):
        _refuse(context, f"{source} is a set of images", FOREIGN["images"])
        return [plan_of_images(source, how, here)]
    drawing, base = drawing_of(source, options, here.device)
    judged = judges(drawing)
    _refuse(context, f"{source} is judged by {judged}", FOREIGN[judged])
    how = replace(how, scales=options["scales"] or (scale_of(drawing, judged == "caption"),))
    stages = stages_of(drawing, how.scales[0] if len(how.scales) == 1 else None)
    facts = {"recipe": base.recipe.to_plain(), "sha256": sha256(base.path), "stages": stages}
    planned = plans(drawing, base.recipe, how, here, facts)
    if bound_images:
        more = (how.seed, how.quiet, how.draws)
        planned[0].facts["bits_per_dim"] = bound(base.system, base.recipe, bound_images, here, *more)
    return planned


def _refuse(context: click.Context, what: str, foreign: set[str]) -> None:
    """Bad usage, where an option was given that this source has no use for."""
    for option in context.command.params:
        given = context.get_parameter_source(option.name) is not click.core.ParameterSource.DEFAULT
        if option.name in foreign and given:
            raise click.UsageError(f"{what}, which {option.opts[0]} is not for: leave it out")


def _onto_card(path: Path, found: dict) -> None:
    """Keep the measures where the checkpoint is described."""
    from ..files import write_atomically

    described = json.loads(path.read_text(encoding="utf-8")) | {"evaluation": found}
    write_atomically(path, (json.dumps(described, indent=2) + "\n").encode())


def _versions(here) -> dict:
    """What the numbers were computed with."""
    import torch

    device = torch.cuda.get_device_name(here.device) if here.device.type == "cuda" else platform.machine()
    versions = {"minidiff": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return versions | {"device": device, "processes": here.world}


def _called(row: dict) -> str:
    """What a row of the table is called; with the number of images where some are broken."""
    return f"{row['what']} ({row['images']}, {row['left_out']} broken)" if row["left_out"] else row["what"]


def _drawn(stage: dict) -> str:
    scale = "" if stage["scale"] is None else f", s = {stage['scale']:g}"
    return f"{stage['system']}: {stage['steps']} steps, {stage['sampler']}{scale}"


def _show(found: dict, path: Path) -> None:
    from ..metrics.captions import COLUMNS, FITS
    from ..metrics.report import table

    rows = {_called(row): row["measures"] for row in found["rows"]}
    if "captions" in found:
        known = [FITS, COLUMNS]
        there = [{k: v for k, v in columns.items() if any(k in row for row in rows.values())} for columns in known]
        tables = [table(rows, columns) for columns in there if columns]
    else:
        tables = [table(rows)]
    click.echo("\n\n".join(tables))
    if bits := found.get("bits_per_dim"):
        value, low, high = bits["total"].values()
        click.echo(f"bits/dim {value:.3f} [{low:.3f}, {high:.3f}] on {bits['images']} held-out images")
    reference, features = found["reference"], found["features"]
    if stages := found.get("stages"):
        click.echo(f"drawn by {'; '.join(map(_drawn, stages))}")
    if found.get("labels", "").startswith("not compared"):
        click.echo(f"no accuracy: labels {found['labels']}")
    if reference["left_out"]:
        click.echo(f"{reference['left_out']} broken images of the reference are left out")
    if "captions" in found and not any("frechet" in row for row in rows.values()):
        click.echo(f"no Frechet distance: {features['width']} features take {2 * features['width'] + 2} captions")
    if features["name"] == found["options"]["clip"]:
        click.echo(f"{features['name']} guides what it judges: its score says little")
    click.echo(
        f"{found['images']} images a row against {reference['images']} of {reference['name']}; {features['width']}"
        f" features of {features['name']}; {found['seconds']:g} s; all numbers in {path}"
    )
