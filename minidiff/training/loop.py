"""The training loop: read it from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from ..random import sample_generators
from ..recipes import Recipe, TrainingRecipe, from_dict, nearest
from .checkpoint import average_prefix, load_checkpoint, save_checkpoint
from .data import Order, batches, load_dataset
from .ema import EMA
from .parallel import parallel, placed, share_of, whole
from .precision import autocast, computes_in
from .times import TIMES


def learning_rate(step: int, recipe: TrainingRecipe) -> float:
    """Linear warm-up to ``lr``, then linear decay to ``final_lr * lr`` at the last step."""
    warm = min(1.0, (step + 1) / recipe.warmup) if recipe.warmup else 1.0
    progress = max(0, step - recipe.warmup) / max(1, recipe.steps - 1 - recipe.warmup)
    return recipe.lr * warm * (1 - (1 - recipe.final_lr) * min(1.0, progress))


class Loss(nn.Module):
    """A system's loss as a forward pass, which is where data parallelism hooks in."""

    def __init__(self, system: nn.Module):
        super().__init__()
        self.system = system

    def forward(self, images: Tensor, labels: Tensor, generator, times: Tensor) -> dict[str, Tensor]:
        """(B,) terms; "loss" is what is minimised."""
        return self.system.loss(images, labels, generator, times)


def train(
    recipe: Recipe,
    build: Callable[[Recipe], nn.Module],
    folder: str | Path,
    cpu: bool = False,
    quiet: bool = False,
) -> dict[str, Tensor]:
    """Train a system from a recipe, or go on from where the folder's checkpoint stands.

    Image i of step k and its noise depend on the seed, k and i alone: neither on interruptions, so that a run that is
    killed and resumed ends with the same weights, nor on the number of processes, which agree up to the order of sums
    (dropout excepted, which every process draws for its share).

    Args:
        recipe: What to train.
        build: From the recipe to the untrained system.
        folder: Where checkpoints (``last``, ``previous``) and TensorBoard logs go.
        cpu: Stay on the CPU.
        quiet: No progress bar.

    Returns:
        The averaged weights, of the first decay of the recipe; of this process's share where they are sharded.

    Raises:
        ValueError: when the folder holds a checkpoint that is damaged or of another recipe (nothing is overwritten),
            a batch does not divide among the processes and their parts, or the precision or the times are unknown.
    """
    from accelerate import Accelerator
    from torch.utils.tensorboard import SummaryWriter
    from tqdm import tqdm

    plan, folder = recipe.training, Path(folder)
    if plan.times not in TIMES:
        raise ValueError(f"unknown training.times {plan.times!r}: {nearest(plan.times, TIMES)}")
    accelerator = Accelerator(mixed_precision="no", cpu=cpu)  # a process can have one precision only: ours is per run
    device, main = accelerator.device, accelerator.is_main_process
    dtype = computes_in(plan.precision, device)
    if main and not quiet and plan.precision == "bf16" and dtype is torch.float32:
        print(f"{recipe.name}: this CPU has no instructions for bf16; training in float32")
    share = share_of(plan, accelerator.process_index, accelerator.num_processes)
    torch.manual_seed(plan.seed)
    system = build(recipe)
    found = load_dataset(recipe.data, recipe.network.size)
    order = Order(len(found), plan.batch, plan.seed, getattr(found, "shard_sizes", None))
    times = TIMES[plan.times](system.schedule.T)
    model, optimizer = parallel(Loss(system), plan, accelerator)
    ema = EMA(system, plan.ema)

    last = folder / "last.safetensors"
    start, seconds = _resume(last, recipe, system, optimizer, ema, times) if last.exists() else (0, 0.0)
    writer = SummaryWriter(folder / "log", purge_step=start) if main else None
    began = time.monotonic()
    bar = tqdm(total=plan.steps, initial=start, desc=recipe.name, disable=quiet or not main, unit="step")
    stream = batches(found, order, range(start, plan.steps), share, recipe.data.workers)
    for step, (images, labels) in enumerate(stream, start):
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        places = range(plan.batch)[share]
        generators = sample_generators(plan.seed, [f"step {step} image {i}" for i in places], device.type)
        torch.manual_seed(generators[0].initial_seed())  # dropout has no generator of its own
        t, weight = times.draw(len(images), generators, device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, plan)
        optimizer.zero_grad()
        parts = range(0, len(images), len(images) // plan.accumulate)
        seen = []
        for first in parts:
            part = slice(first, first + parts.step)
            wait = accelerator.no_sync(model) if first != parts[-1] else nullcontext()
            with wait:
                with autocast(plan.precision, device):
                    losses = model(images[part], labels[part], generators[part], t[part])
                accelerator.backward((weight[part] * losses["loss"]).mean() / plan.accumulate)
            seen.append({name: value.detach() for name, value in losses.items()})
        norm = whole(nn.utils.clip_grad_norm_(model.parameters(), math.inf if plan.clip is None else plan.clip))
        optimizer.step()
        ema.update(system, step)
        losses = {name: torch.cat([part[name] for part in seen]) for name in seen[0]}
        if plan.times == "importance":
            times.update(accelerator.gather(t), accelerator.gather(losses["loss"]))
        bar.update()
        if step % 50 == 0:
            means = {name: accelerator.gather(value).mean().item() for name, value in losses.items()}
            bar.set_postfix({name: f"{value:.4f}" for name, value in means.items()})
            if writer:
                for name, value in (means | {"gradient_norm": norm, "lr": learning_rate(step, plan)}).items():
                    writer.add_scalar(name, value, step)
        finished = step + 1 == plan.steps
        if finished or (step + 1) % plan.checkpoint_every == 0:
            tensors = _state(system, optimizer, ema, times)
            if main:
                meta = {
                    "step": step + 1,
                    "seconds": seconds + time.monotonic() - began,
                    "device": f"{accelerator.num_processes} x {device.type}, {torch.get_num_threads()} threads, "
                    f"{str(dtype).removeprefix('torch.')}",
                    "recipe": recipe.to_dict(),
                    "broken_images": len(getattr(found, "broken", [])),
                }
                save_checkpoint(last, tensors, meta)
    bar.close()
    if writer:
        writer.close()
    accelerator.wait_for_everyone()
    return ema.averages[plan.ema[0]]


def _state(system: nn.Module, optimizer, ema: EMA, times) -> dict[str, Tensor]:
    """Everything that the next step depends on, by name; sharded tensors are gathered, so every process takes part."""
    tensors = {f"model.{k}": v for k, v in system.state_dict().items()}
    tensors |= {average_prefix(decay) + k: v for decay, average in ema.averages.items() for k, v in average.items()}
    tensors |= {f"times.{k}": v for k, v in times.state().items()}
    names = {p: name for name, p in system.named_parameters()}
    for parameter, state in _inner(optimizer).state.items():
        tensors |= {f"optimizer.{names[parameter]}.{k}": torch.as_tensor(v) for k, v in state.items()}
    return {name: whole(tensor) for name, tensor in tensors.items()}


def _inner(optimizer) -> torch.optim.Optimizer:
    return getattr(optimizer, "optimizer", optimizer)


@torch.no_grad()
def _resume(path: Path, recipe: Recipe, system: nn.Module, optimizer, ema: EMA, times) -> tuple[int, float]:
    """Load a checkpoint into everything that ``_state`` saved; the step to go on from and the seconds spent so far."""
    tensors, meta = load_checkpoint(path)
    theirs, ours = from_dict(Recipe, meta["recipe"]).to_dict(), recipe.to_dict()
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
    times.load(own("times."))
    return meta["step"], meta["seconds"]
