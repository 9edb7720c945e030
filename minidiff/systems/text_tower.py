"""A text tower by its name, for what attends to its states; it is frozen, and not trained here."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..arguments import Randomness, checked
from ..models.text_tower import TextTower
from ..training.trainable import Trainable
from .registry import system


@checked
class FrozenText(Trainable):
    """A text tower.

    Args:
        network: The tower.
    """

    def __init__(self, network: TextTower):
        super().__init__()
        self.network = network

    @property
    def shape(self) -> tuple[int, int]:
        """(context, W) of what it says of a text."""
        return self.network.config.context, self.network.config.width

    @torch.no_grad()
    def states(self, tokens: Tensor) -> Tensor:
        """(B, L) tokens, -1 from where a text ends -> (B, context, W), what the tower says of every place."""
        return self.network(tokens)

    def loss(self, batch: Mapping[str, Tensor], generator: Randomness = None) -> dict[str, Tensor]:
        """A tower alone has none.

        Raises:
            ValueError: always.
        """
        raise ValueError("a text tower is trained as half of a CLIP, and is frozen here: it has no loss")


@system("text_tower", network=TextTower, scheduled=False)
def text_tower(network, schedule, options, data) -> FrozenText:
    """The states of a text, for what attends to them."""
    return FrozenText(network)
