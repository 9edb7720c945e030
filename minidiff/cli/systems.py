"""What ``minidiff sample`` and ``minidiff evaluate`` share: the systems they draw with, and what these may be asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click
from torch import nn

from ..metrics.drawing import Drawing
from ..recipes import Recipe, available, load_recipe
from ..store import Found, checkpoints, find, load, stages
from ..systems import registry
from ..systems.lsgm import LSGM
from ..systems.sampling import GUIDES, SAMPLERS, Sampling
from ..systems.told import Told
from ..words import nearest
from .finite import Finite

FILE = click.Path(exists=True, dir_okay=False)
FINITE = Finite()
STAGES = "(repeat it for enlargers; default: as published, or"
TEXT_SCALE = 3.0  # where nothing was published: as in GLIDE's example
PER_STAGE = ("steps", "sampler", "gamma", "temperature", "scale")
KINDS = {"integer": click.INT, "number": click.FLOAT, "text": click.STRING, "file": FILE}


class ClassOf(click.ParamType):
    """A class by its number, or by its name on the card."""

    name = "class"

    def __init__(self, names: Sequence[str]):
        self.names = list(names)

    def convert(self, value, param, ctx) -> int:
        if str(value) in self.names:
            return self.names.index(str(value))
        try:
            return int(value)
        except ValueError:
            self.fail(f"no class {value!r}: {nearest(value, self.names)}", param, ctx)


def drawing_options(command: Callable) -> Callable:
    """The options that say how a system draws, see ``drawing_of``.

    One that is of every stage is repeated, the base first; a stage that is left without takes what its recipe says was
    published, and where it says nothing the steps that were named last, or the default.
    """
    options = [
        click.option("--weights", type=click.Path(exists=True), help="Released file of a preset, or its folder."),
        click.option("--guide", type=click.Choice(GUIDES), help="Guide (default: as published, or whoever is named)."),
        click.option("--classifier", help="Guide by this classifier; a preset as NAME=FILE."),
        click.option("--clip", help="Guide by this CLIP."),
        click.option("--steps", multiple=True, help=f"250, ddim25, fast27, or sections 90,60,60,20,20 {STAGES} 50)."),
        click.option("--sampler", type=click.Choice(SAMPLERS), multiple=True, help=f"Sampler {STAGES} ddim)."),
        click.option("--gamma", type=FINITE, multiple=True, help="Variance of ancestral steps, 0 (least) to 1 (most)."),
        click.option("--temperature", type=FINITE, multiple=True, help=f"Of the noise at the start {STAGES} 1)."),
        click.option("--prior-scale", type=FINITE, help="Guidance scale of what draws an embedding first."),
        click.option("--upsample", "upsamplers", multiple=True, help="Enlarge by this; repeatable."),
        click.option("--aug-level", "aug_levels", type=FINITE, multiple=True, help="Noise in what each of them sees."),
        click.option("--seed", type=int, default=0, show_default=True, help="Image i depends on the seed and i alone."),
        click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Images at a time."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


DRAWING = (
    "weights",
    "guide",
    "classifier",
    "clip",
    "steps",
    "sampler",
    "gamma",
    "temperature",
    "prior_scale",
    "upsamplers",
    "aug_levels",
)
CAN = {"classifier": "classifier", "clip": "critic"}  # option -> what a system must have to guide by it


def drawing_of(name: str, options: dict, device) -> tuple[Drawing, Found]:
    """How a system draws, and what was found by its name; of a stack the first that draws pictures.

    Raises:
        UsageError: for systems that draw nothing.
        ValueError: for systems that are not there, or do not go together.
    """
    own = [f"{name}={options['weights']}"] if options["weights"] else stages(name)
    found = [_drawer(ref, device, "it guides another system as --classifier or --clip") for ref in own]
    larger = [_drawer(ref, device, "--upsample takes systems that enlarge") for ref in options["upsamplers"]]
    names = [ref.partition("=")[0] for ref in (*own, *options["upsamplers"])]
    last = (found + larger)[-1].system
    if len(last.shape) != 3:
        if isinstance(last, LSGM):
            raise click.UsageError(
                f"{names[-1]} draws latents by a chain of its own, in Python: draw(model, 16, levels=model.chain(40))"
            )
        raise click.UsageError(f"{names[-1]} draws embeddings, no pictures: name what decodes them with --upsample")
    guides = {who: load(options[who], device, can) for who, can in CAN.items() if options[who]}
    chain = [*found, *larger]
    first = next(i for i, one in enumerate(chain) if len(one.system.shape) == 3)
    steps = {"steps": options["steps"][0]} if options["steps"] else {}
    priors = [one.recipe.sampling or Sampling(**steps) for one in chain[:first]]
    if options["prior_scale"] is not None:
        priors = [replace(way, scale=options["prior_scale"]) for way in priors]
    own = priors + ways([one.recipe.sampling for one in chain[first:]], options)
    guide = options["guide"] or (own[first].guide if guides else None)
    same = {"names": names, "guide": guide, "seed": options["seed"], "batch": options["batch"]}
    return Drawing([one.system for one in chain], own, **same, **guides), chain[first]


def ways(published: Sequence[Sampling | None], options: Mapping) -> list[Sampling]:
    """How each stage is sampled: as published, but for the options that name it.

    Where nothing was published, a stage without steps of its own takes those that were named last.

    Raises:
        UsageError: for more values than there are stages.
        ValueError: for values that are out of range.
    """
    count = len(published)
    for name in PER_STAGE:
        if len(options.get(name, ())) > count:
            raise click.UsageError(
                f"--{name} is named {len(options[name])} times for {count} system{'s' * (count > 1)}: once for each is "
                "accepted, the base first, then every --upsample"
            )
    if len(options["aug_levels"]) > count - 1:
        raise click.UsageError(
            f"--aug-level is of the picture that an --upsample enlarges; {len(options['aug_levels'])} are too many for "
            f"{count - 1} of these"
        )
    found = []
    for i, way in enumerate(published):
        own = {name: options[name][i] for name in PER_STAGE if i < len(options.get(name, ()))}
        if way is None and options["steps"]:
            own.setdefault("steps", options["steps"][-1])
        if own.get("steps", "").startswith("ddim"):
            own.setdefault("sampler", "ddim")  # ADM's spelling of steps of that sampler
        own |= {"aug_level": options["aug_levels"][i - 1]} if 0 < i <= len(options["aug_levels"]) else {}
        found.append(replace(way or Sampling(), **own))
    return found


def _drawer(ref: str, device, otherwise: str) -> Found:
    found = find(ref, device)
    if not isinstance(found.system, Told):
        raise click.UsageError(f"{ref.partition('=')[0]} draws nothing; {otherwise}")
    return found


def scale_of(drawing: Drawing, captioned: bool) -> float:
    """The guidance scale of the base: the one that is named, or was published for these steps, or a default."""
    way, published = drawing.way(drawing.base), None
    if drawing.classifier is not None or drawing.clip is not None:
        published = way.classifier_scales.get(way.steps)
    default = TEXT_SCALE if captioned else 1.0
    return next(scale for scale in (way.scale, published, default) if scale is not None)


def stages_of(drawing: Drawing, scale: float | None = None) -> list[dict]:
    """How each stage is sampled, for a record; ``scale`` is the base's."""
    stages = []
    for i, name in enumerate(drawing.names):
        way = drawing.way(i)
        recorded = ("steps", "gamma", "scale", "temperature", "aug_level", "threshold")
        own = {name: getattr(way, name) for name in recorded}
        stages.append({"system": name, "sampler": way.sampler or "ddim"} | own)
    stages[drawing.base]["scale"] = scale
    return stages


