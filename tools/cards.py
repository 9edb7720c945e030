"""Gates over the committed checkpoints: files are those of their cards, and the facts and metrics on these are true."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from minidiff.data.sets import load_set
from minidiff.files import sha256
from minidiff.recipes import Recipe
from minidiff.store import data_folder, find
from minidiff.training.publish import HELDOUT, batches, heldout_terms

PASSES = 8  # over the held-out data, as publishing makes them
SECONDS = 15.0  # for one model; what is not measured by then widens the interval
FEWEST = 8  # batches, so that their spread is known
ERRORS = 5.0  # standard errors on either side: a true card is refused about once in a million
ROUNDING = 0.002  # of a metric: float32 on another machine, and five decimals


def folders(root: Path | None = None) -> list[Path]:
    """The folders of checkpoints, by name."""
    return sorted(path.parent for path in ((root or data_folder()) / "checkpoints").glob("*/card.json"))


def _card(folder: Path) -> dict:
    return json.loads((folder / "card.json").read_text(encoding="utf-8"))


def changed(folder: Path) -> Iterator[str]:
    """Files of a checkpoint that are not those of its card."""
    hashes = _card(folder).get("sha256", {})
    files = {path.name: path for path in folder.glob("*.safetensors")}
    for name in sorted(hashes.keys() | files.keys() | {"model.safetensors"}):
        if name not in files or name not in hashes:
            yield f"{folder}: {name} is {'on the card only' if name in hashes else 'not on the card'}"
        elif sha256(files[name]) != hashes[name]:
            yield f"{folder}: {name} is not the file whose SHA-256 is on the card"


def untrue(folder: Path) -> Iterator[str]:
    """Facts on a card that are not those of its recipe and its files."""
    card = _card(folder)
    recipe = Recipe.from_plain(card["recipe"])
    facts = {
        "name": folder.name,
        "seed": recipe.training.seed,
        "steps": recipe.training.steps,
        "parameters": sum(p.numel() for p in recipe.build(empty=True).parameters()),
        "megabytes": round((folder / "model.safetensors").stat().st_size / 1e6, 2),
    }
    facts["recipe"] = facts["name"]
    said = {name: card.get(name) for name in facts} | {"recipe": recipe.name}
    for name, fact in facts.items():
        if said[name] != fact:
            yield f"{folder}: {name} is {fact!r}, not {said[name]!r}"


def drawn(seed: int, root: Path | None = None) -> Path:
    """A checkpoint at random, among those whose held-out data are here.

    Raises:
        ValueError: when there are none.
    """
    shuffled = folders(root)
    random.Random(seed).shuffle(shuffled)
    for folder in shuffled:
        try:
            load_set(Recipe.from_plain(_card(folder)["recipe"]).data, "heldout", 1)
        except (ValueError, OSError):
            continue
        return folder
    raise ValueError("no checkpoint has its held-out data here")


@torch.no_grad()
def wrong_metrics(folder: Path, seconds: float = SECONDS) -> Iterator[str]:
    """Metrics of a card that measuring again, for so many seconds and at least ``FEWEST`` batches, does not give.

    The batches are those that publishing measured, so all of them give the card's numbers again up to rounding; of the
    first few, the mean may differ by their standard error.
    """
    recipe = Recipe.from_plain(_card(folder)["recipe"])
    heldout = load_set(recipe.data, "heldout", HELDOUT)
    ends, system = time.monotonic() + seconds, find(str(folder)).system
    means: dict[str, list[tuple[float, int]]] = {}
    for i, terms in enumerate(heldout_terms(system, recipe, heldout, PASSES)):
        for name, value in terms.items():
            means.setdefault(f"heldout_{name}", []).append((float(value.mean()), len(value)))
        if i + 1 >= FEWEST and time.monotonic() > ends:
            break
    claimed, all_of_them = _card(folder)["metrics"], PASSES * batches(recipe, heldout)
    for name in sorted(claimed.keys() | means.keys()):
        if name not in claimed or name not in means:
            yield f"{folder}: {name} is {'on the card only' if name in claimed else 'not on the card'}"
            continue
        mean, allowed = _interval(means[name], all_of_them)
        if not abs(claimed[name] - mean) <= allowed:
            yield (
                f"{folder}: {name} is {mean:.5f} +- {allowed:.5f} in {len(means[name])} of {all_of_them} batches; the "
                f"card says {claimed[name]}"
            )


def _interval(measured: list[tuple[float, int]], of: int) -> tuple[float, float]:
    """Mean of some of so many batches, given as mean and size, and how far that of all may lie from it."""
    count, total = len(measured), sum(size for _, size in measured)
    mean = sum(value * size for value, size in measured) / total
    spread = math.sqrt(sum((value - mean) ** 2 for value, _ in measured) / (count - 1))
    error = spread * math.sqrt((1 - count / of) / count)
    return mean, ERRORS * error + ROUNDING * abs(mean) + 1e-5
