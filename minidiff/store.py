"""Where checkpoints and their cards live, and the one way to load whatever has a name."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from .arguments import checked, is_device
from .data.sets import fixed_classes
from .files import sha256
from .models import efficientnet
from .models.language import is_language, language
from .recipes import Recipe, available, overridden
from .systems.inpainting import widened
from .training.checkpoint import averaged, load_checkpoint, load_weights, require_fit
from .training.resume import in_run, read_last, require_facts, require_whole
from .words import alike, nearest

FIRST = "network.input_blocks.0.0.weight"  # of the convolution that x and the image door enter

STACKS = {  # systems that draw one after another, each for the next, under one name
    "unclip": ("unclip-prior", "unclip-decoder", "unclip-up64"),
    "unclip-ar": ("unclip-ar-prior", "unclip-decoder", "unclip-up64"),
}


def stages(ref: str) -> tuple[str, ...]:
    """The systems that a name stands for, in the order in which they draw; of one system itself."""
    return STACKS.get(ref, (ref,))


@checked
@dataclass(frozen=True)
class Found:
    """What a name stands for.

    Attributes:
        system: The system in evaluation mode, float32.
        recipe: Its recipe; None for a network that is not ours.
        path: The file its weights came from; None where a library found them.
    """

    system: nn.Module
    recipe: Recipe | None
    path: Path | None


def data_folder() -> Path:
    """The folder ``data/``: inside the installed package, or at the root of a source tree."""
    package = Path(__file__).resolve().parent
    installed = package / "_data"
    return installed if installed.is_dir() else package.parent / "data"


def checkpoints() -> list[str]:
    """Names of the committed checkpoints."""
    return sorted(p.parent.name for p in (data_folder() / "checkpoints").glob("*/card.json"))


@checked
def weights_path(name: str) -> Path:
    """Where the weights of a checkpoint lie, its card beside them.

    Args:
        name: Of a committed checkpoint, or the folder that another one was published to.

    Raises:
        ValueError: when there is no such checkpoint, with what to do next, or the names that are known.
    """
    folder = data_folder() / "checkpoints" / name if name in checkpoints() else Path(name)
    if not (folder / "card.json").is_file():
        raise ValueError(_not_here(name))
    return folder / "model.safetensors"


def _not_here(name: str) -> str:
    """What to do about a name that stands for no weights on this machine."""
    from .pretrained import presets

    if name in presets():
        return without_weights(name)
    if name in available():
        run = Path("runs") / name
        trained = (run / "last.safetensors").is_file()
        do = f"name its run, {run}" if trained else f"train it with `minidiff train {name}`, then name the folder {run}"
        return f"{name} is a recipe, and no weights of it are published: {do}"
    hint = nearest(name, [*checkpoints(), *presets()])
    hint = f"{hint} There are " if hint.startswith("did") else "there are "
    committed, published = (", ".join(alike(name, names)) for names in (checkpoints(), presets()))
    return f"no checkpoint, run or preset {name!r}: {hint}the checkpoints {committed}; and the presets {published}"


def without_weights(name: str) -> str:
    """What to do about a preset that is named without its released file."""
    from .pretrained import preset

    chosen, folder = preset(name), Path("weights")
    file = folder / chosen.files[""] if "" in chosen.files else folder
    named = f"name it as {name}={file}"
    if chosen.recipe.system not in ("classifier", "clip"):
        named += f", or on the command line add --weights {file}"
    if all((folder / part).is_file() for part in chosen.files.values()):
        return f"{name} is a preset, a published model, and {chosen.file} lies in {folder}/: {named}"
    return (
        f"{name} is a preset, a published model whose weights are not here: `minidiff download {name}` fetches "
        f"{chosen.file} into {folder}/; then {named}"
    )


def require_device(name: str) -> str:
    """The name of a device, if it is of this machine.

    Raises:
        ValueError: for one that is not here, naming those that are.
    """
    if not is_device(name):
        here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(f"there is no device {name!r} here; {', '.join(here)} {'are' if len(here) > 1 else 'is'}")
    return name


@checked
def card(name: str) -> dict:
    """The card of a checkpoint: its recipe, seed, steps, time and metrics; see ``weights_path`` for its name.

    Raises:
        ValueError: when there is no such checkpoint, naming the nearest, or its card cannot be read.
    """
    path = weights_path(name).with_name("card.json")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text in UTF-8
        raise ValueError(f"{path} is no card: {error}") from None
    if not isinstance(found, dict) or "recipe" not in found:
        raise ValueError(f"{path} is no card: a mapping with a recipe is accepted")
    return found


def unchanged(path: Path) -> Path:
    """A file of a checkpoint, after comparing it with the SHA-256 on the card beside it, where that has one.

    Raises:
        ValueError: when its bytes are not those that the card describes, or the card cannot be read.
    """
    hashes = card(str(path.parent)).get("sha256", {})
    known = hashes.get(path.name) if isinstance(hashes, dict) else None
    if known and path.is_file() and sha256(path) != known:
        raise ValueError(
            f"{path} is not the file that its card describes: the SHA-256 on the card is {known[:12]}..., that of the "
            "file another; copy or publish the checkpoint anew"
        )
    return path


@checked
def recipe_of(name: str) -> Recipe:
    """The recipe on the card of a checkpoint.

    Raises:
        ValueError: when there is no such checkpoint, naming the nearest.
    """
    return Recipe.from_plain(card(name)["recipe"])


@checked
def find(
    ref: str | os.PathLike, device: str | torch.device = "cpu", can: str = "", overrides: Sequence[str] = ()
) -> Found:
    """Whatever has a name, ready to use.

    Args:
        ref: A committed checkpoint, "digits"; the folder of a run (its averaged weights) or of what it published; a
            preset and its released file, "adm-imagenet64=64x64_diffusion.pt"; or a CLIP of open_clip, "ViT-B-32:TAG",
            "ViT-B-32:/path/weights.safetensors" or "local-dir:/path"; a frozen text encoder, "minilm" or "t5:/path",
            see ``models.language.language``; or "efficientnet-lite0", feature maps for a loss.
        device: Where it computes.
        can: A method that the system must have, "classifier" or "critic" say.
        overrides: Changes of its recipe, such as "network.dropout=0" or "data.path=shards"; the weights must still fit.

    Raises:
        ValueError: for an unknown name, weights that are damaged, not there or of another shape, a device that is not
            here, or a system that cannot do it. Of a preset without its file the message has the command that fetches
            it.
    """
    device = require_device(str(device))
    try:
        found = _found(str(ref), device, overrides)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise ValueError(f"no checkpoint and no folder has a name of {len(str(ref))} characters") from None
    if can and not hasattr(found.system, can):
        what = type(found.system).__name__ if found.recipe is None else found.recipe.system
        raise ValueError(f"{ref} is a {what}, which has no {can}; what has one is accepted")
    system = found.system.to(device).eval().requires_grad_(False)
    lend(system)
    return Found(system, found.recipe, found.path)


def lend(system: nn.Module) -> None:
    """Let a system use the frozen networks that it names, each loaded when it is first needed, where the system is.

    What came with the system's own file stays.
    """
    found = cache(lambda name: load(name, str(system.device)))
    for borrower in getattr(system, "borrowers", ()):
        if borrower.frozen and not borrower.has:
            borrower.lend(partial(found, borrower.frozen))


@checked
def load(
    ref: str | os.PathLike, device: str | torch.device = "cpu", can: str = "", overrides: Sequence[str] = ()
) -> nn.Module:
    """A system by its name, in evaluation mode and float32; see ``find``."""
    return find(ref, device, can, overrides).system


def _found(ref: str, device: str, overrides: Sequence[str]) -> Found:
    if is_language(ref) and not Path(ref).is_dir():
        if overrides:
            raise ValueError(f"{ref} is a frozen text encoder, which has no recipe to change")
        return Found(language(ref), None, None)
    name, _, released = ref.partition("=")
    if released and not Path(ref).is_dir():
        from .pretrained import load as load_preset
        from .pretrained import preset

        recipe = overridden(preset(name).recipe, overrides)
        return Found(load_preset(name, released, recipe), recipe, Path(released))
    if ref == efficientnet.NAME:
        return Found(efficientnet.load_photograph_features(), None, None)
    if in_run(Path(ref)):
        return _run(Path(ref), overrides)
    try:
        path = weights_path(ref)
    except ValueError as error:
        if ":" not in ref:
            raise error from None
        if overrides:
            raise ValueError(f"{ref} is a CLIP of open_clip, which has no recipe to change") from None
        from .systems.clip import released_clip

        return Found(released_clip(ref, device), None, None)
    recipe = overridden(recipe_of(ref), overrides)
    system = recipe.build()
    load_weights(system, unchanged(path))
    system.class_names = _class_names(card(ref), recipe, path.with_name("card.json"))
    return Found(system, recipe, path)


def _class_names(described: dict, recipe: Recipe, path: Path) -> tuple[str, ...]:
    """What a card, or the meta of a run, calls the classes."""
    names = described.get("classes", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: classes are a list of names, got {names!r}")
    return tuple(names) or fixed_classes(recipe.data)


def _run(folder: Path, overrides: Sequence[str]) -> Found:
    """The averaged weights of a run."""

    def read(path: Path) -> tuple[Found, dict]:
        tensors, meta = load_checkpoint(path)
        require_facts(meta, path)
        try:
            recipe = Recipe.from_plain(meta.get("recipe"))
        except ValueError as error:
            raise ValueError(f"{path} is no checkpoint of a run: {error}") from None
        require_whole(tensors, meta, recipe.build(), recipe.training, path)
        recipe = overridden(recipe, overrides)
        system = recipe.build()
        weights = averaged(tensors, recipe.training.ema[0])
        require_fit(weights, system.state_dict(), str(path), f"the network of {recipe.name!r}")
        system.load_state_dict(weights)
        system.class_names = _class_names(meta, recipe, path)
        return Found(system, recipe, path), meta

    return read_last(folder, read)[0]


@checked
def begun(recipe: Recipe) -> nn.Module:
    """The system of a recipe as its training begins: with the weights of ``recipe.start``, where there is one.

    Input channels that the start lacks come after those of x and have zero weights, so the system begins as the start
    would go on (Nichol et al. 2021, section 4.3). The parts in ``recipe.fresh`` begin untrained; those that only the
    start has are left behind.

    Raises:
        ValueError: for a start that cannot be read or does not fit, naming the tensors, or a part that is not there.
    """
    system = recipe.build()
    lend(system)
    if not recipe.start:
        return system
    path = _start(recipe)
    tensors, _ = load_checkpoint(path)
    own = system.state_dict()
    if FIRST in tensors and FIRST in own:
        try:
            tensors[FIRST] = widened(tensors[FIRST], own[FIRST].shape[1], system.shape[0])
        except ValueError as error:
            raise ValueError(f"{recipe.name!r} cannot start from {path}: {error}") from None
    for part in recipe.fresh:
        untrained = {name: tensor for name, tensor in own.items() if name.startswith(f"{part}.")}
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{part}.")}
        if not untrained and len(kept) == len(tensors):
            raise ValueError(f"{recipe.name}: no part {part!r} to begin anew")
        tensors = kept | untrained
    require_fit(tensors, own, str(path), f"the network of {recipe.name!r}")
    system.load_state_dict({k: v.to(own[k].dtype) for k, v in tensors.items()})
    return system


def _start(recipe: Recipe) -> Path:
    """Where the weights lie that a recipe goes on from; the message about others says how to make them."""
    if not recipe.start.endswith(".safetensors"):
        return unchanged(weights_path(recipe.start))
    path = Path(recipe.start)
    if not path.is_file():
        runs = [run for run in path.parts if run in available()]
        makes = f": `minidiff train {runs[0]}` makes it; or" if runs else ";"
        raise ValueError(f"{recipe.name!r} goes on from {path}, which is not here{makes} begin anew with start=")
    return path


@checked
def reference(name: str) -> tuple[Tensor, Tensor]:
    """Features (N, d) and labels (N,) of held-out images, kept beside a clean classifier that computed them.

    Raises:
        ValueError: when that checkpoint keeps none, or they are not those that its card describes.
    """
    path = data_folder() / "checkpoints" / name / "reference.safetensors"
    if not path.is_file():
        kept = [p.parent.name for p in path.parent.parent.glob("*/reference.safetensors")]
        raise ValueError(f"no reference features beside {name!r}: {nearest(name, kept)}")
    tensors, _ = load_checkpoint(unchanged(path))
    return tensors["features"].float(), tensors["labels"]
