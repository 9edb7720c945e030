"""The noise-aware classifier p(c | x_t) that guides ADM-G, and its clean counterpart for comparison."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.classifier import Classifier
from ..process import diffuse
from ..random import randint, randn
from ..schedule import DATA, DiscreteSchedule, NoiseLevel


class NoisyClassifier(nn.Module):
    """log p(c | x_t) for every level (Dhariwal and Nichol 2021, section 4.1).

    Args:
        network: Encoder half of the U-Net.
        schedule: Noise levels that the classifier is trained at.
        noisy: False trains on clean images only and ignores the level: the tempting wrong version.
    """

    def __init__(self, network: Classifier, schedule: DiscreteSchedule, noisy: bool = True):
        super().__init__()
        self.network, self.schedule, self.noisy = network, schedule, noisy

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return self.network.config.out_channels

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        config = self.network.config
        return config.in_channels, config.size, config.size

    def log_prob_label(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """(B, n_classes) log p(c | x_t)."""
        time = level.time if self.noisy else DATA.time
        time = torch.as_tensor(time, device=x.device).expand(len(x))
        return F.log_softmax(self.network(x, time).float(), dim=1)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(B, width) features of clean images, the space in which distances of image sets are measured."""
        time = torch.as_tensor(DATA.time, device=images.device).expand(len(images))
        return self.network.features(images, time)

    def classifier(self, label: int | Tensor):
        """``(x, level) -> (B,)`` log p(label | x_t), the form that guidance takes.

        Raises:
            ValueError: for a label that is out of range.
        """
        label = torch.as_tensor(label)
        if bool(((label < 0) | (label >= self.n_classes)).any()):
            raise ValueError(f"labels must be from 0 to {self.n_classes - 1}, got {label}")

        def log_prob(x: Tensor, level: NoiseLevel) -> Tensor:
            chosen = label.to(x.device).expand(len(x))
            return self.log_prob_label(x, level).gather(1, chosen[:, None])[:, 0]

        return log_prob

    def loss(self, images: Tensor, labels: Tensor, generator=None, times: Tensor | None = None) -> dict[str, Tensor]:
        """(B,) cross entropy at ``times`` (B,), drawn uniformly when left out; also whether the label was right."""
        if self.noisy and times is None:
            times = randint(self.schedule.T, len(images), generator, images.device)
        level = self.schedule.level(times) if self.noisy else DATA
        x = diffuse(images, level, randn(images.shape, generator, images.dtype, images.device))
        log_prob = self.log_prob_label(x, level)
        accuracy = (log_prob.argmax(1) == labels).float()
        return {"loss": F.nll_loss(log_prob, labels, reduction="none"), "accuracy": accuracy}
