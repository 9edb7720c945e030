"""Embedders by name: committed classifiers of clean images, clean CLIPs, and Inception-v3 from a local file."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import torch
from torch import Tensor

from ..arguments import Device, checked
from ..data.embedder import Embedder
from ..data.recipe import DataRecipe
from ..files import sha256
from ..models.language import Language
from ..pixels import to_uint8
from ..schedule import DATA
from ..store import Found, checkpoints, find, recipe_of

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"


@checked
def embedder(name: str, device: Device = "cpu", raw: bool = False) -> Embedder:
    """An embedder by name.

    Args:
        name: A classifier, a clean CLIP or a frozen text encoder as ``store.find`` names it, "inception",
            "inception:PATH" or "inception:download".
        device: Where it computes.
        raw: Leave the embeddings of a CLIP at the length they have; else they are brought to length 1.

    Raises:
        ValueError: for an unknown name, a network without features or made for noised images, or weights that are
            missing or damaged.
    """
    if name == "inception" or name.startswith("inception:"):
        return _inception(name.partition(":")[2], device)
    found = find(name, str(device))
    if isinstance(found.system, Language):
        return _language(name, found.system)
    if hasattr(found.system, "embed_images"):
        return _clip(name, found, raw)
    if not hasattr(found.system, "features"):
        known = ", ".join(_committed("classifier") + _committed("clip"))
        raise ValueError(f"{name} is no classifier or CLIP and has no features; those that have: {known}")
    return _classifier(name, found, device)


def _classifier(name: str, found: Found, device: torch.device | str) -> Embedder:
    system = found.system
    if system.noise_aware:
        clean = ", ".join(_committed("classifier"))
        raise ValueError(f"{name} is made for noised images; pictures are compared by a clean classifier: {clean}")
    channels, size, _ = system.shape
    return Embedder(
        name,
        system.features(torch.zeros(1, *system.shape, device=device)).shape[1],
        lambda images: system.features(images.to(device)),
        size,
        channels,
        sha256(found.path),
        log_prob=lambda images: system.log_prob_label(images.to(device), DATA),
        n_classes=system.n_classes,
        data=found.recipe.data,
        learnt=system.class_names,
    )


def _language(name: str, encoder: Language) -> Embedder:
    """One that says something of every token of a text, and sees nothing."""

    def blind(images):
        raise ValueError(f"{name} reads texts and sees no pictures: --text embeds the captions")

    def read(texts: list[str]) -> list[Tensor]:
        return [states[mask] for states, mask in zip(*encoder.text_states(texts), strict=True)]

    return Embedder(name, encoder.width, blind, read=read)


def _clip(name: str, found: Found, raw: bool) -> Embedder:
    clip, ours = found.system, found.recipe is not None
    if clip.noise_aware:
        raise ValueError(f"{name} is made for noised images; pictures are compared by a clean CLIP")
    images = clip.network.image if raw else clip.embed_images
    texts = (lambda texts: clip.network.text(clip.tokens(texts))) if raw else clip.embed_texts
    with torch.no_grad():
        width = texts([""]).shape[1]
    # one of open_clip brings images to its own size; what is to be stored is read from the files in that size
    size = clip.shape[1] if ours else clip.network.size if raw else None
    return Embedder(
        name,
        width,
        lambda x: images(x.to(clip.device)),
        size,
        sha256=sha256(found.path) if ours else None,
        read=texts,
        data=found.recipe.data if ours else None,
    )


@checked
def default_features(data: DataRecipe) -> str:
    """Name of the committed classifier of clean images that knows a data set, at its size.

    Raises:
        ValueError: when there is none.
    """
    lacking = f"no committed network has features for {data.name} at {data.size}x{data.size}"
    return _default(_committed("classifier"), data, lacking, data.size)


@checked
def default_clip(data: DataRecipe) -> str:
    """Name of the committed clean CLIP that knows a data set.

    Raises:
        ValueError: when there is none.
    """
    return _default(_committed("clip"), data, f"no committed CLIP knows {data.name}")


def _default(names: list[str], data: DataRecipe, lacking: str, size: int | None = None) -> str:
    for name in names:
        known = recipe_of(name).data
        if known.name == data.name and size in (None, known.size):
            return name
    raise ValueError(f"{lacking}; choose with --features" + (f": {', '.join(names)}" if names else ""))


def _committed(system: str) -> list[str]:
    """Committed networks of a kind that are made for clean images."""
    recipes = {name: recipe_of(name) for name in checkpoints()}
    clean = lambda r: not getattr(r.options, "noise_aware", False) and not getattr(r.network, "levels", 0)
    return [name for name, recipe in recipes.items() if recipe.system == system and clean(recipe)]


def _inception(weights: str, device: torch.device | str) -> Embedder:
    """Inception-v3 as FID was defined on it (torch-fidelity's port): 2048 pooled features, 1008 classes."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
    except ImportError:
        raise ValueError("Inception-v3 needs torch-fidelity: pip install 'minidiff[evaluate]'") from None
    path = _inception_file(weights, URL_INCEPTION_V3)
    try:
        torch.load(path, map_location="cpu", weights_only=True)  # the library's own loader would run what it unpickles
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(path)).to(device)
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, TypeError, LookupError) as error:
        raise ValueError(f"{path} does not hold torch-fidelity's Inception-v3 weights ({error})") from None

    pixels = lambda images: to_uint8(images.to(device))
    return Embedder(
        "inception",
        2048,
        lambda images: network(pixels(images))[0],
        sha256=sha256(path),
        log_prob=lambda images: network(pixels(images))[1].log_softmax(1),
        n_classes=1008,
    )


def _inception_file(weights: str, url: str) -> Path:
    """The file that was named, is to be downloaded, or lies in the cache or among the data.

    Raises:
        ValueError: when there is none.
    """
    places = [Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE]
    if weights == "download":
        _download(url, places[0])
    elif weights:
        places = [Path(weights)]
    elif "MINIDIFF_DATA" in os.environ:
        places.append(Path(os.environ["MINIDIFF_DATA"]) / INCEPTION_FILE)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ValueError(
            f"no Inception weights at {places[0]}: name the file as inception:PATH, or ask for a download of 95 MB from"
            f" {url} with inception:download"
        )
    return found


def _download(url: str, path: Path) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix="6726825d")
    except OSError as error:
        raise ValueError(f"cannot download {url}: {error}") from None
