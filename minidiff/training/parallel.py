"""One process, data parallelism (DDP) or sharded weights (FSDP), and what each does to a tensor."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn

from ..arguments import Count, Natural, checked
from ..models.layers import Dropout, Stage
from .plan import TrainingRecipe


@checked
def share_of(plan: TrainingRecipe, rank: Natural, world: Count) -> slice:
    """The rows of the global batch that a process sees.

    Raises:
        ValueError: when the batch does not divide among the processes and their parts.
    """
    if plan.batch % (world * plan.accumulate):
        raise ValueError(
            f"a batch of {plan.batch} does not divide among {world} processes with {plan.accumulate} parts each"
        )
    local = plan.batch // world
    return slice(rank * local, (rank + 1) * local)


def parallel(loss: nn.Module, plan: TrainingRecipe, accelerator):
    """The loss module, spread as the plan says, and its optimiser."""
    for stage in _stages(loss):
        stage.checkpointing = plan.checkpointing
    for salt, dropout in enumerate(module for module in loss.modules() if isinstance(module, Dropout)):
        dropout.salt = salt
    if plan.compile:
        loss.system.network.compile()
    sharded = plan.sharding == "full" and accelerator.num_processes > 1
    if sharded:
        _shard(loss.to(accelerator.device))
    else:
        loss.to(memory_format=torch.channels_last)
    optimizer = optimizer_of(loss.parameters(), plan)
    return (loss, accelerator.prepare(optimizer)) if sharded else accelerator.prepare(loss, optimizer)


def optimizer_of(parameters: Iterable[nn.Parameter], plan: TrainingRecipe) -> torch.optim.Optimizer:
    """The optimiser that a plan names.

    Raises:
        ValueError: for Adafactor where torch has none.
    """
    if plan.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=plan.lr, betas=plan.betas, weight_decay=plan.weight_decay, fused=True)
    if not hasattr(torch.optim, "Adafactor"):
        raise ValueError(f"training.optimizer=adafactor needs torch 2.5 or later, and this is {torch.__version__}")
    return torch.optim.Adafactor(parameters, lr=plan.lr, weight_decay=plan.weight_decay)


def _shard(loss: nn.Module) -> None:
    """Each stage of the network gathers its weights when its turn comes, and lets go of them afterwards."""
    from torch.distributed.fsdp import fully_shard

    for stage in _stages(loss):
        fully_shard(stage)
    fully_shard(loss)


def _stages(loss: nn.Module) -> list[Stage]:
    return [module for module in loss.modules() if isinstance(module, Stage)]


def whole(tensor: Tensor) -> Tensor:
    """The full tensor; a sharded one is gathered, in which every process takes part."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gathered(tensor: Tensor) -> Tensor:
    """(B, ...) of this process, then those of the others -> (N B, ...); alone, the tensor itself.

    Gradients flow through every copy: backward, each process receives the sum over all. So the mean of the processes'
    gradients, which DDP and FSDP take, is the gradient of the mean of their losses, without a factor N.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return tensor
    from torch.distributed.nn.functional import all_gather

    parts, rank = all_gather(tensor), distributed.get_rank()
    return torch.cat([*parts[rank:], *parts[:rank]])


def everyones(tensor: Tensor) -> Tensor:
    """(B, ...) of all processes in their order, without gradient, the same in each; alone, the tensor itself."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def placed(value: Tensor, like: Tensor) -> Tensor:
    """A whole value, sharded and laid out in memory as the tensor it belongs to; fused optimisers need both."""
    if value.shape != like.shape:
        return value  # the step counter of an optimiser
    if hasattr(like, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return torch.empty_like(like, requires_grad=False).copy_(value)
