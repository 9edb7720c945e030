"""Against what guidance schedules race: features of CIFAR-10's test photographs, and of those drawn at constant scales.

Usage: python tools/photographs.py [--out data/photographs.safetensors]. The photographs are those of the recipe of
`cifar16`, sixteen pixels wide, and of them mean and covariance are kept; ``minidiff.course.contest`` reads what is
written.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from minidiff.course.contest import BEST, GRADING, JUDGE, MODEL, NEXT, PRACTICE, raced
from minidiff.data.sets import load_dataset
from minidiff.metrics.embedders import embedder
from minidiff.recipes import load_recipe

BATCH = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/photographs.safetensors"))
    out = parser.parse_args().out
    photographs, judge = load_dataset(load_recipe(MODEL).data, "heldout"), embedder(JUDGE)
    parts = torch.arange(len(photographs)).split(BATCH)
    found = torch.cat([judge.images(torch.stack([photographs[int(i)]["image"] for i in part])) for part in parts])
    moments = {"mean": found.double().mean(0), "covariance": found.double().T.cov()}
    for scale in (BEST, NEXT):
        for seed in (PRACTICE, GRADING):
            moments[f"s = {scale:g}, noise {seed}"] = raced(lambda level, scale=scale: scale, seed)
    save_file({name: x.float().contiguous() for name, x in moments.items()}, out, {"images": str(len(found))})


if __name__ == "__main__":
    main()
