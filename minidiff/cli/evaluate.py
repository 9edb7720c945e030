"""``minidiff evaluate``."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path

import click

from .. import __version__
from .stages import chain, enlarging, stages

INTERVALS = (
    "half-sample bootstrap, see minidiff.metrics.bootstrap; Wilson's for class_accuracy and what the oracle sees"
)


@click.command()
@click.argument("source", metavar="NAME_OR_PATH")
@click.option("--weights", type=click.Path(exists=True, dir_okay=False), help="Released file of a preset.")
@click.option("--scale", "scales", type=float, multiple=True, help="Guidance scale s, as often as wanted (default: 1).")
@click.option("--images", type=click.IntRange(min=1), help="Images to judge (default: 1000 drawn, or all of a set).")
@click.option("--captions", type=click.IntRange(min=2), help="Captions of each sheet (default: up to 500).")
@click.option("--again", type=click.IntRange(min=0), help="Captions drawn twice, for diversity (default: up to 100).")
@click.option("--steps", default="50", show_default=True, help="Sampling steps; or ddim25, or sections 90,60,60,20,20.")
@click.option("--sampler", type=click.Choice(["ddim", "ancestral"]), help="Sampler (default: ddim).")
@click.option("--classifier", help="Guide by this classifier instead of classifier-free; a preset as NAME=FILE.")
@click.option("--clip", help="Guide by this CLIP instead of classifier-free, a system that reads captions.")
@click.option("--rule", type=click.Choice(["score", "adm"]), default="score", show_default=True, help="Guidance rule.")
@enlarging
@click.option(
    "--reference", default="heldout", show_default=True, help="heldout, train, a folder, zip or npz file; shards."
)
@click.option("--features", help="A classifier, inception[:WEIGHTS], or for captions a CLIP (default: the data set's).")
@click.option("--bits-per-dim", "bound_images", type=click.IntRange(min=4), help="Bound on so many held-out images.")
@click.option(
    "--neighbours", type=click.IntRange(min=1), default=3, show_default=True, help="For precision and recall."
)
@click.option("--draws", type=click.IntRange(min=20), default=200, show_default=True, help="Resamples an interval.")
@click.option("--seed", type=int, default=0, show_default=True, help="Image i depends on the seed and i alone.")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images at a time.")
@click.option("--json", "out", type=click.Path(dir_okay=False), help="File to write (default: evaluation-NAME.json).")
@click.option("--card", is_flag=True, help="Write it into the card of the checkpoint as well.")
@click.option("--cpu", is_flag=True, help="Stay on the CPU.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@click.pass_context
def evaluate(context, source, out, card, cpu, bound_images, **options) -> None:
    """Judge a model, or a set of images, with 95 % intervals.

    Measures FID, KID, Inception score, precision, recall, class accuracy and bits per dimension; of a model that reads
    captions, what of them is in the pictures, CLIP score, Frechet distance and diversity, for held-out captions and for
    seen ones. NAME_OR_PATH is a committed checkpoint, the folder of a run (its averaged weights) or of what it
    published, a preset with its released --weights, or images: a folder, a zip archive, or an npz file with uint8
    images (N, height, width, channels) as arr_0 and labels as arr_1. A model draws as many images of each class. The
    first row judges as many real images: what could be reached. All of the table, and what it takes to measure it
    again, goes into a JSON file.

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
    from ..files import sha256, write_atomically
    from ..metrics.evaluation import bound, judge
    from ..metrics.processes import processes
    from ..metrics.sources import is_image_set, load_system
    from ..systems.zoo import weights_path

    described = weights_path(source).with_name("card.json") if card else None
    began = time.monotonic()
    with processes(cpu) as here:
        if is_image_set(source):
            _refuse(context, f"{source} is a set of images", MODELS | CAPTIONS | {"classifier"})
            plans = [_of_images(source, options, here)]
        else:
            system, recipe, weights = load_system(source, here.device, options["weights"])
            if recipe.system not in PLANNERS:
                raise click.UsageError(f"{source} is a {recipe.system}; {' or '.join(PLANNERS)} systems can be judged")
            planned, foreign = PLANNERS[recipe.system]
            _refuse(context, f"{source} is a {recipe.system} system", foreign)
            facts = {"recipe": recipe.to_dict(), "sha256": sha256(weights)}
            plans = planned(system, recipe, facts, options, here)
            if bound_images:
                how = (options["seed"], options["quiet"], options["draws"])
                plans[0].facts["bits_per_dim"] = bound(system, recipe, bound_images, here, *how)
        records = [judge(plan, here) for plan in plans]
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
    path = Path(out or f"evaluation-{Path(source).stem}.json")
    write_atomically(path, (json.dumps(found, indent=2) + "\n").encode())
    _show(found, path)


