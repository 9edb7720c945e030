"""Two ways to guide by captions, at several scales, and two ways to read them; the record says how long each row took.

Usage: python tools/guidance.py [--out data/guidance.json] [--captions 100]. Rows that are finished are not repeated, so
it can be interrupted; remove the file when a checkpoint has changed. It holds what the oracle and a CLIP say of every
single picture, and how well each network denoises; what follows from that is computed by lesson 07, not here.

The weights of stages of `glide` and of controls that nobody draws with are not committed; before, for NAME = glide,
glide-pooled and glide-either, in this order: minidiff train NAME
"""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import replace
from pathlib import Path

import torch

from minidiff.data.captioned import captioned_scenes
from minidiff.data.captions import NOUNS, RELATION_WORDS, judge, parse
from minidiff.data.oracle import read
from minidiff.data.prompts import scene_sheet
from minidiff.denoiser import conditioned
from minidiff.files import sha256, write_atomically
from minidiff.guidance import cfg, clip_guidance
from minidiff.metrics.captions import diversity
from minidiff.metrics.embedders import embedder
from minidiff.process import diffuse
from minidiff.random import randn, sample_generators
from minidiff.recipes import load_recipe
from minidiff.store import card, checkpoints, load, weights_path
from minidiff.systems.draw import draw
from minidiff.training.checkpoint import load_checkpoint

STEPS, BATCH, JUDGE = 10, 50, "scenes-clip"
# "placed": the colours are there and stand as the caption says, whatever the shapes
VERDICTS = ("count", "shape", "color", "placed", "binding", "relation", "all")
NAMES = sorted({noun for words in NOUNS.values() for noun in words})
ROWS = (  # model, guide, scales s; a CLIP guides the model that knows the caption, so it counts from s = 1 as well
    ("glide", None, (1.0, 2.0, 3.0, 5.0, 8.0)),
    ("glide-wide", None, (3.0,)),
    ("glide-narrow-longer", None, (3.0,)),
    ("glide-narrow", None, (3.0,)),
    ("glide-pooled", None, (3.0,)),
    ("glide", "scenes-clip", (2.0, 3.0, 5.0)),
    ("glide", "scenes-clip-noisy", (2.0, 3.0, 5.0, 9.0)),
)
STAGES = tuple(f"glide-{stage}" for stage in load_recipe("glide").before)
READERS = ("glide-pooled", *STAGES, "glide-either", "glide")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
TURNED = {
    word: other for a, b in INVERSE.items() for word, other in zip(RELATION_WORDS[a], RELATION_WORDS[b], strict=True)
}
ACROSS = {"left of": "above", "right of": "below", "above": "left of", "below": "right of"}
CROSSED = {
    word: other for a, other in ACROSS.items() for word in RELATION_WORDS[a] if TURNED[word] != word
}  # of words that tell a direction
UNSEEN, TIMES = 192, (900, 750, 600, 450)  # pictures that no network was trained on, and levels to noise them to


def on_top(clip, captions: list[str], scale: float):
    """A guide: a CLIP guides the model that knows the caption, so it counts from s = 1."""
    by_clip = clip_guidance(clip, captions, scale - 1)
    return lambda model, condition, null: by_clip(conditioned(model, condition))


def drawn(model, captions: list[str], first: int, scale: float, clip) -> torch.Tensor:
    """A picture (N, 3, S, S) of each caption; caption i starts from the noise number ``first`` + i."""
    generators = sample_generators(0, range(first, first + len(captions)))
    guide = cfg(scale) if clip is None else on_top(clip, captions, scale)
    return draw(model, len(captions), guide=guide, levels=STEPS, generator=generators, caption=captions)


def found(captions: list[str], images: torch.Tensor) -> list[str]:
    """The oracle's verdicts of each picture, as digits in the order of ``VERDICTS``."""
    scenes = read(images).scenes
    without_shapes = [re.sub(rf"\b({'|'.join(NAMES)})\b", "object", caption) for caption in captions]
    verdicts = judge(captions, scenes) | {"placed": judge(without_shapes, scenes)["relation"]}
    rows = torch.stack([verdicts[name] for name in VERDICTS], 1).int().tolist()
    return ["".join(map(str, bits)) for bits in rows]


def exchanged(caption: str) -> str:
    """The caption of two objects with their nouns in each other's place: the same words in another order."""
    said = parse(caption)
    one, two = said.phrases
    return str(replace(said, phrases=(replace(one, noun=two.noun), replace(two, noun=one.noun))))


def related(caption: str, other: dict[str, str]) -> str:
    """The caption of two objects with another relation."""
    said = parse(caption)
    return str(replace(said, relation=other[said.relation]))


