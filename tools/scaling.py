"""Readers of captions and widths of painters: what each is worth (80 minutes of a CPU core).

Usage: python tools/scaling.py [--out data/scaling.json]. A row is the recipe `imagen` with another text encoder, which
begins with glide's U-Net, trained for some steps and measured. U-Nets of other widths have no such start: the rows
"from nothing" have none, whatever their width and encoder, and one plan. Rows that are finished are not repeated, so it
can be interrupted. It holds what the oracle says of every single picture and how well each network denoises; what
follows is computed by lesson 12, not here.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from minidiff.data.captions import judge, parse, plain_captions
from minidiff.data.oracle import read
from minidiff.data.render import render
from minidiff.data.scenes import COLORS, RELATIONS, sample_scenes
from minidiff.data.sets import all_captions, states_place
from minidiff.data.states import store_states
from minidiff.files import write_atomically
from minidiff.guidance import cfg
from minidiff.process import diffuse
from minidiff.random import randn, sample_generators
from minidiff.recipes import load_recipe
from minidiff.store import begun, load
from minidiff.systems.draw import draw
from minidiff.training.checkpoint import load_checkpoint
from minidiff.training.cost import cost
from minidiff.training.loop import train

ROWS = {  # name: text encoder
    "MiniLM, 6 layers": "minilm",
    "words": "words",
    "CLIP": "scenes-clip-strong",
    "MiniLM, 1 layer": "minilm-1",
    "MiniLM, 4 layers": "minilm-4",
    "MiniLM, 2 layers": "minilm-2",
}
TRAINED = 800  # steps
MIDDLE = "6 layers, 32 channels"
FROM_NOTHING = {  # name: text encoder, channels, seed of the training
    MIDDLE: ("minilm", 32, 120),
    "6 layers, 16 channels": ("minilm", 16, 120),
    "6 layers, 48 channels": ("minilm", 48, 120),
    "1 layer, 32 channels": ("minilm-1", 32, 120),
    f"{MIDDLE}, trained again": ("minilm", 32, 121),
}
PLAN = {"steps": 1000, "batch": 32, "warmup": 100, "ema": 0.996}  # of the rows from nothing
UNSEEN, STEPS, SCALE = 300, 10, 3.0
TIMES = (0.9, 0.75, 0.6, 0.45)  # noise levels of the denoising errors
VERDICTS = (
    "count",
    "shape",
    "color",
    "binding",
    "relation",
    "placed",
)  # "placed": the colours stand as the caption says, whatever the shapes
INVERSE = dict(zip(RELATIONS, [RELATIONS[i ^ 1] for i in range(4)], strict=True))
OTHER_WORDS = dict(
    zip(COLORS, ("crimson", "tangerine", "golden", "emerald", "turquoise", "azure", "violet", "rose"), strict=True)
)


def recipe_of(name: str):
    """The recipe of one row."""
    if name in FROM_NOTHING:
        encoder, channels, seed = FROM_NOTHING[name]
        plan = PLAN | {"seed": seed}
        more = ['start=""', "fresh=[]", f"network.channels={channels}"]
    else:
        encoder, plan, more = ROWS[name], {"steps": TRAINED}, []
    width = 64 if encoder == "scenes-clip-strong" else 384
    more += [f"data.language={encoder}", f"network.language.width={width}"]
    return load_recipe("imagen", more + [f"training.{key}={value}" for key, value in plan.items()])


def sheet() -> tuple[torch.Tensor, list[str]]:
    """Pictures (UNSEEN, 3, 16, 16) of two objects that no network was trained on, and their captions."""
    generator = torch.Generator().manual_seed(92)
    scenes = sample_scenes(UNSEEN, generator, 2, "seen")
    return render(scenes, 16), plain_captions(scenes, generator)


def turned(caption: str) -> str:
    """The same words but for the relation, which is reversed: false of the picture."""
    relation = parse(caption).relation
    return caption.replace(f" {relation} ", f" {INVERSE[relation]} ")


def exchanged(caption: str) -> str:
    """The two objects in each other's place: the same words in another order, and false as well."""
    one, two = map(str, parse(caption).phrases)
    return f"{two} {parse(caption).relation} {one}"


def renamed(caption: str) -> str:
    """Colours by words that no caption of training had."""
    words = [OTHER_WORDS.get(word, word) for word in caption.split()]
    for i, word in enumerate(words[:-1]):
        if word in ("a", "an"):
            words[i] = "an" if words[i + 1][0] in "aeiou" else "a"
    return " ".join(words)