def _refuse(context: click.Context, what: str, foreign: set[str]) -> None:
    """Bad usage, where an option was given that this source has no use for."""
    for option in context.command.params:
        given = context.get_parameter_source(option.name) is not click.core.ParameterSource.DEFAULT
        if option.name in foreign and given:
            raise click.UsageError(f"{what}, which {option.opts[0]} is not for")


def _common(options: dict) -> dict:
    return {name: options[name] for name in ("seed", "draws", "batch", "quiet")}


def _cascade(system, options: dict, here) -> tuple[list[tuple], int]:
    """The stages after a system, and the size of the pictures that come out of the last one."""
    after = stages(system, options, here.device)
    return after, (after[-1][0] if after else system).shape[1]


def _drawing(system, after: list[tuple], told, scale: float, options: dict, here, bins: int, **guide):
    """Pictures that a cascade draws of what it is told, as a file would hold them: indices and images."""
    from ..metrics.sources import as_stored
    from ..sampler import ancestral, ddim
    from ..systems.draw import draw

    samplers = {"ddim": ddim(), "ancestral": ancestral("learned" if system.variance != "fixed" else "beta_tilde")}
    how = {"steps": chain(options["steps"]), "sampler": samplers.get(options["sampler"]), "rule": options["rule"]}
    where = (options["seed"], options["batch"], here.rank, here.world, after)
    parts = draw(system, told, *where, scale=scale, **how, **guide)
    return ((index, as_stored(images, bins)) for index, images in parts)


def _of_classes(system, recipe, facts: dict, options: dict, here) -> list:
    """Real images first, then what the system draws at each scale, each class in turn."""
    import torch

    from ..metrics.evaluation import ByClass, real_rows, references
    from ..metrics.networks import default_features, feature_network
    from ..metrics.sources import load_classifier

    guide = load_classifier(options["classifier"], here.device) if options["classifier"] else None
    network = feature_network(options["features"] or default_features(recipe), here.device)
    after, size = _cascade(system, options, here)
    reference, name, other = references(options["reference"], recipe.data, size, network)
    count, bins = options["images"] or 1000, recipe.data.bins
    labels = torch.arange(count) % system.n_classes if system.n_classes else torch.full((count,), -1)

    def drawn(scale: float):
        parts = _drawing(system, after, labels, scale, options, here, bins, classifier=guide)
        return ((index, images, labels[index]) for index, images in parts)

    rows = real_rows(other, count, here, options["batch"], options["seed"])
    rows += [(f"s = {scale:g}", scale, drawn(scale)) for scale in options["scales"] or (1.0,)]
    labelled = network.data is not None and network.data.name == recipe.data.name
    more = {"facts": facts | {"labels": "each class in turn"}, "neighbours": options["neighbours"]}
    return [ByClass(rows, count, reference, name, network, labelled, **more, **_common(options))]