def asking(drawing: Drawing, name: str) -> click.Command:
    """A command whose options are the questions that a system asks."""
    parameters: list[click.Parameter] = []
    for question in drawing.questions:
        named = question.name == "label" and drawing.class_names
        kind = ClassOf(drawing.class_names) if named else KINDS[question.kind]
        parameters.append(click.Option([f"--{question.name}"], type=kind, multiple=question.many, help=question.help))
        if question.first:
            parameters.append(click.Argument([f"{question.name}s"], nargs=-1, metavar=f"[{question.name.upper()}]..."))
    return click.Command(f"minidiff sample {name}", params=parameters, add_help_option=False)


def answers(drawing: Drawing, name: str, words: Sequence[str], others: Sequence[str] = ()) -> dict[str, object]:
    """The answers to the questions of a system among the words of the command line.

    Args:
        drawing: How the system draws.
        name: Its name.
        words: What the command line says beside the options that all systems have.
        others: Those options.

    Raises:
        UsageError: for an option that this system does not have (the nearest is named), or words that it does not read.
    """
    own = [f"--{question.name}" for question in drawing.questions]
    try:
        context = asking(drawing, name).make_context(name, list(words), allow_extra_args=True)
    except click.NoSuchOption as error:
        known = nearest(error.option_name, [*own, *others])
        raise click.UsageError(f"{name} has no option {error.option_name}: {known}") from None
    if context.args:
        reads = f"what to draw is said by {', '.join(own)}" if own else "it draws what it likes"
        raise click.UsageError(f"{name} does not read {' '.join(context.args)!r}: {reads}")
    given = context.params
    for question in drawing.questions:
        if question.first:
            given[question.name] = [*given.pop(f"{question.name}s"), *given[question.name]]
    return {key: value for key, value in given.items() if value not in (None, (), [])}


