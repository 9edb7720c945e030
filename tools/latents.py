"""Diffusion in latents and in pixels at equal time, and what the first stage does to it (60 minutes of a CPU core).

Usage: python tools/latents.py [--only ROW] [--train] [--out data/latents.json]. Rows that are finished are not
repeated, so it can be interrupted; with --train networks are trained and timed, and nothing is measured. It needs what
`minidiff data embed-for latent-scenes` writes. It holds what the oracle says of every single picture, how far every
reconstruction is from its picture, and how bright pictures are; what follows is computed by lesson 14, not here.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from minidiff.data.captions import explicit, judge
from minidiff.data.embed import embed
from minidiff.data.oracle import read
from minidiff.data.sets import captions_of, described, embeddings_place, load_dataset
from minidiff.files import write_atomically
from minidiff.guidance import cfg
from minidiff.metrics import frechet_distance
from minidiff.metrics.embedders import embedder
from minidiff.metrics.intervals import bootstrap
from minidiff.models.vae import gaussian
from minidiff.random import sample_generators
from minidiff.recipes import Recipe, load_recipe
from minidiff.store import begun, card, lend, load
from minidiff.systems.draw import draw
from minidiff.training.checkpoint import export_weights, load_weights
from minidiff.training.loop import train

CAPTIONS, STEPS, SCALE, BATCH = 200, 20, 3.0, 50
JUDGE = "scenes-clip-strong"  # whose features the Frechet distance is of
VERDICTS = ("count", "shape", "color", "binding", "relation", "all")
TIMED, STEPS_TIMED = 4, 20  # pictures of one timing, and steps
FEW = "data.images=6000"  # of the short trainings

CURVES = {  # two networks along their training: steps at which they are looked at
    "latent-scenes": (1000, 2000, 3600, 5400),
    "pixel-scenes64": (900, 1270),
}
SIZES = {  # of the latent: shape of the first stage, and of the U-Net
    2: ("network.channel_mult=[1]", ["network.size=32", "network.channel_mult=[1,1,2]", "network.attention=[8]"]),
    4: ("network.channel_mult=[1,2]", ["network.size=16", "network.attention=[8]"]),
    8: ("network.channel_mult=[1,2,3]", []),
}
STAGES = {  # factor, weight of the KL term, steps of the first stage, steps in its latents
    "factor 8": (8, 1e-3, 700, 900),
    "factor 4": (4, 1e-3, 700, 600),
    "factor 2": (2, 1e-3, 580, 320),
    "KL 1e-1": (8, 1e-1, 700, 900),
}
ROWS = ("truth", *CURVES, *STAGES)


def heldout() -> tuple[torch.Tensor, list[str], torch.Tensor]:
    """Pictures (CAPTIONS, 3, 64, 64) that no network was trained on, their captions, all explicit, and other pictures
    of the kind."""
    data = load_recipe("pixel-scenes64").data
    found = load_dataset(data, "heldout")
    said = captions_of(found, data)
    images = found.columns["image"]
    mine = [i for i, text in enumerate(said) if explicit(text)][:CAPTIONS]
    others = sorted(set(range(len(said))) - set(mine))
    return images[mine], [said[i] for i in mine], images[others]


def found(images: torch.Tensor, captions: list[str]) -> dict:
    """The oracle's verdicts of each picture, as digits in the order of ``VERDICTS``, and how sure it is of the object
    that it is less sure of: what it finds there, over what it would draw; 0 where it finds none."""
    seen = read(images)
    verdicts = judge(captions, seen.scenes)
    sure = torch.where(seen.confidence > 0, seen.confidence, torch.inf).amin(1)
    return {
        "verdicts": ["".join(str(int(verdicts[name][i])) for name in VERDICTS) for i in range(len(captions))],
        "confidence": [round(value, 2) if value < 2 else 0.0 for value in sure.tolist()],
    }


def bright(images: torch.Tensor) -> list[float]:
    """Mean of each picture, -1 for black and 1 for white."""
    return [round(value, 3) for value in images.mean((1, 2, 3)).tolist()]


class Sheet:
    """What every network is measured by."""

    def __init__(self):
        self.images, self.captions, others = heldout()
        self.features = embedder(JUDGE).images
        self.reference = self.features(others)

    def seen(self, images: torch.Tensor) -> dict:
        """What the oracle finds, and the distance of the set from other pictures of the kind, with its interval."""
        distance = lambda some: frechet_distance(some, self.reference)
        generator = torch.Generator().manual_seed(0)
        interval = bootstrap(distance, self.features(images), generator=generator, draws=100)
        return found(images, self.captions) | {"frechet": [round(value, 4) for value in interval]}

    def drawn(self, system) -> torch.Tensor:
        """A picture of each caption; caption i starts from noise number i."""
        parts = []
        for at in range(0, CAPTIONS, BATCH):
            some = self.captions[at : at + BATCH]
            noises = sample_generators(0, range(at, at + len(some)))
            parts.append(draw(system, len(some), guide=cfg(SCALE), levels=STEPS, generator=noises, caption=some))
        return torch.cat(parts).clamp(-1, 1)


def trained(recipe_at, marks: tuple[int, ...], folder: Path) -> list[Path]:
    """Train to each mark, and keep the averaged weights that there were; the last is timed."""
    kept = []
    for step in marks:
        recipe, path = recipe_at(step), folder / f"step-{step}.safetensors"
        if not path.exists():
            weights = train(recipe, begun, folder, cpu=True, quiet=True)
            export_weights(weights, path, {"name": recipe.name, "step": step})
            print(folder, step, flush=True)
        kept.append(path)
    times = folder / "times.json"
    if not times.exists():
        found = {"step_seconds": step_seconds(recipe_at)}
        if recipe.system != "autoencoder":
            found["picture_seconds"] = picture_seconds(loaded(recipe, path))
        times.write_text(json.dumps(found))
        print(folder, found, flush=True)
    return kept


def step_seconds(recipe_at) -> float:
    """Seconds of a core for one step of training, whoever else runs on it: the median of some."""
    ends = []

    def build(recipe):
        system = begun(recipe)
        before = system.after_step
        system.after_step = lambda: (ends.append(time.process_time()), before())
        return system

    with TemporaryDirectory() as folder:
        train(recipe_at(STEPS_TIMED), build, folder, cpu=True, quiet=True)
    return round(median(later - earlier for earlier, later in pairwise(ends)), 4)


def picture_seconds(system) -> list[float]:
    """Seconds of a core for one picture, three times."""
    found = []
    for _ in range(3):
        begin = time.process_time()
        draw(system, TIMED, guide=cfg(SCALE), levels=STEPS, caption="a red circle")
        found.append(round((time.process_time() - begin) / TIMED, 4))
    return found


def loaded(recipe: Recipe, path: Path):
    """The system of a recipe with the weights that were kept."""
    system = recipe.build()
    load_weights(system, path)
    system.eval().requires_grad_(False)
    lend(system)
    return system


def clock(folder: Path, step: int) -> dict:
    """What a training took so far, in seconds of a core."""
    return {"step": step, "seconds": round(step * json.loads((folder / "times.json").read_text())["step_seconds"], 1)}


def count(system) -> int:
    """Parameters."""
    return sum(p.numel() for p in system.parameters())


def diffusion(name: str, overrides: list[str], marks: tuple[int, ...], folder: Path, sheet):
    """Train a network, and where ``sheet`` is there measure it at each mark."""
    recipe_at = lambda step: load_recipe(name, [*overrides, "training.final_lr=1", f"training.steps={step}"])
    kept, looks = trained(recipe_at, marks, folder), []
    if sheet is None:
        return None
    for step, path in zip(marks, kept, strict=True):
        look = path.with_suffix(".json")
        if not look.exists():
            look.write_text(json.dumps(sheet.seen(sheet.drawn(loaded(recipe_at(step), path)))))
        looks.append(clock(folder, step) | json.loads(look.read_text()))
    times = json.loads((folder / "times.json").read_text())
    return {"parameters": count(recipe_at(1).build(empty=True)), **times, "looks": looks}


def curve(name: str, folder: Path, sheet):
    """A network that is published, along its training."""
    row = diffusion(name, [], CURVES[name], folder, sheet)
    if row and name == "latent-scenes":
        row["first_stage_seconds"] = card("scenes-vae")["seconds"]
    return row


def stage(name: str, folder: Path, sheet):
    """A first stage, and diffusion in its latents."""
    factor, kl, steps, later = STAGES[name]
    shape, wider = SIZES[factor]
    recipe_at = lambda step: load_recipe("scenes-vae", [shape, f"system.kl={kl}", FEW, f"training.steps={step}"])
    first = folder / "first"
    (path,) = trained(recipe_at, (steps,), first)
    latents = folder / "latents"
    overrides = [*wider, f"system.autoencoder={first}", FEW, f"data.latent={latents}"]
    data = load_recipe("latent-scenes", overrides).data
    embed(
        described(data, "train"), embedder(str(first)), embeddings_place(data, "latent", "train"), suffix="latent.npy"
    )
    later = diffusion("latent-scenes", overrides, (later,), folder / "second", sheet)
    if sheet is None:
        return None
    system = loaded(recipe_at(steps), path)
    row = {"factor": factor, "kl_weight": kl, "latent": list(system.latent_shape), "parameters": count(system)}
    return row | clock(first, steps) | reconstructed(system, sheet) | {"diffusion": later}


@torch.no_grad()
def reconstructed(system, sheet: Sheet) -> dict:
    """What an autoencoder keeps of each picture, and what its latents cost."""
    law = gaussian(torch.cat([system.moments(part) for part in sheet.images.split(BATCH)]))
    images = torch.cat([system.decode(part) for part in law.mode.split(BATCH)]).clamp(-1, 1)
    errors = (images - sheet.images).square().mean((1, 2, 3))
    return {
        "psnr": [round(value, 2) for value in (10 * (4 / errors).log10()).tolist()],  # values reach from -1 to 1
        "kl": [round(value, 1) for value in law.kl().tolist()],
        "means_std": round(float(law.mode.std()), 4),
        "noise_std": round(float(law.std.square().mean().sqrt()), 4),
        "reconstructions": sheet.seen(images),
    }


def truth(sheet: Sheet) -> dict:
    """The held-out pictures themselves, and what the published first stage makes of them."""
    grounds = "".join(map(str, read(sheet.images).scenes.background.tolist()))
    own = {"brightness": bright(sheet.images), "grounds": grounds, **sheet.seen(sheet.images)}
    return own | {"scenes-vae": reconstructed(load("scenes-vae"), sheet)}


def row(name: str, folder: Path, sheet):
    """Train what a row needs, and measure it where ``sheet`` is there."""
    if name == "truth":
        return sheet and truth(sheet)
    return (curve if name in CURVES else stage)(name, folder / name.replace(", ", "-").replace(" ", "-"), sheet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/latents.json"))
    parser.add_argument("--runs", type=Path, default=Path("runs/latents"))
    parser.add_argument("--only", choices=ROWS, action="append", help="rows to train and measure; all when left out")
    parser.add_argument("--train", action="store_true", help="train and time; measure nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sheet = None if options.train else Sheet()
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in options.only or ROWS:
        if name in kept.get("rows", {}):
            continue
        begin = time.perf_counter()
        made = row(name, options.runs, sheet)
        print(name, f"{time.perf_counter() - begin:.0f} s", flush=True)
        if made is None:
            continue
        facts = {"captions": sheet.captions, "verdicts": VERDICTS, "drawn_in": STEPS, "scale": SCALE, "features": JUDGE}
        rows = kept.get("rows", {}) | {name: made}
        kept = facts | {"rows": {key: rows[key] for key in ROWS if key in rows}}
        write_atomically(options.out, (json.dumps(kept) + "\n").encode())


if __name__ == "__main__":
    main()
