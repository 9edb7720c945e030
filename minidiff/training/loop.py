"""The training loop: read it from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..random import sample_generators
from ..recipes import Recipe, TrainingRecipe, from_dict
from .checkpoint import load_checkpoint, save_checkpoint
from .data import Order, load_set
from .ema import EMA


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

    def forward(self, images: Tensor, labels: Tensor, generator) -> dict[str, Tensor]:
        """Scalars; "loss" is what is minimised."""
        return self.system.loss(images, labels, generator)


def train(
    recipe: Recipe,
    build: Callable[[Recipe], nn.Module],
    folder: str | Path,
    cpu: bool = False,
    quiet: bool = False,
) -> dict[str, Tensor]:
    """Train a system from a recipe, or go on from where the folder's checkpoint stands.

    Step k sees the same images and the same noise whether or not the run was interrupted, so a run that is killed and
    resumed ends with the same weights.

    Args:
        recipe: What to train.
        build: From the recipe to the untrained system.
        folder: Where checkpoints (``last``, ``previous``) and TensorBoard logs go.
        cpu: Stay on the CPU.
        quiet: No progress bar.

    Returns:
        The averaged weights.

    Raises:
        ValueError: when the folder holds a checkpoint that is damaged or of another recipe; nothing is overwritten.
    """
    from accelerate import Accelerator
    from torch.utils.tensorboard import SummaryWriter
    from tqdm import tqdm

    plan, folder = recipe.training, Path(folder)
    accelerator = Accelerator(mixed_precision=plan.precision, cpu=cpu)
    if plan.batch % accelerator.num_processes:
        raise ValueError(f"a batch of {plan.batch} does not divide among {accelerator.num_processes} processes")
    torch.manual_seed(plan.seed)
    system = build(recipe).to(memory_format=torch.channels_last)
    images, labels = load_set(recipe.data, recipe.network.size)
    order = Order(len(images), plan.batch, plan.seed)
    optimizer = torch.optim.AdamW(
        system.parameters(), lr=plan.lr, betas=plan.betas, weight_decay=plan.weight_decay, fused=True
    )
    model, optimizer = accelerator.prepare(Loss(system), optimizer)
    ema = EMA(system, plan.ema[0])

    last = folder / "last.safetensors"
    start, seconds = _resume(last, recipe, system, optimizer, ema) if last.exists() else (0, 0.0)
    writer = SummaryWriter(folder / "log", purge_step=start) if accelerator.is_main_process else None
    rank, local = accelerator.process_index, plan.batch // accelerator.num_processes
    began = time.monotonic()
    bar = tqdm(total=plan.steps, initial=start, desc=recipe.name, disable=quiet or rank > 0, unit="step")
    for step in range(start, plan.steps):
        chosen = order[step][rank * local : (rank + 1) * local]
        places = range(rank * local, (rank + 1) * local)
        generator = sample_generators(plan.seed, [f"step {step} image {i}" for i in places], accelerator.device)
        torch.manual_seed(generator[0].initial_seed())  # dropout has no generator of its own
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, plan)
        batch = images[chosen].to(accelerator.device), labels[chosen].to(accelerator.device)
        with accelerator.autocast():
            losses = model(*batch, generator)
        optimizer.zero_grad()
        accelerator.backward(losses["loss"])
        norm = accelerator.clip_grad_norm_(model.parameters(), plan.clip)
        optimizer.step()
        ema.update(system, step)
        bar.update()
        if step % 50 == 0 and writer:
            scalars = {**losses, "gradient_norm": norm, "lr": torch.tensor(learning_rate(step, plan))}
            for name, value in scalars.items():
                writer.add_scalar(name, float(value.detach()), step)
            bar.set_postfix({k: f"{float(v.detach()):.4f}" for k, v in losses.items()})
        finished = step + 1 == plan.steps
        if accelerator.is_main_process and (finished or (step + 1) % plan.checkpoint_every == 0):
            meta = {
                "step": step + 1,
                "seconds": seconds + time.monotonic() - began,
                "device": f"{accelerator.num_processes} x {accelerator.device.type}, {torch.get_num_threads()} threads",
                "recipe": recipe.to_dict(),
            }
            save_checkpoint(last, _state(system, optimizer, ema), meta)
    bar.close()
    if writer:
        writer.close()
    accelerator.wait_for_everyone()
    return ema.average


def _state(system: nn.Module, optimizer, ema: EMA) -> dict[str, Tensor]:
    """Everything that the next step depends on, by name."""
    tensors = {f"model.{k}": v for k, v in system.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.average.items()}
    names = {p: name for name, p in system.named_parameters()}
    for parameter, state in _inner(optimizer).state.items():
        tensors |= {f"optimizer.{names[parameter]}.{k}": torch.as_tensor(v) for k, v in state.items()}
    return tensors


def _inner(optimizer) -> torch.optim.Optimizer:
    return getattr(optimizer, "optimizer", optimizer)


def _resume(path: Path, recipe: Recipe, system: nn.Module, optimizer, ema: EMA) -> tuple[int, float]:
    """Load a checkpoint into everything that ``_state`` saved; the step to go on from and the seconds spent so far."""
    tensors, meta = load_checkpoint(path)
    theirs, ours = from_dict(Recipe, meta["recipe"]).to_dict(), recipe.to_dict()
    if theirs != ours:
        different = sorted(k for k in ours if theirs.get(k) != ours[k])
        raise ValueError(
            f"{path} was made by another recipe (different: {', '.join(different)}); choose another folder or move it"
        )
    own = lambda prefix: {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    system.load_state_dict(own("model."))
    ema.load(own("ema."))
    for name, parameter in system.named_parameters():
        state = own(f"optimizer.{name}.")
        if state:
            _inner(optimizer).state[parameter] = {k: _laid_out_like(parameter, v) for k, v in state.items()}
    return meta["step"], meta["seconds"]


def _laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """The value in the parameter's memory format: fused optimisers walk both in memory order."""
    if value.shape != parameter.shape:
        return value  # the step counter
    return torch.empty_like(parameter, requires_grad=False).copy_(value)