def help_of(name: str) -> str:
    """What a system reads, its options on the command line, and the options of its recipe.

    Args:
        name: A checkpoint, run or preset's recipe, a stack of them, a recipe, or a registered system.

    Raises:
        ValueError: for anything else.
    """
    if len(stages(name)) > 1:
        return "\n\n".join([f"{name}: one after another", *map(help_of, stages(name))])
    system, recipe = _described(name)
    if recipe is None:
        return _recipe_options(registry.find(name))
    parameters = sum(p.numel() for p in system.parameters())
    lines = [f"{recipe.name}: a {recipe.system}, {parameters / 1e6:.2f} M parameters"]
    for part in getattr(system, "parts", ()):
        null = f"can be nothing, which training makes of it with probability {part.p_drop:g}"
        lines.append(f"  {part.key}: {null if part.nullable else 'always needed'}")
    if recipe.sampling:
        lines.append(f"  sampled as published: {recipe.sampling}")
    lines.append(_recipe_options(registry.find(recipe.system)))
    if hasattr(system, "parts"):
        formatter = click.HelpFormatter(width=100)
        asking(Drawing([system], names=[name]), name).format_options(click.Context(click.Command(name)), formatter)
        lines.append(f"On the command line of `minidiff sample {name}`:\n{formatter.getvalue()}".rstrip())
    return "\n".join(lines)


def _described(name: str) -> tuple[nn.Module | None, Recipe | None]:
    """A system, perhaps without its weights, and its recipe; nothing for the bare name of a system."""
    if name in checkpoints() or any((Path(name) / file).is_file() for file in ("card.json", "last.safetensors")):
        found = find(name)
        return found.system, found.recipe
    if Path(f"{name}.yaml").is_file():
        name = f"{name}.yaml"
    elif name not in available() and not name.endswith((".yaml", ".yml")):
        return None, None
    recipe = load_recipe(name)
    return recipe.build(empty=True), recipe


def _recipe_options(kind: registry.System) -> str:
    fields = [f"{field.name} = {field.default!r}" for field in dataclasses.fields(kind.options)]
    return f"In a recipe: system: {{name: {kind.name}, ...}} with {', '.join(fields) or 'no options'}"
