"""The training loop: read it from top to bottom."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing, nullcontext, suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..arguments import Natural, checked
from ..data.digests import of_set
from ..data.sets import class_names, fixed_classes, load_dataset, require_classes, require_images, rows
from ..files import owned
from ..random import per_sample, sample_generators
from .checkpoint import averaged, export_weights, load_checkpoint, save_checkpoint
from .ema import EMA
from .order import Order, batches
from .parallel import parallel, share_of, whole
from .plan import TrainingRecipe
from .precision import autocast, computes_in
from .resume import State
from .trainable import Trainable, classes_told
from .watch import Watch

log = logging.getLogger(__name__)


@checked
def learning_rate(step: Natural, recipe: TrainingRecipe) -> float:
    """Linear warm-up to ``lr``, then linear decay to ``final_lr * lr`` at the last step."""
    warm = min(1.0, (step + 1) / recipe.warmup) if recipe.warmup else 1.0
    progress = max(0, step - recipe.warmup) / max(1, recipe.steps - 1 - recipe.warmup)
    return recipe.lr * warm * (1 - (1 - recipe.final_lr) * min(1.0, progress))


class Loss(nn.Module):
    """A system's loss as a forward pass, which is where data parallelism hooks in."""

    def __init__(self, system: Trainable):
        super().__init__()
        self.system = system

    def forward(self, batch: dict[str, Tensor], generator) -> dict[str, Tensor]:
        """(B,) terms; "loss" is what is minimised."""
        return self.system.loss(batch, generator)


def train(
    recipe,
    build: Callable[..., Trainable],
    folder: str | Path,
    cpu: bool = False,
    quiet: bool = False,
) -> dict[str, Tensor]:
    """Train a system from a recipe, stage by stage, or go on from where the folder's checkpoints stand.

    Sample i of step k and its noise depend on the seed, k and i alone: neither on interruptions, so that a run that is
    killed and resumed ends with the same weights, nor on the number of processes, which agree up to the order of sums.

    Args:
        recipe: What to train, a ``recipes.Recipe``.
        build: From the recipe to the untrained system.
        folder: Where checkpoints (``last``, ``previous``) and TensorBoard logs go; those of a stage of
            ``recipe.before`` into a folder in it, with the weights that the next begins with.
        cpu: Stay on the CPU; so do several processes without a GPU, whatever is said here.
        quiet: No progress bar.

    Returns:
        The averaged weights, of the first decay of the recipe; of this process's share where they are sharded.

    Raises:
        ValueError: when the folder holds a checkpoint that is damaged or of another recipe (nothing is overwritten),
            another process trains there, or a batch does not divide among the processes and their parts; at the first
            step whose loss, gradient or weights are not finite.
        KeyboardInterrupt: after Ctrl-C, at the end of the step, which is saved.
    """
    from accelerate import Accelerator

    several = int(os.environ.get("WORLD_SIZE", 1)) > 1  # without a GPU, Accelerate sees them if told to stay on the CPU
    cpu = cpu or (several and not torch.cuda.is_available())
    accelerator = Accelerator(mixed_precision="no", cpu=cpu)  # a process can have one precision only: ours is per run
    with owned(Path(folder)) if accelerator.is_main_process else nullcontext():
        *first, last = recipe.stages(folder)
        for name, stage in zip(recipe.before, first, strict=True):
            place = Path(folder) / name
            _train(stage, build, place, accelerator, quiet)
            if accelerator.is_main_process:
                tensors, _ = load_checkpoint(place / "last.safetensors")
                weights = averaged(tensors, stage.training.ema[0])
                export_weights(weights, place / "model.safetensors", {"name": stage.name})
            accelerator.wait_for_everyone()
        return _train(last, build, Path(folder), accelerator, quiet)


