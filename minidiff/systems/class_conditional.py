"""The class-conditional system: a U-Net told a label (ADM), or told none (classifier-free guidance)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..denoiser import Condition, as_denoiser, conditioned
from ..guidance import classifier_free, classifier_guidance, static_threshold
from ..likelihood import hybrid_vlb, mean_flat
from ..models.unet import UNet
from ..prediction import Prediction
from ..process import beta_tilde, diffuse
from ..random import rand, randn
from ..sampler import ddim, sample
from ..schedule import DiscreteSchedule, NoiseLevel


class ClassConditional(nn.Module):
    """A denoiser of labelled images. Called as a conditional model, ``system(x, level, labels)``.

    Args:
        network: A U-Net whose label embedding has one row per class, and one more where labels can be null.
        schedule: Discrete noise levels.
        predicts: "eps", "v" or "x0".
        variance: "fixed" or "learned_range".
        n_classes: Number of classes.
        label_dropout: Probability that a label is replaced by the null in training, drawn per sample.
        bins: Number of values a pixel can take, for the bound.
    """

    def __init__(
        self,
        network: UNet,
        schedule: DiscreteSchedule,
        predicts: str,
        variance: str,
        n_classes: int,
        label_dropout: float = 0.0,
        bins: int = 256,
    ):
        super().__init__()
        self.network, self.schedule = network, schedule
        self.predicts, self.variance, self.n_classes = predicts, variance, n_classes
        self.label_dropout, self.bins = label_dropout, bins
        self._denoise = as_denoiser(network, predicts, variance)
        self._floor = beta_tilde(schedule.level(1), schedule.level(0))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        config = self.network.config
        return config.in_channels, config.size, config.size

    def null(self, n: int) -> Tensor:
        """(n,) null labels."""
        return torch.full((n,), -1, device=self.network.label_emb.weight.device)

    def condition(self, labels: Tensor) -> Condition:
        """Labels (B,), -1 for the null, through the vector door.

        Raises:
            ValueError: for a label that is out of range, or a null that this network was not built with.
        """
        lowest = -1 if self.network.config.classes > self.n_classes else 0
        if labels.ndim != 1 or bool(((labels < lowest) | (labels >= self.n_classes)).any()):
            raise ValueError(f"labels must be (B,) integers from {lowest} to {self.n_classes - 1}, got {labels}")
        return Condition(vector=self.network.label_emb(torch.where(labels < 0, self.n_classes, labels)))

    def forward(self, x: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Prediction:
        """The prediction for x (B, C, H, W) given labels (B,); the null when they are left out."""
        labels = self.null(len(x)) if labels is None else torch.as_tensor(labels, device=x.device)
        return self._denoise(x, level, self.condition(labels.expand(len(x))))

    def sample(
        self, labels: Tensor, scale: float = 1.0, steps: int = 50, sampler=None, classifier=None, generator=None
    ) -> Tensor:
        """Draw images of the given labels, x_0 kept inside [-1, 1].

        Args:
            labels: (B,) classes; -1 for none, without a classifier.
            scale: Guidance scale s.
            steps: Number of steps.
            sampler: A sampler; ``ddim()`` when left out.
            classifier: A ``NoisyClassifier`` that guides the unconditional score (ADM-G); classifier-free otherwise.
            generator: One generator, or a list with one per image.

        Returns:
            (B, C, H, W).

        Raises:
            ValueError: for labels, scale or steps out of range.
        """
        levels, null = self.schedule.levels(steps), self.null(len(labels))
        if classifier is None:
            guided = classifier_free(self, labels, null, scale)
        else:
            guided = classifier_guidance(conditioned(self, null), classifier.classifier(labels), scale)
        x_T = randn((len(labels), *self.shape), generator, device=labels.device)
        return sample(sampler or ddim(), static_threshold(guided), levels, x_T, generator)

    def drop_labels(self, labels: Tensor, generator=None) -> Tensor:
        """Labels with each one replaced by the null with probability ``label_dropout``, sample by sample."""
        dropped = rand(labels.shape, generator, device=labels.device) < self.label_dropout
        return torch.where(dropped, -1, labels)

    def loss(self, images: Tensor, labels: Tensor, generator=None) -> dict[str, Tensor]:
        """L_simple in the network's own parametrisation, plus T/1000 times the bound where the variance is learned.

        Nichol and Dhariwal 2021, equation 16. Returns scalars "loss", "simple" and, with a learned variance, "vlb".
        """
        t = self.schedule.random_level(len(images), generator, images.device)
        eps = randn(images.shape, generator, images.dtype, images.device)
        x_t = diffuse(images, t, eps)
        prediction = self(x_t, t, self.drop_labels(labels, generator))
        target = Prediction(x_t, t, eps, "eps")
        target = {"eps": eps, "x0": images, "v": target.v}[self.predicts]
        simple = mean_flat((prediction.value - target) ** 2).mean()
        if self.variance == "fixed":
            return {"loss": simple, "simple": simple}
        vlb = hybrid_vlb(prediction, images, t, self.schedule.previous(t), self._floor, self.bins).mean()
        return {"loss": simple + vlb * self.schedule.T / 1000, "simple": simple, "vlb": vlb}
