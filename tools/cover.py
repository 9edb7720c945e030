"""Draw the README's picture, book/_static/cover.png: one noise, eight names, two hands, by the emoji network."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import minidiff
from minidiff.data.emoji import hand_words
from minidiff.guidance import cfg
from minidiff.pictures import save_grid
from minidiff.random import randn, sample_generators
from minidiff.sampler import ddim

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("red apple", "red heart", "pizza", "soccer ball", "cat face", "sunflower", "full moon face", "green circle")
ROWS, SCALE, STEPS, SEED = (0, 6, 13, 20, 38), 3.0, 40, 0


@torch.no_grad()
def cover() -> torch.Tensor:
    """(rows x 2 x names, 3, 64, 64): each row what the network takes the picture for at one moment, each column a name,
    drawn by one hand and then by the other."""
    model = minidiff.load("emoji-decoder")
    told = [f"{hand} {name}" for hand in hand_words() for name in NAMES]
    noise = randn((1, *model.shape), sample_generators(SEED, [0])).expand(len(told), -1, -1, -1)
    denoiser = cfg(SCALE)(model, model.condition(len(told), caption=told), model.null(len(told)))
    states = list(ddim()(denoiser, model.schedule.levels(STEPS), noise))
    return model.latents.outward(torch.cat([states[i].prediction.x0 for i in ROWS])).clamp(-1, 1)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "book/_static/cover.png"
    save_grid(cover(), target, least=1600, columns=2 * len(NAMES))