def _train(recipe, build, folder: Path, accelerator, quiet: bool) -> dict[str, Tensor]:
    plan = recipe.training
    device, main = accelerator.device, accelerator.is_main_process
    dtype = computes_in(plan.precision, device)
    if main and not quiet and plan.precision == "bf16" and dtype is torch.float32:
        print(f"{recipe.name}: this CPU has no instructions for bf16; training in float32")
    share = share_of(plan, accelerator.process_index, accelerator.num_processes)
    torch.manual_seed(plan.seed)
    system = build(recipe)
    if system.whole_batch and plan.accumulate != 1:
        raise ValueError(
            f"training.accumulate must be 1 for a {recipe.system}, got {plan.accumulate}: the parts of a batch would "
            "lose each other as negatives"
        )
    found = load_dataset(recipe.data)
    if (n_classes := classes_told(system)) is not None:
        require_classes(found, n_classes)
    if len(getattr(system, "shape", ())) == 3 and getattr(system, "latents", None) is None:
        require_images(found, system.shape)
    system.prepare(partial(rows, found, f"{recipe.data.name} train"))
    order = Order(len(found), plan.batch, plan.seed, getattr(found, "shard_sizes", None))
    model, optimizer = parallel(Loss(system), plan, accelerator)
    ema = EMA(system, plan.ema)
    state, last = State(system, optimizer, ema), folder / "last.safetensors"
    data = of_set(found)
    start, seconds = state.resume(folder, recipe, len(found), data)
    began = time.monotonic()
    shown = _Log(folder, recipe.name, plan.steps, start, quiet, accelerator)
    stream = batches(found, order, range(start, plan.steps), share, recipe.data.workers)
    with Watch() as watch, closing(shown):
        for step, batch in enumerate(stream, start):
            losses, norm = _step(step, batch, range(plan.batch)[share], model, optimizer, plan, accelerator)
            diverged, stop = watch.look(losses["loss"], norm, system)
            if diverged:
                raise ValueError(_diverged(recipe.name, diverged, step + 1, plan, last))
            system.after_step()
            ema.update(system, step)
            shown.step(step, losses, norm, learning_rate(step, plan))
            if stop or step + 1 == plan.steps or (step + 1) % plan.checkpoint_every == 0:
                tensors = state.tensors()
                if main:
                    threads = f"{torch.get_num_threads()} threads, {str(dtype).removeprefix('torch.')}"
                    meta = {
                        "step": step + 1,
                        "seconds": seconds + time.monotonic() - began,
                        "device": f"{accelerator.num_processes} x {device.type}, {threads}",
                        "recipe": recipe.to_plain(),
                        **state.facts(),
                        "images": len(found),
                        "data": data,
                        "classes": list(fixed_classes(recipe.data) or class_names(found)),
                        "broken_images": len(getattr(found, "broken", [])),
                    }
                    save_checkpoint(last, tensors, meta)
            if stop and step + 1 < plan.steps:
                raise KeyboardInterrupt(f"stopped after step {step + 1} of {plan.steps}, which is in {last}")
    accelerator.wait_for_everyone()
    return ema.averages[plan.ema[0]]


def _diverged(name: str, what: str, step: Natural, plan: TrainingRecipe, last: Path) -> str:
    kept = f"{last} holds the last finite checkpoint" if last.exists() else "no checkpoint was written yet"
    return (
        f"{name}: {what} is not finite at step {step} of {plan.steps}; {kept}. "
        f"A smaller training.lr ({plan.lr:g}) or training.clip ({plan.clip}) in another folder may help"
    )


def _step(step: Natural, batch, places: range, model: nn.Module, optimizer, plan: TrainingRecipe, accelerator):
    """One optimiser step on this process's share of a batch: the terms of the loss, and the norm of the gradient."""
    device = accelerator.device
    batch = {name: column.to(device, non_blocking=True) for name, column in batch.items()}
    generators = sample_generators(plan.seed, [f"step {step} image {i}" for i in places], device.type)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, plan)
    optimizer.zero_grad()
    losses = _accumulated(model, batch, generators, plan, accelerator)
    norm = whole(nn.utils.clip_grad_norm_(model.parameters(), math.inf if plan.clip is None else plan.clip))
    optimizer.step()
    return losses, norm


def _accumulated(model: nn.Module, batch, generators: list, plan: TrainingRecipe, accelerator) -> dict[str, Tensor]:
    """Gradients of one step, the batch cut into parts; the terms of the loss."""
    n, seen = len(generators), []
    parts = range(0, n, n // plan.accumulate)
    for first in parts:
        part = slice(first, first + parts.step)
        wait = accelerator.no_sync(model) if first != parts[-1] else nullcontext()
        with wait, per_sample(generators[part]):
            with autocast(plan.precision, accelerator.device):
                losses = model({name: column[part] for name, column in batch.items()}, generators[part])
            accelerator.backward(losses["loss"].mean() / plan.accumulate)
        seen.append({name: value.detach() for name, value in losses.items()})
    return {name: torch.cat([terms[name] for terms in seen]) for name in seen[0]}


class _Onlookers:
    """Standard error as long as somebody reads it: a training does not end with the terminal that it began in."""

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.flush()

    def __getattr__(self, name: str):
        return getattr(sys.stderr, name)


class _Log:
    """The progress bar, and TensorBoard's numbers, of the first process."""

    EVERY = 50  # steps between two means

    def __init__(self, folder: Path, name: str, steps: int, start: int, quiet: bool, accelerator):
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        main = accelerator.is_main_process
        self.accelerator = accelerator
        self.folder = folder / "log"
        self.writer = SummaryWriter(self.folder, purge_step=start) if main else None
        shown = {"file": _Onlookers(), "disable": quiet or not main}
        self.bar = tqdm(total=steps, initial=start, desc=name, unit="step", **shown)

    def step(self, step: Natural, losses: dict[str, Tensor], norm: Tensor, lr: float) -> None:
        self.bar.update()
        if step % self.EVERY:
            return
        means = {name: self.accelerator.gather(value).mean().item() for name, value in losses.items()}
        self.bar.set_postfix({name: f"{value:.4f}" for name, value in means.items()})
        try:
            for name, value in (means | {"gradient_norm": norm, "lr": lr}).items() if self.writer else ():
                self.writer.add_scalar(name, value, step)
        except OSError as error:  # of a full disk, say: no reason to end a training
            log.warning("the numbers in %s are written no more (%s); the training goes on", self.folder, error)
            self.writer = None

    def close(self) -> None:
        self.bar.close()
        if self.writer:
            with suppress(OSError):
                self.writer.close()
