"""Draw the README's picture, book/_static/cover.png: one noise, eight conditions, by the committed shapes model."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import minidiff
from minidiff.guidance import classifier_free, static_threshold
from minidiff.pictures import save_grid
from minidiff.random import randn, sample_generators
from minidiff.sampler import ddim

ROOT = Path(__file__).resolve().parents[1]
ROWS, SCALE, STEPS, SEED = (0, 24, 32, 38, 44, 49), 3.0, 50, 0


def cover() -> torch.Tensor:
    """(rows x 2 x classes, 3, 16, 16): each row one moment, each column one class, for two noises side by side."""
    model = minidiff.load("shapes16")
    classes = model.part("label").n_classes
    noise = torch.cat(
        [randn((1, *model.shape), sample_generators(SEED, [i])).expand(classes, -1, -1, -1) for i in range(2)]
    )
    told = model.condition(label=torch.arange(classes).repeat(2))
    denoiser = static_threshold(classifier_free(model, told, model.null(len(noise)), SCALE))
    with torch.no_grad():
        states = list(ddim()(denoiser, model.schedule.levels(STEPS), noise))
    return torch.cat([noise / 2, *[states[i].x for i in ROWS[1:]]])


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "book/_static/cover.png"
    save_grid(cover(), target, least=1600, columns=2 * 8)