def found(captions: list[str], images: torch.Tensor) -> list[str]:
    """The oracle's verdicts of each picture, as digits in the order of ``VERDICTS``."""
    scenes = read(images).scenes
    without_shapes = []
    for caption in captions:
        for phrase in parse(caption).phrases:
            caption = caption.replace(f"{phrase.color} {phrase.noun}", f"{phrase.color} object")
        without_shapes.append(caption)
    verdicts = judge(captions, scenes) | {"placed": judge(without_shapes, scenes)["relation"]}
    return ["".join(str(int(verdicts[name][i])) for name in VERDICTS) for i in range(len(captions))]


@torch.no_grad()
def misses(system, told: dict, images: torch.Tensor) -> dict[str, list[float]]:
    """Squared error in v of each unseen picture, mean over levels, by what the network is told; all see one noise."""
    errors = {name: torch.zeros(UNSEEN) for name in told}
    for i, at in enumerate(TIMES):
        level, eps = system.schedule.level(at), randn(images.shape, torch.Generator().manual_seed(i))
        v = level.alpha * eps - level.sigma * images
        for name, value in told.items():
            condition = system.condition(caption=value)
            predicted = system(diffuse(images, level, eps), level, condition).v
            errors[name] += (predicted - v).square().mean((1, 2, 3)) / len(TIMES)
    return {name: [round(value, 6) for value in error.tolist()] for name, error in errors.items()}


def row(name: str, folder: Path) -> dict:
    """Train one network, and measure it."""
    recipe = recipe_of(name)
    reader = load(recipe.data.language, "cpu", "text_states")
    store_states(Path(states_place(recipe.data)), all_captions(recipe.data), reader.text_states, recipe.data.language)
    system = recipe.build().eval()
    system.load_state_dict(train(recipe, begun, folder, cpu=True, quiet=True))
    seconds = load_checkpoint(folder / "last.safetensors")[1]["seconds"]
    images, captions = sheet()
    states = lambda texts: tuple(reader.text_states(texts)[:2])
    own = states(captions)
    told = {
        "the caption": own,
        "its relation turned": states([turned(c) for c in captions]),
        "its objects exchanged": states([exchanged(c) for c in captions]),
        "its colours by other words": states([renamed(c) for c in captions]),
        "another's caption": states([captions[-1], *captions[:-1]]),
        "no caption": tuple(torch.zeros_like(part) for part in own),
    }
    ways = ("the caption", "its colours by other words")
    if name in FROM_NOTHING:
        ways = ways[:1]
        told = {how: told[how] for how in ("the caption", "its relation turned", "another's caption", "no caption")}
    drawn = {}
    for how in ways:
        noises = sample_generators(0, range(UNSEEN))
        drawn[how] = found(
            captions, draw(system, UNSEEN, guide=cfg(SCALE), levels=STEPS, generator=noises, caption=told[how])
        )
    with FlopCounterMode(display=False) as counter:
        reader.text_states(captions)
    count = lambda module: sum(p.numel() for name, p in module.named_parameters() if "visual" not in name)
    return {
        "encoder": recipe.data.language,
        "channels": recipe.network.channels,
        "encoder_parameters": count(reader),
        "parameters": count(system),
        "encoder_flops": counter.get_total_flops() / UNSEEN,
        "flops": cost(recipe).flops / 3,
        "seconds": round(seconds, 1),
        "verdicts": drawn,
        "misses": misses(system, told, images),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/scaling.json"))
    parser.add_argument("--runs", type=Path, default=Path("runs/scaling"))
    every = {name: "rows" for name in ROWS} | {name: "from_nothing" for name in FROM_NOTHING}
    parser.add_argument("--only", choices=every, action="append", help="rows to train and measure; all when left out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plan = recipe_of(next(iter(ROWS))).training
    facts = {"steps": plan.steps, "batch": plan.batch, "captions": UNSEEN, "drawn_in": STEPS, "scale": SCALE}
    result = {**facts, "plan": PLAN, "verdicts": VERDICTS, "rows": {}, "from_nothing": {}}
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in options.only or every:
        where = every[name]
        if name not in kept.setdefault(where, {}):
            begin = time.perf_counter()
            kept[where][name] = row(name, options.runs / name.replace(", ", "-").replace(" ", "-"))
            print(name, f"{time.perf_counter() - begin:.0f} s", flush=True)
            for part in ("rows", "from_nothing"):
                result[part] = {key: kept[part][key] for key in every if key in kept.get(part, {})}
            write_atomically(options.out, (json.dumps(result) + "\n").encode())


if __name__ == "__main__":
    main()
