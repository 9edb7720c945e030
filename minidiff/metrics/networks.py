"""Feature networks: the committed classifiers of clean images, and Inception-v3 from a local file."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..files import sha256
from ..recipes import DataRecipe, Recipe, from_dict
from ..schedule import DATA
from ..systems.zoo import card, checkpoints, load, weights_path

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"


@dataclass(frozen=True)
class FeatureNetwork:
    """What images are compared in.

    Attributes:
        name: Name, or path of the weights.
        sha256: Of the weights.
        channels: Channels of an image.
        size: Side of an image; None for any.
        width: Number of features.
        n_classes: Number of classes.
        data: The data set whose classes these are; None when they are those of no set of ours.
        network: (B, C, H, W) in [-1, 1] -> (B, width) features, (B, n_classes) log-probabilities.
    """

    name: str
    sha256: str
    channels: int
    size: int | None
    width: int
    n_classes: int
    data: DataRecipe | None
    network: Callable[[Tensor], tuple[Tensor, Tensor]]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) in [-1, 1] -> (B, width) features and (B, n_classes) log-probabilities.

        Grey images are repeated for a network that sees colour, colours averaged for one that sees grey.

        Raises:
            ValueError: for images of another size.
        """
        if self.size is not None and tuple(images.shape[2:]) != (self.size, self.size):
            height, width = images.shape[2:]
            raise ValueError(f"{self.name} sees images of {self.size}x{self.size}, got {height}x{width}")
        if images.shape[1] != self.channels:
            images = images.mean(1, keepdim=True).expand(-1, self.channels, -1, -1)
        return self.network(images)


def feature_network(name: str, device: torch.device | str = "cpu") -> FeatureNetwork:
    """A feature network by name: a committed classifier, "inception", "inception:PATH" or "inception:download".

    Raises:
        ValueError: for an unknown name, a checkpoint that is no classifier, or weights that are missing or damaged.
    """
    if name == "inception" or name.startswith("inception:"):
        return _inception(name.partition(":")[2], device)
    system = load(name, device)
    if not hasattr(system, "features"):
        raise ValueError(f"{name} is no classifier and has no features; classifiers: {', '.join(_clean())}")
    channels, size, _ = system.shape
    recipe = from_dict(Recipe, card(name)["recipe"])

    def network(images: Tensor) -> tuple[Tensor, Tensor]:
        return system.features(images), system.log_prob_label(images, DATA)

    width = system.features(torch.zeros(1, *system.shape, device=device)).shape[1]
    digest = sha256(weights_path(name))
    return FeatureNetwork(name, digest, channels, size, width, system.n_classes, recipe.data, network)


def default_features(recipe: Recipe) -> str:
    """Name of the committed classifier of clean images that knows the data set of a recipe, at its size.

    Raises:
        ValueError: when there is none.
    """
    for name in _clean():
        other = card(name)["recipe"]
        if (other["data"]["name"], other["network"]["size"]) == (recipe.data.name, recipe.network.size):
            return name
    where = f"{recipe.data.name} at {recipe.network.size}x{recipe.network.size}"
    raise ValueError(f"no committed network has features for {where}; choose with --features: {', '.join(_clean())}")


def _clean() -> list[str]:
    cards = {name: card(name)["recipe"] for name in checkpoints()}
    return [name for name, recipe in cards.items() if recipe["system"] == "classifier" and not recipe["noisy"]]


def _inception(weights: str, device: torch.device | str) -> FeatureNetwork:
    """Inception-v3 as FID was defined on it (torch-fidelity's port): 2048 pooled features, 1008 classes."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
    except ImportError:
        raise ValueError("Inception-v3 needs torch-fidelity: pip install 'minidiff[evaluate]'") from None
    cached = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if weights == "download":
        if not cached.exists():
            cached.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(URL_INCEPTION_V3, str(cached), hash_prefix="6726825d")
            except OSError as error:
                raise ValueError(f"cannot download {URL_INCEPTION_V3}: {error}") from None
        path = cached
    elif weights:
        path = Path(weights)
    else:
        places = [
            cached,
            *([Path(os.environ["MINIDIFF_DATA"]) / INCEPTION_FILE] if "MINIDIFF_DATA" in os.environ else []),
        ]
        path = next((p for p in places if p.is_file()), cached)
    if not path.is_file():
        raise ValueError(
            f"no Inception weights at {path}: name the file as inception:PATH, or ask for a download of 95 MB from"
            f" {URL_INCEPTION_V3} with inception:download"
        )
    try:
        torch.load(path, map_location="cpu", weights_only=True)  # the library's own loader would run what it unpickles
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(path)).to(device)
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} does not hold torch-fidelity's Inception-v3 weights ({error})") from None

    def compute(images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = ((images.to(device).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        features, logits = network(pixels)
        return features, logits.log_softmax(1)

    return FeatureNetwork("inception", sha256(path), 3, None, 2048, 1008, None, compute)
