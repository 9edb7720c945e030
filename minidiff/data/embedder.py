"""A frozen network that turns pictures, and perhaps texts, into vectors: what sets are compared in and stored as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments import Count, Natural, checked
from .recipe import DataRecipe
from .sets import classes_of


@checked
@dataclass(frozen=True)
class Embedder:
    """A frozen encoder.

    Attributes:
        name: Name, or path of the weights.
        width: Length of a vector; None where it is not known.
        encode: (B, channels, size, size) in [-1, 1] -> (B, width).
        size: Side of an image; None for any.
        channels: Channels of an image.
        sha256: Of the weights; None for those that are named by a tag.
        read: B texts -> (B, width), or of each text its tokens, B tensors (l, W); None where it reads none.
        log_prob: Images as for ``encode`` -> (B, n_classes); None where it knows no classes.
        n_classes: Number of classes.
        data: The data set whose classes these are; None when they are those of no set of ours.
        learnt: What it calls its classes; () where only the data set may tell.
    """

    name: str
    width: Count | None
    encode: Callable[[Tensor], Tensor]
    size: Count | None = None
    channels: Count = 3
    sha256: str | None = None
    read: Callable[[list[str]], Tensor | list[Tensor]] | None = None
    log_prob: Callable[[Tensor], Tensor] | None = None
    n_classes: Natural = 0
    data: DataRecipe | None = None
    learnt: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """What its classes are called, in the order of their numbers; () where that is not known or not at hand."""
        return self.learnt or (() if self.data is None else classes_of(self.data))

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, width), see ``fitted``."""
        return self.encode(self.fitted(images))

    @torch.no_grad()
    def classes(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, n_classes) log-probabilities, see ``fitted``.

        Raises:
            ValueError: when it knows no classes.
        """
        if self.log_prob is None:
            raise ValueError(f"{self.name} knows no classes")
        return self.log_prob(self.fitted(images))

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor | list[Tensor]:
        """B texts -> (B, width), or of each text its tokens, B tensors (l, W).

        Raises:
            ValueError: when it reads none.
        """
        if self.read is None:
            raise ValueError(f"{self.name} reads no texts")
        return self.read(texts)

    def fitted(self, images: Tensor) -> Tensor:
        """Images as the network takes them: a whole number of times as large is averaged down, grey is repeated for one
        that sees colour, colours are averaged for one that sees grey.

        Raises:
            ValueError: for images of another size, with other than one or three channels, or that are no floats.
        """
        if images.ndim != 4 or not images.is_floating_point() or images.shape[1] not in (1, 3, self.channels):
            given = f"{tuple(images.shape)} of {images.dtype}"
            raise ValueError(f"images are (B, 1 or 3, H, W), floats in [-1, 1]; got {given}")
        height, width = images.shape[2:]
        if self.size is not None and (height, width) != (self.size, self.size):
            if height != width or height % self.size or not height:
                raise ValueError(f"{self.name} sees images of {self.size}x{self.size}, got {height}x{width}")
            images = F.avg_pool2d(images, height // self.size)
        if images.shape[1] != self.channels:
            images = images.mean(1, keepdim=True).expand(-1, self.channels, -1, -1)
        return images
