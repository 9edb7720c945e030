"""The first stage of latent diffusion as a system that is trained (Rombach et al. 2022, section 3.1 and appendix G).

Absolute differences of pixels, perhaps their squares, those of their gradients and of the features of a frozen network,
and what a critic of patches says; with a KL term so small that it only bounds the latent's size, or a codebook.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from ..arguments import Count, NonNegative, Randomness, checked, floats
from ..condition import Borrower, column
from ..likelihood import mean_flat
from ..models.critic import PatchCritic
from ..models.vae import Autoencoder, autoencoder
from ..training.trainable import Trainable
from .registry import system


@checked
@dataclass(frozen=True)
class FirstStageOptions:
    """Options of an autoencoder. Every term is a mean over the numbers of a picture, and weights stand beside that.

    Attributes:
        kl: Weight of KL(q(z | x) || N(0, I)) in nats per number of the picture; 1e-6 in the paper. Nothing to a
            codebook.
        codes: Weight of the codebook's loss; nothing to a Gaussian.
        squares: Weight of squared differences. By absolute ones alone a network draws the median for long, which is the
            ground without the objects; squares feel what is far off.
        gradients: Weight of the absolute differences of neighbouring pixels' differences.
        perceptual: Weight of the distance of features.
        features: Name of the frozen network whose features these are: a classifier, or "efficientnet-lite0".
        adversarial: Weight of what the critic says; 0 for no critic.
        critic_channels: Base width of the critic.
        critic_layers: Its halvings.

    Raises:
        ValueError: for a perceptual term without a network.
    """

    kl: NonNegative = 1e-6
    codes: NonNegative = 1.0
    squares: NonNegative = 0.0
    gradients: NonNegative = 0.0
    perceptual: NonNegative = 0.0
    features: str = ""
    adversarial: NonNegative = 0.0
    critic_channels: Count = 32
    critic_layers: Count = 2

    def __post_init__(self):
        if self.perceptual and not self.features:
            raise ValueError("a perceptual loss compares features: name whose, features=NAME")


class _Features(Borrower):
    key = "perceptual loss"

    def __init__(self, name: str):
        self.frozen = name


@checked
class FirstStage(Trainable):
    """An autoencoder: pictures to latents that are small, and back.

    Args:
        network: The autoencoder.
        options: Weights of the terms of its loss.
    """

    def __init__(self, network: Autoencoder, options: FirstStageOptions | None = None):
        super().__init__()
        self.network, self.options = network, options or FirstStageOptions()
        self._features = _Features(self.options.features)
        self.critic = None
        if self.options.adversarial:
            config = network.config
            critic = PatchCritic(config.in_channels, self.options.critic_channels, self.options.critic_layers)
            self.critic = critic.to(self.device)

    @property
    def borrowers(self) -> tuple[Borrower, ...]:
        """The perceptual loss, which compares features of a frozen network."""
        return (self._features,) if self.options.perceptual else ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a picture."""
        return self.network.config.in_shape

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a latent."""
        return self.network.config.latent_shape

    def moments(self, images: floats("B C H W")) -> Tensor:
        """What the encoder says of pictures (B, C, H, W) in [-1, 1], see ``models.vae.Autoencoder.moments``."""
        return self.network.moments(images)

    def latents(self, moments: floats("B C H W"), generator: Randomness = None, mode: bool = False) -> Tensor:
        """Latents (B, c, h, w), each drawn from the law that its moments tell; with ``mode`` the likeliest.

        Those of an autoencoder with a codebook are not rounded: its decoder does that.
        """
        law = self.network.law(moments)
        if law is None:
            return moments
        return law.mode if mode else law.sample(generator)

    def encode(self, images: floats("B C H W")) -> Tensor:
        """The likeliest latents (B, c, h, w) of pictures (B, C, H, W) in [-1, 1]."""
        return self.latents(self.moments(images), mode=True)

    def decode(self, latents: floats("B C H W")) -> Tensor:
        """Pictures of latents."""
        return self.network.decode(latents)

    def loss(self, batch: Mapping[str, Tensor], generator: Randomness = None) -> dict[str, Tensor]:
        """(B,) "loss", and the terms that it weighs: "pixels", and "kl" or "codes", and those that the options name.

        The critic learns from the same call: its own hinge loss, "critic", is added, whose gradient reaches nothing
        but the critic, while what it says of the reconstruction reaches the autoencoder alone.
        """
        images, weights = column(batch, "image", self.shape), self.options
        law = self.network.law(moments := self.moments(images))
        if law is None:
            rounded = self.network.quantize(moments)
            drawn, terms = self.network.render(rounded.z), {"codes": rounded.loss}
        else:
            drawn = self.network.render(law.sample(generator))
            terms = {"kl": law.kl() / images[0].numel()}
        terms["pixels"] = mean_flat((images - drawn).abs())
        if weights.squares:
            terms["squares"] = mean_flat((images - drawn).square())
        if weights.gradients:
            terms["gradients"] = mean_flat_gradients(images, drawn)
        if weights.perceptual:
            terms["perceptual"] = feature_distance(self._features.lent, images, drawn)
        loss = terms["pixels"] + sum(
            getattr(weights, name) * term for name, term in terms.items() if name not in ("pixels",)
        )
        if self.critic is not None:
            frozen = {name: p.detach() for name, p in self.critic.named_parameters()}
            said = -mean_flat(functional_call(self.critic, frozen, (drawn,)))
            terms["critic"] = hinge(self.critic(images), self.critic(drawn.detach()))
            terms["adversarial"] = said
            loss = loss + weights.adversarial * said + terms["critic"]
        return {"loss": loss, **terms}


@checked
def mean_flat_gradients(x: floats("B C H W"), y: floats("B C H W")) -> Tensor:
    """(B,) mean absolute difference of the differences of neighbouring pixels, to the right and below."""
    apart = x - y
    across, down = apart.diff(dim=3), apart.diff(dim=2)
    return (mean_flat(across.abs()) + mean_flat(down.abs())) / 2


@checked
def hinge(real: floats("B 1 h w"), drawn: floats("B 1 h w")) -> Tensor:
    """(B,) the hinge loss of a critic: none where it says 1 or more of a real patch, -1 or less of a drawn one."""
    return mean_flat(F.relu(1 - real)) + mean_flat(F.relu(1 + drawn))


@checked
def feature_distance(network, x: floats("B C H W"), y: floats("B C H W")) -> Tensor:
    """(B,) squared distance of the features of two pictures at every place, each of length 1; the mean of all layers.

    Zhang et al. 2018, with equal weights.

    Args:
        network: Frozen; ``layers(images)`` gives feature maps (B, C_i, h_i, w_i).
        x: Pictures in [-1, 1].
        y: Others.
    """
    with torch.no_grad():
        ours = network.layers(x)
    theirs = network.layers(y)
    unit = lambda features: F.normalize(features.float(), dim=1)
    apart = [(unit(a) - unit(b)).square().sum(1, keepdim=True) for a, b in zip(ours, theirs, strict=True)]
    return sum(map(mean_flat, apart)) / len(apart)


@system("autoencoder", network=autoencoder, options=FirstStageOptions, scheduled=False)
def first_stage(network, schedule, options, data) -> FirstStage:
    """Pictures to latents and back."""
    return FirstStage(network, options)
