"""How to train, as a recipe says it."""

from __future__ import annotations

from dataclasses import dataclass

from ..arguments import Count, Natural, NonNegative, Positive, checked
from .precision import PRECISIONS

SHARDINGS = ("none", "full")
OPTIMIZERS = ("adamw", "adafactor")


@checked
@dataclass(frozen=True)
class TrainingRecipe:
    """How to train.

    Attributes:
        steps: Optimiser steps.
        batch: Samples per step, over all processes.
        lr: Peak learning rate; linear warm-up, then linear decay to ``final_lr`` times the peak.
        warmup: Steps of warm-up.
        final_lr: Fraction of the peak at the last step.
        betas: AdamW's betas.
        weight_decay: AdamW's weight decay.
        clip: Largest gradient norm, or None.
        ema: Decays of the weight averages, each reached from below as (1 + step) / (10 + step); the first is published.
        precision: "no" (float32) or "bf16"; a CPU without instructions for it takes float32 in both cases.
        seed: Seed of initialisation, data order and noise.
        checkpoint_every: Steps between checkpoints.
        accumulate: Parts into which each process cuts its share of a batch, to save memory.
        checkpointing: Recompute activations in the backward pass, to save memory.
        compile: Compile the network.
        optimizer: "adamw", or "adafactor" (Shazeer and Stern 2018; torch's, from 2.5 on), which keeps row and column
            sums of squares in place of moments and takes steps in proportion to the size of each parameter.
        sharding: "none" (every process holds the whole model, DDP) or "full" (FSDP).

    Raises:
        ValueError: for a number out of range, an unknown precision, sharding or optimiser, or Adafactor of a sharded
            model, which was not tried.
    """

    steps: Count
    batch: Count = 128
    lr: Positive = 1e-3
    warmup: Natural = 100
    final_lr: NonNegative = 0.02
    betas: tuple[float, ...] = (0.9, 0.99)
    weight_decay: NonNegative = 0.0
    clip: float | None = 1.0
    ema: tuple[float, ...] = (0.999,)
    precision: str = "no"
    seed: Natural = 0
    checkpoint_every: Count = 500
    accumulate: Count = 1
    checkpointing: bool = False
    compile: bool = False
    sharding: str = "none"
    optimizer: str = "adamw"

    def __post_init__(self):
        for name, known in (("precision", PRECISIONS), ("sharding", SHARDINGS), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in known:
                raise ValueError(f"training.{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.optimizer == "adafactor" and self.sharding != "none":
            raise ValueError(f"adafactor is for whole models here: sharding none is accepted, got {self.sharding!r}")
        if not self.ema or not all(0 <= decay < 1 for decay in self.ema):
            raise ValueError(f"training.ema holds one decay in [0, 1) or more, got {list(self.ema)}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"training.betas are two numbers in [0, 1), got {list(self.betas)}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"training.clip is a norm > 0 or null, got {self.clip}")
