"""Where checkpoints and their cards live, and the one way to load whatever has a name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from .arguments import Device, Name, checked
from .recipes import Recipe
from .systems.inpainting import widened
from .training.checkpoint import averaged, load_checkpoint, load_weights, require_fit
from .words import nearest

FIRST = "network.input_blocks.0.0.weight"  # of the convolution that x and the image door enter


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
def weights_path(name: Name) -> Path:
    """Where the weights of a checkpoint lie, its card beside them.

    Args:
        name: Of a committed checkpoint, or the folder that another one was published to.

    Raises:
        ValueError: when there is no such checkpoint, naming the nearest.
    """
    folder = data_folder() / "checkpoints" / name if name in checkpoints() else Path(name)
    if not (folder / "card.json").is_file():
        raise ValueError(f"no checkpoint {name!r}: {nearest(name, checkpoints())}")
    return folder / "model.safetensors"


@checked
def card(name: Name) -> dict:
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


@checked
def recipe_of(name: Name) -> Recipe:
    """The recipe on the card of a checkpoint.

    Raises:
        ValueError: when there is no such checkpoint, naming the nearest.
    """
    return Recipe.from_plain(card(name)["recipe"])


@checked
def find(ref: Name, device: Device = "cpu", can: str = "") -> Found:
    """Whatever has a name, ready to use.

    Args:
        ref: A committed checkpoint, "digits"; the folder of a run (its averaged weights) or of what it published; a
            preset and its released file, "adm-imagenet64=64x64_diffusion.pt"; or a CLIP of open_clip, "ViT-B-32:TAG",
            "ViT-B-32:/path/weights.safetensors" or "local-dir:/path".
        device: Where it computes.
        can: A method that the system must have, "classifier" or "critic" say.

    Raises:
        ValueError: for an unknown name, weights that are damaged or not there, or a system that cannot do it.
    """
    found = _found(ref, str(device))
    if can and not hasattr(found.system, can):
        what = type(found.system).__name__ if found.recipe is None else found.recipe.system
        raise ValueError(f"{ref} is a {what}, which has no {can}; what has one is accepted")
    system = found.system.to(device).eval().requires_grad_(False)
    return Found(system, found.recipe, found.path)


@checked
def load(ref: Name, device: Device = "cpu", can: str = "") -> nn.Module:
    """A system by its name, in evaluation mode and float32; see ``find``."""
    return find(ref, device, can).system


def _found(ref: str, device: str) -> Found:
    name, _, released = ref.partition("=")
    if released and not Path(ref).is_dir():
        from .pretrained import load as load_preset
        from .pretrained import preset

        return Found(load_preset(name, released), preset(name).recipe, Path(released))
    last = Path(ref) / "last.safetensors"
    if last.is_file():
        return _run(last)
    try:
        path = weights_path(ref)
    except ValueError as error:
        if ":" not in ref:
            raise error from None
        from .systems.clip import released_clip

        return Found(released_clip(ref, device), None, None)
    recipe = recipe_of(ref)
    system = recipe.build()
    load_weights(system, path)
    return Found(system, recipe, path)


def _run(last: Path) -> Found:
    """The averaged weights of a run."""
    tensors, meta = load_checkpoint(last)
    if "recipe" not in meta:
        raise ValueError(f"{last} is no checkpoint of a run: it does not say its recipe")
    recipe = Recipe.from_plain(meta["recipe"])
    system = recipe.build()
    weights = averaged(tensors, recipe.training.ema[0])
    require_fit(weights, system.state_dict(), str(last), f"the network of {recipe.name!r}")
    system.load_state_dict(weights)
    return Found(system, recipe, last)


@checked
def begun(recipe: Recipe) -> nn.Module:
    """The system of a recipe as its training begins: with the weights of ``recipe.start``, where there is one.

    Input channels that the start lacks come after those of x and have zero weights, so the system begins as the start
    would go on (Nichol et al. 2022, section 4.3). The parts in ``recipe.fresh`` begin untrained.

    Raises:
        ValueError: for a start that cannot be read or does not fit, naming the tensors, or a part that is not there.
    """
    system = recipe.build()
    if not recipe.start:
        return system
    path = Path(recipe.start) if recipe.start.endswith(".safetensors") else weights_path(recipe.start)
    tensors, _ = load_checkpoint(path)
    own = system.state_dict()
    if FIRST in tensors and FIRST in own:
        try:
            tensors[FIRST] = widened(tensors[FIRST], own[FIRST].shape[1], system.shape[0])
        except ValueError as error:
            raise ValueError(f"{recipe.name!r} cannot start from {path}: {error}") from None
    for part in recipe.fresh:
        untrained = {name: tensor for name, tensor in own.items() if name.startswith(f"{part}.")}
        if not untrained:
            raise ValueError(f"{recipe.name}: no part {part!r} to begin anew")
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{part}.")} | untrained
    require_fit(tensors, own, str(path), f"the network of {recipe.name!r}")
    system.load_state_dict({k: v.to(own[k].dtype) for k, v in tensors.items()})
    return system


@checked
def reference(name: Name) -> tuple[Tensor, Tensor]:
    """Features (N, d) and labels (N,) of held-out images, kept beside a clean classifier that computed them.

    Raises:
        ValueError: when that checkpoint keeps none.
    """
    path = data_folder() / "checkpoints" / name / "reference.safetensors"
    if not path.is_file():
        kept = [p.parent.name for p in path.parent.parent.glob("*/reference.safetensors")]
        raise ValueError(f"no reference features beside {name!r}: {nearest(name, kept)}")
    tensors, _ = load_checkpoint(path)
    return tensors["features"].float(), tensors["labels"]
