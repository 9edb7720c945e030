"""Exponential moving averages of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..arguments import Natural, checked


@checked
def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that may be sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@checked
class EMA:
    """Running averages of a module's parameters; buffers are copied, not averaged.

    Args:
        module: What to follow. Where its parameters are sharded, so are the averages.
        decays: Limit of each average's decay; at step n it is min(decay, (1 + n) / (10 + n)).

    Attributes:
        averages: decay -> state dict.
    """

    def __init__(self, module: nn.Module, decays: Sequence[float]):
        self.averages = {d: {k: v.detach().clone() for k, v in module.state_dict().items()} for d in decays}

    @torch.no_grad()
    def update(self, module: nn.Module, step: Natural) -> None:
        """Move the averages towards the module's weights after optimiser step ``step`` (from 0)."""
        current = module.state_dict()
        floating = [k for k, v in current.items() if v.is_floating_point()]
        weights = [local(current[k]) for k in floating]
        for limit, average in self.averages.items():
            decay = min(limit, (1 + step) / (10 + step))
            torch._foreach_lerp_([local(average[k]) for k in floating], weights, 1 - decay)
            for k in current.keys() - set(floating):
                average[k].copy_(current[k])
