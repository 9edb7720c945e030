"""The class-conditional system: a U-Net told a label (ADM), told none (classifier-free guidance), or never told any."""

from __future__ import annotations

import torch
from torch import Tensor

from ..denoiser import Condition
from ..guidance import LogProb
from ..models.unet import UNet
from ..prediction import Prediction
from ..random import rand
from ..schedule import DiscreteSchedule, NoiseLevel
from .diffusion import Diffusion


class ClassConditional(Diffusion):
    """A denoiser of labelled images. Called as a conditional model, ``system(x, level, labels)``.

    Args:
        network: A U-Net whose label embedding has one row per class, and one more where labels can be null; or one
            without label embedding, for which every label is null.
        schedule: Discrete noise levels.
        predicts: "eps", "v" or "x0".
        variance: "fixed" or "learned_range".
        n_classes: Number of classes; 0 for a network without label embedding.
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
        super().__init__(network, schedule, predicts, variance, bins)
        self.n_classes, self.label_dropout = n_classes, label_dropout

    @property
    def labelled(self) -> bool:
        """Whether the network has a label embedding."""
        return self.network.config.classes is not None

    @property
    def has_null(self) -> bool:
        """Whether labels can be null."""
        return not self.labelled or self.network.config.classes > self.n_classes

    def null(self, n: int) -> Tensor:
        """(n,) null labels."""
        return torch.full((n,), -1, device=self.device)

    def condition(self, labels: Tensor) -> Condition:
        """Labels (B,), -1 for the null, through the vector door.

        Raises:
            ValueError: for a label that is out of range, or a null that this network was not built with.
        """
        lowest = -1 if self.has_null else 0
        if labels.ndim != 1 or bool(((labels < lowest) | (labels >= self.n_classes)).any()):
            raise ValueError(f"labels must be (B,) integers from {lowest} to {self.n_classes - 1}, got {labels}")
        if not self.labelled:
            return Condition()
        return Condition(vector=self.network.label_emb(torch.where(labels < 0, self.n_classes, labels)))

    def forward(self, x: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Prediction:
        """The prediction for x (B, C, H, W) given labels (B,); the null when they are left out."""
        labels = self.null(len(x)) if labels is None else torch.as_tensor(labels, device=x.device)
        return super().forward(x, level, labels.expand(len(x)))

    def sample(self, labels: Tensor, *arguments, classifier=None, log_prob: LogProb | None = None, **options) -> Tensor:
        """Draw images of the given labels, x_0 kept inside [-1, 1].

        Args:
            labels: (B,) classes; -1 for none, without a classifier.
            arguments, log_prob, options: Those of ``Diffusion.sample``.
            classifier: A ``NoisyClassifier`` that guides instead of classifier-free guidance: by the rule "score" the
                unconditional model, where the network has one; by the rule "adm" the model that knows the label, ADM-G
                as published.

        Returns:
            (B, C, H, W).

        Raises:
            ValueError: for labels, scale or steps out of range.
        """
        if classifier is not None:
            log_prob = classifier.classifier(labels)
        if log_prob is not None and not self.labelled:
            labels = self.null(len(labels))
        return super().sample(labels, *arguments, log_prob=log_prob, **options)

    def dropped(self, labels: Tensor, generator=None) -> Tensor:
        """Labels with each one replaced by the null with probability ``label_dropout``, sample by sample."""
        if not self.labelled:
            return self.null(len(labels))
        hidden = rand(labels.shape, generator, device=labels.device) < self.label_dropout
        return torch.where(hidden, -1, labels)