def _of_captions(system, recipe, facts: dict, options: dict, here) -> list:
    """For the held-out and for the seen captions: real pictures first, then what the system draws at each scale.

    With shards as the reference: for captions of theirs, beside their pictures.
    """
    from dataclasses import replace

    import torch
    from torch.utils.data import TensorDataset

    from ..data.prompts import sheets
    from ..metrics.captions import ByCaption, asked, default_eye, eye
    from ..metrics.evaluation import read
    from ..systems.clip import load_clip

    data = recipe.data
    if options["reference"] != "heldout":
        data = replace(data, name="shards", path=options["reference"], train="", heldout="")
    guide = load_clip(options["clip"], str(here.device)) if options["clip"] else None
    judged_by = eye(options["features"] or default_eye(data), here.device)
    after, size = _cascade(system, options, here)
    found = sheets(data, size, options["captions"], options["seed"])
    n, again = len(found[0].captions), options["again"]
    again = min(n, 100 if again is None else again)
    number = torch.cat([torch.arange(n), torch.arange(again)])
    facts = facts | {"captions": n, "drawn_twice": again}
    if found[0].grammar:
        facts["asked"] = {s.name: {name: int(m.sum()) for name, m in asked(s.captions).items()} for s in found}

    def drawn(tokens, scale: float):
        parts = _drawing(system, after, tokens, scale, options, here, recipe.data.bins, clip=guide)
        return ((index, images, number[index]) for index, images in parts)

    plans = []
    for sheet in found:
        first, *others = sheet.pictures
        rows, reference = [], [first]
        if others:
            real = TensorDataset(torch.cat([first, others[0][:again]]), number)
            rows, reference = [(f"{sheet.name}, real", None, read(real, here, options["batch"]))], others[1:]
        tokens = system.tokens(sheet.captions)[number.to(system.device)]
        for scale in options["scales"] or (1.0,):
            rows.append((f"{sheet.name}, s = {scale:g}", scale, drawn(tokens, scale)))
        reference = TensorDataset(torch.cat(reference), torch.full((n * len(reference),), -1))
        name = f"real pictures of the same {data.name} captions"
        plan = ByCaption(rows, len(number), reference, name, sheet, judged_by, facts=facts, **_common(options))
        plans.append(plan)
    return plans


def _of_images(source: str, options: dict, here):
    """Real images first where the features know any, then the set."""
    from ..metrics.evaluation import ByClass, real_rows, references, some
    from ..metrics.networks import feature_network
    from ..metrics.sources import image_set

    if not options["features"]:
        raise click.UsageError(f"{source} is a set of images: name the network to compare them in with --features")
    found = image_set(source)
    network = feature_network(options["features"], here.device)
    reference, name, other = references(options["reference"], network.data, network.size, network)
    count, how = options["images"] or len(found), (here, options["batch"], options["seed"])
    if count > len(found):
        raise click.UsageError(f"{source} holds {len(found)} images, not {count}")
    rows = real_rows(other, count, *how)
    rows.append((Path(source).name, None, some(found, count, *how)))
    classes = getattr(found, "classes", range(network.n_classes))
    labelled = network.data is not None and len(classes) == network.n_classes
    more = {"neighbours": options["neighbours"]} | _common(options)
    return ByClass(rows, count, reference, name, network, labelled, **more)


MODELS = {"weights", "scales", "steps", "sampler", "rule", "upsamplers", "levels", "bound_images"}
CLASSES = {"images", "classifier", "neighbours"}
CAPTIONS = {"captions", "again", "clip"}
PLANNERS = {"class_conditional": (_of_classes, CAPTIONS), "glide": (_of_captions, CLASSES)}


def _onto_card(path: Path, found: dict) -> None:
    """Keep the measures where the checkpoint is described."""
    from ..files import write_atomically

    described = json.loads(path.read_text()) | {"evaluation": found}
    write_atomically(path, (json.dumps(described, indent=2) + "\n").encode())


def _versions(here) -> dict:
    """What the numbers were computed with."""
    import torch

    device = torch.cuda.get_device_name(here.device) if here.device.type == "cuda" else platform.machine()
    versions = {"minidiff": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return versions | {"device": device, "processes": here.world}


def _show(found: dict, path: Path) -> None:
    from ..metrics.captions import COLUMNS, FITS
    from ..metrics.report import table

    rows = {row["what"]: row["measures"] for row in found["rows"]}
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
    if "captions" in found and not any("frechet" in row for row in rows.values()):
        click.echo(f"no Frechet distance: {features['width']} features take {2 * features['width'] + 2} captions")
    if features["name"] == found["options"]["clip"]:
        click.echo(f"{features['name']} guides what it judges: its score says little")
    click.echo(
        f"{found['images']} images a row against {reference['images']} of {reference['name']}; {features['width']}"
        f" features of {features['name']}; {found['seconds']:g} s; all numbers in {path}"
    )
