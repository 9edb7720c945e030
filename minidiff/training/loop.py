"""The training loop: read it from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from ..data.sets import load_dataset, require_classes
from ..random import per_sample, sample_generators
from .checkpoint import average_prefix, load_checkpoint, save_checkpoint
from .ema import EMA
from .order import Order, batches
from .parallel import parallel, placed, share_of, whole
from .plan import TrainingRecipe
from .precision import autocast, computes_in
from .trainable import Trainable, classes_told


def learning_rate(step: int, recipe: TrainingRecipe) -> float:
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
    """Train a system from a recipe, or go on from where the folder's checkpoint stands.

    Sample i of step k and its noise depend on the seed, k and i alone: neither on interruptions, so that a run that is
    killed and resumed ends with the same weights, nor on the number of processes, which agree up to the order of sums.

    Args:
        recipe: What to train, a ``recipes.Recipe``.
        build: From the recipe to the untrained system.
        folder: Where checkpoints (``last``, ``previous``) and TensorBoard logs go.
        cpu: Stay on the CPU.
        quiet: No progress bar.

    Returns:
        The averaged weights, of the first decay of the recipe; of this process's share where they are sharded.

    Raises:
        ValueError: when the folder holds a checkpoint that is damaged or of another recipe (nothing is overwritten), or
            a batch does not divide among the processes and their parts.
    """
    from accelerate import Accelerator

    plan, folder = recipe.training, Path(folder)
    accelerator = Accelerator(mixed_precision="no", cpu=cpu)  # a process can have one precision only: ours is per run
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
    order = Order(len(found), plan.batch, plan.seed, getattr(found, "shard_sizes", None))
    model, optimizer = parallel(Loss(system), plan, accelerator)
    ema = EMA(system, plan.ema)

    last = folder / "last.safetensors"
    start, seconds = _resume(last, recipe, system, optimizer, ema) if last.exists() else (0, 0.0)
    began = time.monotonic()
    log = _Log(folder, recipe.name, plan.steps, start, quiet, accelerator)
    stream = batches(found, order, range(start, plan.steps), share, recipe.data.workers)
    for step, batch in enumerate(stream, start):
        losses, norm = _step(step, batch, range(plan.batch)[share], model, optimizer, plan, accelerator)
        system.after_step()
        ema.update(system, step)
        log.step(step, losses, norm, learning_rate(step, plan))
        if step + 1 == plan.steps or (step + 1) % plan.checkpoint_every == 0:
            tensors = _state(system, optimizer, ema)
            if main:
                threads = f"{torch.get_num_threads()} threads, {str(dtype).removeprefix('torch.')}"
                meta = {
                    "step": step + 1,
                    "seconds": seconds + time.monotonic() - began,
                    "device": f"{accelerator.num_processes} x {device.type}, {threads}",
                    "recipe": recipe.to_plain(),
                    "broken_images": len(getattr(found, "broken", [])),
                }
                save_checkpoint(last, tensors, meta)
    log.close()
    accelerator.wait_for_everyone()
    return ema.averages[plan.ema[0]]


def _step(step: int, batch, places: range, model: nn.Module, optimizer, plan: TrainingRecipe, accelerator):
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


class _Log:
    """The progress bar, and TensorBoard's numbers, of the first process."""

    EVERY = 50  # steps between two means

    def __init__(self, folder: Path, name: str, steps: int, start: int, quiet: bool, accelerator):
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        main = accelerator.is_main_process
        self.accelerator = accelerator
        self.writer = SummaryWriter(folder / "log", purge_step=start) if main else None
        self.bar = tqdm(total=steps, initial=start, desc=name, disable=quiet or not main, unit="step")

    def step(self, step: int, losses: dict[str, Tensor], norm: Tensor, lr: float) -> None:
        self.bar.update()
        if step % self.EVERY:
            return
        means = {name: self.accelerator.gather(value).mean().item() for name, value in losses.items()}
        self.bar.set_postfix({name: f"{value:.4f}" for name, value in means.items()})
        if self.writer:
            for name, value in (means | {"gradient_norm": norm, "lr": lr}).items():
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.bar.close()
        if self.writer:
            self.writer.close()


def _state(system: Trainable, optimizer, ema: EMA) -> dict[str, Tensor]:
    """Everything that the next step depends on, by name; sharded tensors are gathered, so every process takes part."""
    tensors = {f"model.{k}": v for k, v in system.state_dict().items()}
    tensors |= {average_prefix(decay) + k: v for decay, average in ema.averages.items() for k, v in average.items()}
    tensors |= {f"levels.{k}": v for k, v in system.training_state().items()}
    names = {p: name for name, p in system.named_parameters()}
    for parameter, state in _inner(optimizer).state.items():
        tensors |= {f"optimizer.{names[parameter]}.{k}": torch.as_tensor(v) for k, v in state.items()}
    return {name: whole(tensor) for name, tensor in tensors.items()}


def _inner(optimizer) -> torch.optim.Optimizer:
    return getattr(optimizer, "optimizer", optimizer)


@torch.no_grad()
def _resume(path: Path, recipe, system: Trainable, optimizer, ema: EMA) -> tuple[int, float]:
    """Load a checkpoint into everything that ``_state`` saved; the step to go on from and the seconds spent so far."""
    tensors, meta = load_checkpoint(path)
    theirs, ours = type(recipe).from_plain(meta["recipe"]).to_plain(), recipe.to_plain()
    if theirs != ours:
        different = sorted(k for k in ours if theirs.get(k) != ours[k])
        raise ValueError(
            f"{path} was made by another recipe (different: {', '.join(different)}); choose another folder or move it"
        )
    own = lambda prefix: {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    targets = {"model.": system.state_dict()} | {average_prefix(decay): a for decay, a in ema.averages.items()}
    for prefix, target in targets.items():
        saved = own(prefix)
        for name, tensor in target.items():
            tensor.copy_(placed(saved[name], tensor))
    for name, parameter in system.named_parameters():
        state = own(f"optimizer.{name}.")
        if state:
            _inner(optimizer).state[parameter] = {k: placed(v, parameter) for k, v in state.items()}
    system.load_training_state(own("levels."))
    return meta["step"], meta["seconds"]
