"""What the training loop trains."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..condition import Borrower
from ..data.sets import Rows


class Trainable(nn.Module):
    """Anything with a loss: a denoiser, a classifier, a CLIP, an autoencoder.

    Attributes:
        whole_batch: Whether the loss of a sample depends on the others, so that a batch cannot be cut into parts.
        class_names: What the classes that it learnt are called, in the order of their numbers; () where that is not
            known.
    """

    whole_batch = False
    class_names: tuple[str, ...] = ()

    def loss(self, batch: Mapping[str, Tensor], generator=None) -> dict[str, Tensor]:
        """(B,) terms by name; the mean of "loss" is what training makes small.

        Args:
            batch: Columns of data by name, "image" (B, C, H, W) and "label" (B,) say.
            generator: One generator, or a list with one per sample.
        """
        raise NotImplementedError

    def prepare(self, rows: Rows) -> None:
        """Learn from the training data what is no parameter, before the first step; what a start brought along stays.

        Args:
            rows: From a number to columns of so many rows of the data, or of all where there are fewer.
        """

    def after_step(self) -> None:
        """Learn whatever is no parameter from the losses of a step; the training loop calls it after each."""

    def training_state(self) -> dict[str, Tensor]:
        """What training has learnt beside the parameters, and the next step depends on."""
        return {}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore ``training_state()``."""

    def published_beside(self, heldout: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors that are published beside the weights, made from held-out data."""
        return {}

    @property
    def borrowers(self) -> tuple[Borrower, ...]:
        """What uses a frozen network that the recipe names."""
        return ()

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of what it draws: that of the parameters, and single where they have less."""
        return torch.promote_types(torch.float32, next(self.parameters()).dtype)


def classes_told(system: Trainable) -> int | None:
    """How many classes the labels of its training data may name; None for a system without labels."""
    told = system.part("label") if hasattr(system, "part") else system
    return getattr(told, "n_classes", None)
