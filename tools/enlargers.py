"""Two questions of lesson 12 about enlargers from 16 to 32 pixels (fifteen minutes on a CPU core).

Usage: python tools/enlargers.py [--out data/enlargers.json]. An Efficient U-Net and one of ADM's with as many
parameters learn from nothing for the same seconds, as a race of single steps on this machine counts them. And two of
ADM's go on from `glide-up32`, one with the caption and one without it. Rows that are finished are not repeated. It
holds how far each network was off on every single unseen picture; what follows is computed by lesson 12, not here.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from minidiff.data.captions import plain_captions
from minidiff.data.render import render
from minidiff.data.scenes import sample_scenes
from minidiff.data.sets import all_captions, states_place
from minidiff.data.states import store_states
from minidiff.files import write_atomically
from minidiff.metrics import frechet_distance
from minidiff.metrics.intervals import bootstrap
from minidiff.models.language import language
from minidiff.process import diffuse
from minidiff.random import randn, sample_generators
from minidiff.recipes import load_recipe
from minidiff.store import begun
from minidiff.systems.draw import draw
from minidiff.systems.parts import LowRes
from minidiff.training.cost import cost
from minidiff.training.loop import train
from minidiff.training.precision import autocast
from tools.scaling import found

RACED = 800  # steps of ADM's in the race; the other has as many as fit into the same time
NOTHING = ['start=""', "fresh=[]", "training.warmup=100", "training.ema=0.996", "training.seed=123"]
RACERS = {"ADM's": ("imagen-up32", NOTHING), "Efficient": ("efficient32", NOTHING)}
GOES_ON = ["training.steps=400", "training.warmup=50", "training.ema=0.99"]
READERS = {"with the caption": GOES_ON, "without it": [*GOES_ON, "system.text=false"]}
SAME = [
    "data.images=20000",
    "data.text_states=embeddings/scenes-plain-32",
    "training.batch=32",
    "training.lr=1.5e-3",
    "training.checkpoint_every=500",
]
UNSEEN, STEPS, TURNS = 200, 10, 11
TIMES = (0.95, 0.8, 0.6, 0.4)  # noise levels of x in the denoising errors
DOUBTS = (0.0, 0.2, 0.4, 0.6, 0.8)  # sigma in the small picture, which is told
rounded = lambda values: [round(v, 5) for v in values.tolist()]


def recipe_of(name: str, steps: int = RACED):
    """The recipe of a row; the steps are those of a racer."""
    if name in READERS:
        return load_recipe("imagen-up32", [*READERS[name], *SAME, "training.precision=bf16"])
    recipe, more = RACERS[name]
    return load_recipe(recipe, [*more, *SAME, "training.precision=bf16", f"training.steps={steps}"])


def sheet() -> tuple[Tensor, list[str]]:
    """Pictures (UNSEEN, 3, 32, 32) of two objects that no network was trained on, and their captions."""
    generator = torch.Generator().manual_seed(95)
    scenes = sample_scenes(UNSEEN, generator, 2, "seen")
    return render(scenes, 32), plain_captions(scenes, generator)


def seconds_a_step() -> dict[str, float]:
    """Median CPU seconds that the two racers compute for a batch, forward and backward, in turns."""
    recipes = {name: recipe_of(name) for name in RACERS}
    systems = {name: recipe.build() for name, recipe in recipes.items()}
    images, captions = sheet()
    states, mask = language("minilm").text_states(captions[:32])
    batch = {"image": images[:32], "text_states": states, "text_mask": mask}
    laps: dict[str, list[float]] = {name: [] for name in RACERS}
    for turn in range(TURNS):
        for name, system in systems.items():
            begin = time.process_time()
            with autocast(recipes[name].training.precision, torch.device("cpu")):
                loss = system.loss(batch, torch.Generator().manual_seed(turn))["loss"].mean()
            loss.backward()
            laps[name].append(time.process_time() - begin)
    return {name: round(median(seconds[1:]), 5) for name, seconds in laps.items()}  # the first warms up


def noised(images: Tensor, doubt: float) -> tuple[Tensor, Tensor]:
    """The small pictures with noise in them, the same for every network, and how much."""
    sigma = torch.full((len(images),), doubt)
    small = F.interpolate(images, (16, 16), mode="area")
    return LowRes.noised(small, sigma, torch.Generator().manual_seed(96)), sigma


@torch.no_grad()
def misses(system, images: Tensor, at: float, **values) -> Tensor:
    """(UNSEEN,) squared error in v at one noise level of x, whose noise is the same for every network."""
    level, eps = system.schedule.level(at), randn(images.shape, torch.Generator().manual_seed(round(100 * at)))
    v = level.alpha * eps - level.sigma * images
    predicted = system(diffuse(images, level, eps), level, system.condition(**values)).v
    return (predicted - v).square().mean((1, 2, 3))


def patches(images: Tensor) -> Tensor:
    """(B, P, 27) all 3 by 3 patches."""
    return F.unfold(images, 3).transpose(1, 2).double()


def raced(system, images: Tensor, states: tuple[Tensor, Tensor]) -> dict:
    """How a racer denoises at each level, and how far the patches of what it draws are from those of real pictures."""
    given = {"caption": states, "low_res": noised(images, 0.0)}
    drawn = draw(system, UNSEEN, levels=STEPS, generator=sample_generators(0, range(UNSEEN)), **given)
    real, made = patches(images), patches(drawn)
    whiten = lambda x: x.flatten(0, 1) / real.flatten(0, 1).std(0)
    distance = bootstrap(
        lambda i: frechet_distance(whiten(made[i]), whiten(real)),
        torch.arange(UNSEEN),
        generator=torch.Generator().manual_seed(1),
        draws=60,
    )
    return {
        "misses": {str(at): rounded(misses(system, images, at, **given)) for at in TIMES},
        "patches": [round(v, 5) for v in distance],
        "squared": rounded((drawn - images).square().mean((1, 2, 3))),
    }


def read(system, images: Tensor, captions: list[str], states: tuple[Tensor, Tensor]) -> dict:
    """How an enlarger denoises, mean over levels, by what it is told and how much noise there is; what it draws."""
    told = {"the caption": states}
    if any(part.key == "caption" for part in system.parts):
        told["another's caption"] = tuple(part.roll(1, 0) for part in states)
        told["no caption"] = tuple(torch.zeros_like(part) for part in states)
    keys = {part.key for part in system.parts}
    only = lambda **values: {key: value for key, value in values.items() if key in keys}
    errors, verdicts = {}, {}
    for doubt in DOUBTS:
        small = noised(images, doubt)
        errors[str(doubt)] = {
            name: rounded(sum(misses(system, images, at, **only(caption=value, low_res=small)) for at in TIMES) / 4)
            for name, value in told.items()
        }
        how = {"levels": STEPS, "generator": sample_generators(0, range(UNSEEN))}
        verdicts[str(doubt)] = found(
            captions, draw(system, UNSEEN, **how, **only(caption=states, low_res=small)).clamp(-1, 1)
        )
    return {"errors": errors, "verdicts": verdicts}


def row(name: str, steps: int, folder: Path) -> dict:
    """Train one network, and measure it."""
    recipe = recipe_of(name, steps)
    system = recipe.build().eval()
    system.load_state_dict(train(recipe, begun, folder, cpu=True, quiet=True))
    images, captions = sheet()
    states = tuple(language("minilm").text_states(captions)[:2])
    facts = {
        "steps": recipe.training.steps,
        "parameters": sum(p.numel() for p in system.parameters()),
        "flops": cost(recipe).flops / 3,
    }
    return facts | (read(system, images, captions, states) if name in READERS else raced(system, images, states))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/enlargers.json"))
    parser.add_argument("--runs", type=Path, default=Path("runs/enlargers"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    data = recipe_of("ADM's").data
    store_states(Path(states_place(data)), all_captions(data), language("minilm").text_states, data.language)
    seconds, rows = kept.get("seconds_a_step") or seconds_a_step(), kept.get("rows", {})
    steps = {name: round(RACED * seconds["ADM's"] / seconds[name] / 10) * 10 for name in RACERS}
    facts = {"seconds_a_step": seconds, "pictures": UNSEEN, "drawn_in": STEPS}
    for name in [*RACERS, *READERS]:
        if name not in rows:
            begin = time.perf_counter()
            rows[name] = row(name, steps.get(name, 0), options.runs / name.replace(" ", "-").replace("'", ""))
            print(name, f"{time.perf_counter() - begin:.0f} s", flush=True)
            write_atomically(options.out, (json.dumps(facts | {"rows": rows}) + "\n").encode())


if __name__ == "__main__":
    main()
