"""Exponential moving average of weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EMA:
    """A running average of a module's parameters; buffers are copied, not averaged.

    Args:
        module: What to follow.
        decay: Limit of the decay; at step n it is min(decay, (1 + n) / (10 + n)).
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.average = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move the average towards the module's weights after optimiser step ``step`` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = module.state_dict()
        floating = [k for k, v in current.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.average[k] for k in floating], [current[k] for k in floating], 1 - decay)
        for k in current.keys() - set(floating):
            self.average[k].copy_(current[k])

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Set the average."""
        for k, v in self.average.items():
            v.copy_(tensors[k])
