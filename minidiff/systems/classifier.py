"""The noise-aware classifier p(c | x_t) that guides ADM-G, and its clean counterpart for comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments import Randomness, checked, floats
from ..condition import column
from ..models.classifier import Classifier
from ..process import diffuse
from ..random import randn
from ..schedule import DATA, DiscreteSchedule, NoiseLevel
from ..training.levels import Uniform
from ..training.trainable import Trainable
from .parts import Label
from .registry import system


@checked
@dataclass(frozen=True)
class ClassifierOptions:
    """Options of a classifier.

    Attributes:
        noise_aware: Whether it sees noise, and reads how much.
    """

    noise_aware: bool = True


@checked
class NoisyClassifier(Trainable):
    """log p(c | x_t) for every level (Dhariwal and Nichol 2021, section 4.1).

    Args:
        network: Encoder half of the U-Net.
        schedule: Noise levels that the classifier is trained at.
        noise_aware: False trains on clean images only and ignores the level: the tempting wrong version.
    """

    def __init__(self, network: Classifier, schedule: DiscreteSchedule, noise_aware: bool = True):
        super().__init__()
        self.network, self.schedule, self.noise_aware = network, schedule, noise_aware

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return self.network.config.out_channels

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        config = self.network.config
        return config.in_channels, config.size, config.size

    def log_prob_label(self, x: floats("B C H W"), level: NoiseLevel) -> Tensor:
        """(B, n_classes) log p(c | x_t)."""
        told = level if self.noise_aware else DATA
        return F.log_softmax(self.network(x, told.times(x)).float(), dim=1)

    @torch.no_grad()
    def features(self, images: floats("B C H W")) -> Tensor:
        """(B, width) features of clean images, the space in which distances of image sets are measured."""
        return self.network.features(images, DATA.times(images))

    def layers(self, images: floats("B C H W")) -> list[Tensor]:
        """Feature maps of clean images, from the finest to the coarsest, for a perceptual loss; gradients flow."""
        return self.network.layers(images, DATA.times(images))

    def classifier(self, label: int | Tensor | Sequence[int]):
        """``(x, level) -> (B,)`` log p(label | x_t), the form that guidance takes.

        Raises:
            ValueError: for a label that is out of range; in the call, for neither one label nor as many as images.
        """
        labels = Label(self.n_classes).read(label, self.shape)

        @checked
        def log_prob(x: floats("B C H W"), level: NoiseLevel) -> Tensor:
            if len(labels) not in (1, len(x)):
                raise ValueError(f"{len(labels)} labels for {len(x)} images; one for all, or one for each is accepted")
            chosen = labels.to(x.device).expand(len(x))
            return self.log_prob_label(x, level).gather(1, chosen[:, None])[:, 0]

        return log_prob

    def loss(
        self, batch: Mapping[str, Tensor], generator: Randomness = None, level: NoiseLevel | None = None
    ) -> dict[str, Tensor]:
        """(B,) cross entropy at the level, drawn uniformly when left out; also whether the label was right."""
        images, labels = column(batch, "image", self.shape), Label(self.n_classes).observe(batch)
        if not self.noise_aware:
            level = DATA
        elif level is None:
            level, _ = Uniform().draw(self.schedule, len(images), generator, images.device)
        x = diffuse(images, level, randn(images.shape, generator, images.dtype, images.device))
        log_prob = self.log_prob_label(x, level)
        accuracy = (log_prob.argmax(1) == labels).float()
        return {"loss": F.nll_loss(log_prob, labels, reduction="none"), "accuracy": accuracy}

    def published_beside(self, heldout: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A clean classifier keeps features of held-out images, so that distances to them can be measured where the
        images are not at hand."""
        if self.noise_aware:
            return {}
        features = torch.cat([self.features(part) for part in heldout["image"].split(500)])
        return {"features": features, "labels": heldout["label"]}


@system("classifier", network=Classifier, options=ClassifierOptions)
def classifier(network, schedule, options, data) -> NoisyClassifier:
    """log p(c | x_t), or of clean images."""
    return NoisyClassifier(network, schedule, options.noise_aware)
