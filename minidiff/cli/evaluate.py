"""``minidiff evaluate``."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path

import click

from .. import __version__

INTERVALS = "half-sample bootstrap, see minidiff.metrics.bootstrap; Wilson's for class_accuracy"


@click.command()
@click.argument("source", metavar="NAME_OR_PATH")
@click.option("--weights", type=click.Path(exists=True, dir_okay=False), help="Released file of a preset.")
@click.option("--scale", "scales", type=float, multiple=True, help="Guidance scale s, as often as wanted (default: 1).")
@click.option("--images", type=click.IntRange(min=1), help="Images to judge (default: 1000 drawn, or all of a set).")
@click.option("--steps", default="50", show_default=True, help="Sampling steps; or ddim25, or sections 90,60,60,20,20.")
@click.option("--sampler", type=click.Choice(["ddim", "ancestral"]), help="Sampler (default: ddim).")
@click.option("--classifier", help="Guide by this classifier instead of classifier-free; a preset as NAME=FILE.")
@click.option("--rule", type=click.Choice(["score", "adm"]), default="score", show_default=True, help="Guidance rule.")
@click.option("--reference", default="heldout", show_default=True, help="heldout, train, or a folder, zip or npz file.")
@click.option("--features", help="A classifier, or inception[:WEIGHTS] (default: the data set's classifier).")
@click.option("--bits-per-dim", "bound_images", type=click.IntRange(min=4), help="Bound on so many held-out images.")
@click.option(
    "--neighbours", type=click.IntRange(min=1), default=3, show_default=True, help="For precision and recall."
)
@click.option("--draws", type=click.IntRange(min=20), default=200, show_default=True, help="Resamples an interval.")
@click.option("--seed", type=int, default=0, show_default=True, help="Image i depends on the seed and i alone.")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images at a time.")
@click.option("--json", "out", type=click.Path(dir_okay=False), help="File to write (default: evaluation-NAME.json).")
@click.option("--card", is_flag=True, help="Write it into the card of the committed checkpoint as well.")
@click.option("--cpu", is_flag=True, help="Stay on the CPU.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@click.pass_context
def evaluate(context, source, out, card, cpu, quiet, bound_images, seed, draws, neighbours, batch, **options) -> None:
    """Judge a model, or a set of images, with 95 % intervals.

    Measures FID, KID, Inception score, precision, recall, class accuracy and bits per dimension. NAME_OR_PATH is a
    committed checkpoint, the folder of a run (its averaged weights), a preset with its released --weights, or images: a
    folder, a zip archive, or an npz file with uint8 images (N, height, width, channels) as arr_0 and labels as arr_1. A
    model draws as many images of each class. The first row judges as many real images: what could be reached. All of
    the table, and what it takes to measure it again, goes into a JSON file.

    \b
    Examples:
      minidiff evaluate digits --scale 1 --scale 3
      minidiff evaluate runs/mine --images 2000 --bits-per-dim 64
      minidiff evaluate drawn.npz --features digits-classifier-clean
      torchrun --standalone --nproc-per-node 2 -m minidiff evaluate shapes16 --images 5000
    """
    from ..files import write_atomically
    from ..metrics.evaluation import bound, judge
    from ..metrics.processes import processes
    from ..metrics.sources import is_image_set, load_system

    began, common = time.monotonic(), {"seed": seed, "draws": draws, "neighbours": neighbours, "quiet": quiet}
    with processes(cpu) as here:
        if is_image_set(source):
            if bound_images or any(options[name] for name in ("weights", "scales", "classifier", "sampler")):
                raise click.UsageError(f"{source} is a set of images; guidance, samplers and the bound are for models")
            found = judge(_plan_images(source, options, here, batch, common), here)
        else:
            system, recipe, weights = load_system(source, here.device, options["weights"])
            plan = _plan_system(source, system, recipe, weights, options, here, batch, common)
            if bound_images:
                plan.facts["bits_per_dim"] = bound(system, recipe, bound_images, here, seed, quiet, draws)
            found = judge(plan, here)
        if found is None:
            return
    found |= {
        "source": source,
        "options": {name: value for name, value in context.params.items() if name != "out"},
        "intervals": {"level": 0.95, "method": INTERVALS},
        "versions": _versions(here),
        "seconds": round(time.monotonic() - began, 1),
    }
    if card:
        _onto_card(source, found)
    path = Path(out or f"evaluation-{Path(source).stem}.json")
    write_atomically(path, (json.dumps(found, indent=2) + "\n").encode())
    _show(found, path)


def _plan_system(source, system, recipe, weights, options: dict, here, batch: int, common: dict):
    """Real images first, then what the system draws at each scale."""
    import torch

    from ..files import sha256
    from ..metrics.evaluation import Plan, real_rows, references
    from ..metrics.networks import default_features, feature_network
    from ..metrics.sources import as_stored, load_classifier
    from ..sampler import ancestral, ddim
    from ..systems.draw import draw

    if recipe.system != "class_conditional":
        raise click.UsageError(f"{source} is a {recipe.system}; a class_conditional system can be judged")
    guide = load_classifier(options["classifier"], here.device) if options["classifier"] else None
    network = feature_network(options["features"] or default_features(recipe), here.device)
    reference, name, other = references(options["reference"], recipe.data, recipe.network.size, network)
    count, steps = options["images"] or 1000, options["steps"]
    samplers = {"ddim": ddim(), "ancestral": ancestral("learned" if system.variance != "fixed" else "beta_tilde")}
    how = {
        "steps": int(steps) if steps.isdigit() else steps,
        "sampler": samplers.get(options["sampler"]),
        "classifier": guide,
        "rule": options["rule"],
    }
    labels = torch.arange(count) % system.n_classes if system.n_classes else torch.full((count,), -1)

    def drawn(scale: float):
        parts = draw(system, labels, common["seed"], batch, here.rank, here.world, scale=scale, **how)
        return ((index, as_stored(images, recipe.data.bins), labels[index]) for index, images in parts)

    rows = real_rows(other, count, here, batch, common["seed"])
    rows += [(f"s = {scale:g}", scale, drawn(scale)) for scale in options["scales"] or (1.0,)]
    labelled = network.data is not None and network.data.name == recipe.data.name
    facts = {"recipe": recipe.to_dict(), "sha256": sha256(weights), "labels": "each class in turn"}
    return Plan(network, reference, name, count, rows, facts, labelled, batch=batch, **common)


def _plan_images(source: str, options: dict, here, batch: int, common: dict):
    """Real images first where the features know any, then the set."""
    from ..metrics.evaluation import Plan, real_rows, references, some
    from ..metrics.networks import feature_network
    from ..metrics.sources import image_set

    if not options["features"]:
        raise click.UsageError(f"{source} is a set of images: name the network to compare them in with --features")
    found = image_set(source)
    network = feature_network(options["features"], here.device)
    reference, name, other = references(options["reference"], network.data, network.size, network)
    count = options["images"] or len(found)
    if count > len(found):
        raise click.UsageError(f"{source} holds {len(found)} images, not {count}")
    rows = real_rows(other, count, here, batch, common["seed"])
    rows.append((Path(source).name, None, some(found, count, here, batch, common["seed"])))
    classes = getattr(found, "classes", range(network.n_classes))
    labelled = network.data is not None and len(classes) == network.n_classes
    return Plan(network, reference, name, count, rows, {}, labelled, batch=batch, **common)


def _onto_card(name: str, found: dict) -> None:
    """Keep the measures where the checkpoint is described."""
    from ..files import write_atomically
    from ..systems import zoo

    described = zoo.card(name) | {"evaluation": found}
    path = zoo.data_folder() / "checkpoints" / name / "card.json"
    write_atomically(path, (json.dumps(described, indent=2) + "\n").encode())


def _versions(here) -> dict:
    """What the numbers were computed with."""
    import torch

    device = torch.cuda.get_device_name(here.device) if here.device.type == "cuda" else platform.machine()
    versions = {"minidiff": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return versions | {"device": device, "processes": here.world}


def _show(found: dict, path: Path) -> None:
    from ..metrics.report import table

    click.echo(table({row["what"]: row["measures"] for row in found["rows"]}))
    if bits := found.get("bits_per_dim"):
        value, low, high = bits["total"].values()
        click.echo(f"bits/dim {value:.3f} [{low:.3f}, {high:.3f}] on {bits['images']} held-out images")
    reference, features = found["reference"], found["features"]
    click.echo(
        f"{found['images']} images a row against {reference['images']} of {reference['name']}; {features['width']}"
        f" features of {features['name']}; {found['seconds']:g} s; all numbers in {path}"
    )
