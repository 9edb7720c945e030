"""What lesson 12 says of `imagen`: guidance with four thresholds, a small DrawBench (ten minutes on a CPU core).

Usage: python tools/imagen.py [--out data/imagen.json]. Rows that are finished are not repeated, so it can be
interrupted; remove the file when the checkpoint has changed. It holds what the oracle and a CLIP say of every single
picture; what follows from that is computed by lesson 12, not here. The prompts of the bench, and what each should show,
stand in data/drawbench.json; they were written before the first picture was drawn.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from minidiff.data.captions import plain_captions
from minidiff.data.render import render
from minidiff.data.scenes import sample_scenes
from minidiff.files import sha256, write_atomically
from minidiff.guidance import cfg, dynamic_threshold, static_threshold
from minidiff.metrics import frechet_distance
from minidiff.metrics.captions import FITS, fits
from minidiff.metrics.embedders import embedder
from minidiff.metrics.intervals import bootstrap
from minidiff.random import sample_generators
from minidiff.store import load, weights_path
from minidiff.systems.draw import draw

NETWORK, JUDGE = "imagen", "scenes-clip-strong"
CAPTIONS, STEPS, BATCH, REAL = 150, 10, 50, 4000
SCALES = (1.0, 3.0, 6.0, 10.0, 15.0)
RULES = {  # the last was added when the pictures of the others had been seen
    "none": None,
    "static": static_threshold,
    "dynamic": dynamic_threshold(0.995),
    "dynamic, 90 %": dynamic_threshold(0.9),
}
BENCH_SCALE, COPIES = 3.0, 4
BESIDE = "glide"  # what has a text transformer of its own, which learnt with it
NEAR_END = 0.98  # of the range; numbers beyond it count as saturated


def sheet() -> list[str]:
    """Captions of two objects in plain words, of combinations that were seen."""
    generator = torch.Generator().manual_seed(93)
    return plain_captions(sample_scenes(CAPTIONS, generator, 2, "seen"), generator)


def real() -> torch.Tensor:
    """Pictures of other scenes of the same kind."""
    return render(sample_scenes(REAL, torch.Generator().manual_seed(94), 2, "seen"), 16)


def drawn(model, captions: list[str], scale: float, rule: str, first: int = 0) -> torch.Tensor:
    """A picture of each caption, as the chain leaves it; caption i starts from the noise number ``first`` + i."""
    parts = []
    for at in range(0, len(captions), BATCH):
        some = captions[at : at + BATCH]
        noises = sample_generators(0, range(first + at, first + at + len(some)))
        how = {"guide": cfg(scale), "levels": STEPS, "threshold": RULES[rule], "generator": noises}
        parts.append(draw(model, len(some), caption=some, **how))
    return torch.cat(parts)


def found(captions: list[str], images: torch.Tensor) -> list[str]:
    """The oracle's verdicts of each picture, as digits in the order of ``FITS``; the captions are of the grammar."""
    verdicts = fits(captions, images.clamp(-1, 1))
    return ["".join(str(int(verdicts[name][i])) for name in FITS) for i in range(len(captions))]


def guided(model, eye, captions: list[str], against: torch.Tensor, scale: float, rule: str) -> dict:
    """One row: the pictures of one scale under one rule."""
    images = drawn(model, captions, scale, rule)
    seen = eye.images(images.clamp(-1, 1)).double()
    distance = bootstrap(
        lambda i: frechet_distance(seen[i], against),
        torch.arange(len(seen)),
        generator=torch.Generator().manual_seed(1),
        draws=60,
    )
    rounded = lambda values: [round(v, 4) for v in values.tolist()]
    return {
        "scale": scale,
        "rule": rule,
        "verdicts": found(captions, images),
        "clip": rounded((seen * eye.texts(captions)).sum(1)),
        "outside": rounded((images.abs() > 1.0001).flatten(1).double().mean(1)),
        "saturated": rounded((images.clamp(-1, 1).abs() > NEAR_END).flatten(1).double().mean(1)),
        "frechet": [round(v, 5) for v in distance],
    }


def benched(model, eye, prompts: list[dict]) -> dict:
    """The DrawBench: verdicts of every picture, and the number of the meaning that a CLIP finds it nearest to."""
    said, means = ([p[key] for p in prompts] for key in ("prompt", "means"))
    copies = [drawn(model, said, BENCH_SCALE, "dynamic", 1000 * (k + 1)) for k in range(COPIES)]
    texts = eye.texts(means)
    return {
        "verdicts": [found_one_by_one(means, images) for images in copies],
        "nearest": [(eye.images(images) @ texts.T).argmax(1).tolist() for images in copies],
    }


def found_one_by_one(captions: list[str], images: torch.Tensor) -> list[str]:
    """As ``found``; captions of one object and of two."""
    return [found([caption], images[i : i + 1])[0] for i, caption in enumerate(captions)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/imagen.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    prompts = json.loads(Path("data/drawbench.json").read_text())["prompts"]
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    rows, bench = kept.get("rows", []), kept.get("bench")
    model, eye, captions = load(NETWORK), embedder(JUDGE), sheet()
    pictures = real()
    against = torch.cat([eye.images(part) for part in pictures.split(500)]).double()
    facts = {
        "weights": sha256(weights_path(NETWORK)),
        "judge": JUDGE,
        "captions": captions,
        "steps": STEPS,
        "verdicts": list(FITS),
        "bench_scale": BENCH_SCALE,
        "real_saturated": round((pictures.abs() > NEAR_END).double().mean().item(), 4),
    }
    beside = kept.get("beside")
    store = lambda: write_atomically(
        options.out, (json.dumps(facts | {"rows": rows, "bench": bench, "beside": beside}) + "\n").encode()
    )
    if beside is None:
        beside = guided(load(BESIDE), eye, captions, against, BENCH_SCALE, "static")
        beside["weights"] = sha256(weights_path(BESIDE))
        store()
    if bench is None:
        bench = benched(model, eye, prompts)
        store()
    for rule in ("dynamic", "static", "none", "dynamic, 90 %"):
        for scale in SCALES:
            if any((row["scale"], row["rule"]) == (scale, rule) for row in rows):
                continue
            begin = time.perf_counter()
            rows.append(guided(model, eye, captions, against, scale, rule))
            rows[-1]["seconds"] = round(time.perf_counter() - begin, 1)
            print(rule, scale, f"{rows[-1]['seconds']} s", flush=True)
            store()


if __name__ == "__main__":
    main()