def unseen() -> tuple[torch.Tensor, list[str]]:
    """Pictures (UNSEEN, 3, 16, 16) of two objects; exchanged nouns or a turned relation make their captions false."""
    fresh = captioned_scenes(4 * UNSEEN, 16, torch.Generator().manual_seed(70), "seen")
    two = (fresh.objects == 2).nonzero()[:, 0].tolist()
    images, captions = fresh.images[two], [fresh.captions[i] for i in two]
    scenes = read(images).scenes  # which the oracle misreads now and then
    variants = (captions, [exchanged(c) for c in captions], [related(c, TURNED) for c in captions])
    true, *still_true = (judge(said, scenes)["all"] for said in variants)
    false = (true & ~still_true[0] & ~still_true[1]).nonzero()[:UNSEEN, 0]
    return images[false], [captions[i] for i in false.tolist()]


@torch.no_grad()
def misses(model) -> dict[str, list[float]]:
    """Squared error in v of each unseen picture, mean over levels, by what the network is told; all see one noise."""
    images, captions = unseen()
    told = {
        "the caption": captions,
        "its nouns exchanged": [exchanged(said) for said in captions],
        "its relation turned": [related(said, TURNED) for said in captions],
        "its axis changed": [related(said, CROSSED) for said in captions],
        "no caption": [""] * UNSEEN,
        "another's caption": [captions[-1], *captions[:-1]],
    }
    conditions = {name: model.condition(caption=said) for name, said in told.items()}
    errors = {name: torch.zeros(UNSEEN) for name in told}
    for i, at in enumerate(TIMES):
        level, eps = model.schedule.level(at), randn(images.shape, torch.Generator().manual_seed(i))
        v = level.alpha * eps - level.sigma * images
        for name, condition in conditions.items():
            predicted = model(diffuse(images, level, eps), level, condition).v
            errors[name] += (predicted - v).square().mean((1, 2, 3)) / len(TIMES)
    return {name: [round(value, 6) for value in error.tolist()] for name, error in errors.items()}


def loaded(name: str):
    """A committed checkpoint, or else what a run made; and the checksum of its file."""
    if name in checkpoints():
        return load(name), sha256(weights_path(name))
    return load(str(run_of(name))), sha256(run_of(name) / "last.safetensors")


def run_of(name: str) -> Path:
    """The folder of a run that is not committed."""
    return Path("runs", "glide", name.removeprefix("glide-")) if name in STAGES else Path("runs", name)


def trained(name: str) -> dict:
    """How many pictures a network was shown in its own run or stage, and the seconds of that."""
    if name in checkpoints():
        described = card(name)
        steps, batch = described["steps"], described["recipe"]["training"]["batch"]
        seconds = described["seconds"] - sum(stage["seconds"] for stage in described["stages"])
    else:
        meta = load_checkpoint(run_of(name) / "last.safetensors")[1]
        steps, batch, seconds = meta["step"], meta["recipe"]["training"]["batch"], round(meta["seconds"])
    return {"pictures": steps * batch, "seconds": seconds}


def row(model, captions: list[str], eye, *how) -> dict:
    """What is found in two pictures of each caption: verdicts, cosine with the caption, distance of the two."""
    copies = []
    for copy in range(2):
        parts = range(0, len(captions), BATCH)
        copies.append(torch.cat([drawn(model, captions[i : i + BATCH], 1000 * copy + i, *how) for i in parts]))
    seen, texts = [eye.images(images) for images in copies], eye.texts(captions)
    return {
        "verdicts": [found(captions, images) for images in copies],
        "clip": [[round(v, 4) for v in (features * texts).sum(1).tolist()] for features in seen],
        "apart": [round(v, 4) for v in diversity(torch.stack(seen, 1)).tolist()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/guidance.json"))
    parser.add_argument("--captions", type=int, default=100, help="of each sheet")
    options = parser.parse_args()
    torch.set_num_threads(1)
    facts = {"captions": options.captions, "steps": STEPS, "judge": JUDGE, "verdicts": VERDICTS}
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    kept = {"rows": [], "losses": {}, "training": {}, "weights": {}} | kept
    write = lambda: write_atomically(options.out, (json.dumps(facts | kept) + "\n").encode())
    for name in READERS:
        if name not in kept["losses"]:
            model, kept["weights"][name] = loaded(name)
            kept["losses"][name], kept["training"][name] = misses(model), trained(name)
            write()
    eye, sheets = embedder(JUDGE), [scene_sheet(split, options.captions, 16) for split in ("seen", "heldout")]
    for name, guide, scales in ROWS:
        for scale in scales:
            if any((r["model"], r["guide"], r["scale"]) == (name, guide, scale) for r in kept["rows"]):
                continue
            began, used = time.process_time(), {n: loaded(n) for n in (name, guide, JUDGE) if n}
            model, clip = used[name][0], used[guide][0] if guide else None
            measured = {sheet.name: row(model, sheet.captions, eye, scale, clip) for sheet in sheets}
            seconds = round(time.process_time() - began, 1)
            kept["rows"].append({"model": name, "guide": guide, "scale": scale, "seconds": seconds} | measured)
            kept["weights"] |= {n: checksum for n, (_, checksum) in used.items()}
            write()
            print(name, guide, scale, seconds, flush=True)


if __name__ == "__main__":
    main()
