"""Cascades: upsamplers that are told how noisy their small image is, and stages that hand images on (SR3, CDM, GLIDE).

SR3 (Saharia et al. 2021) tells its network the noise of x itself instead of a time. CDM (Ho et al. 2022) adds noise to
the small image, and tells how much. Both numbers lie in [0, 1], and the fastest sinusoid of a time embedding has the
frequency one: so they are told times ``TOLD``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ..denoiser import Condition
from ..process import diffuse
from ..random import rand, randn
from ..schedule import DiscreteSchedule, NoiseLevel
from .class_conditional import ClassConditional
from .diffusion import Diffusion, Steps, respaced
from .glide import GlideUpsampler
from .upsampler import Enlarging, Small, Upsampler

TOLD = 1000


def told_alpha(level: NoiseLevel) -> NoiseLevel:
    """The same level, of which the network is told alpha = sqrt(alpha-bar) (``eq-sr3-level``; SR3, section 2.4)."""
    return NoiseLevel(level.alpha, level.sigma, TOLD * level.alpha)


def level_of_sigma(sigma: Tensor) -> NoiseLevel:
    """The variance-preserving levels of standard deviations (B,) in [0, 1), of which the network is told sigma."""
    return NoiseLevel((1 - sigma**2).sqrt(), sigma, TOLD * sigma)


class SR3(Upsampler):
    """Super-resolution by repeated refinement (Saharia et al. 2021): enlarges bicubically and is told alpha, no time.

    In training alpha is uniform between two neighbouring levels of the schedule, so that the network knows all levels
    and can be sampled with any schedule: pass a chain of levels as ``steps``.

    Raises:
        ValueError: for a learned variance, which is defined between the levels of one schedule only.
    """

    mode = "bicubic"

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        if self.variance != "fixed":
            raise ValueError(f"SR3 has a fixed variance, got {self.variance!r}")
        denoise = self._denoise
        self._denoise = lambda x, level, condition=None: denoise(x, told_alpha(level), condition)

    def noise_level(self, times: Tensor, generator=None) -> NoiseLevel:
        """Alpha uniform between those of ``times`` and ``times - 1`` (``eq-sr3-level``; algorithm 1, section 2.4)."""
        noisy, clean = self.schedule.level(times).alpha, self.schedule.level(times - 1).alpha
        alpha = torch.lerp(noisy, clean, rand(times.shape, generator, torch.float64, times.device))
        return NoiseLevel(alpha, (1 - alpha**2).sqrt(), times)

    def reduced(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / factor, W / factor), bicubic with antialiasing."""
        size = self.small_shape[1:]
        return F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True)


@dataclass(frozen=True)
class NoisySmall(Small):
    """What an upsampler with noise-conditioning augmentation is given: the small image noised, and how much.

    Attributes:
        sigma: (B,) standard deviation of the noise; the image is sqrt(1 - sigma^2) y + sigma eps.
    """

    sigma: Tensor


class Augmented(Enlarging):
    """Noise-conditioning augmentation (Ho et al. 2022, section 4.2): the small image is noised and its noise told.

    Called as a conditional model, ``system(x, level, NoisySmall(told, image, sigma))``. In training sigma is uniform in
    [0, augment], drawn per sample, and the noise is added to the image in [-1, 1] before it is enlarged.

    Args:
        arguments, options: Those of the system that this is mixed into.
        augment: Largest sigma of training.

    Raises:
        ValueError: for a network without ``image_level``, or an augment outside (0, 1].
    """

    def __init__(self, *arguments, augment: float = 1.0, **options):
        super().__init__(*arguments, **options)
        if not self.network.config.image_level:
            raise ValueError("noise in the small image has to be told: the network needs image_level=True")
        if not 0 < augment <= 1:
            raise ValueError(f"augment is a standard deviation in (0, 1], got {augment}")
        self.augment = augment

    def condition(self, given: NoisySmall) -> Condition:
        """As in ``Enlarging``, and the noise through the vector door."""
        condition = super().condition(given)
        told = self.network.embed_image_level(TOLD * given.sigma)
        return replace(condition, vector=told if condition.vector is None else condition.vector + told)

    def shown(self, images: Tensor, told: Tensor, generator=None) -> NoisySmall:
        """What a training step is given: what is told, the images reduced and noised, and how much."""
        small = super().shown(images, told, generator)
        sigma = self.augment * rand((len(images),), generator, images.dtype, images.device)
        return NoisySmall(small.told, self.noised(small.image, sigma, generator), sigma)

    @staticmethod
    def noised(image: Tensor, sigma: Tensor, generator=None) -> Tensor:
        """z = sqrt(1 - sigma^2) y + sigma eps for y (B, C, H, W) and sigma (B,) (``eq-noised-condition``)."""
        eps = randn(image.shape, generator, image.dtype, image.device)
        return diffuse(image, level_of_sigma(sigma), eps)

    def sample(
        self,
        told: Tensor,
        image: Tensor,
        *arguments,
        level: float | Tensor = 0.0,
        noisy: bool = False,
        generator=None,
        **options,
    ) -> Tensor:
        """Enlarge images (B, C, H / factor, W / factor) of what is told, as ``Enlarging.sample``.

        Args:
            told: What to draw.
            image: The small images.
            arguments, options: Those of the system mixed into.
            level: Sigma of the noise in the small images, one or (B,). At 0 nothing is added.
            noisy: The images carry this noise already, as the chain of a truncated cascade leaves them.
            generator: One generator, or a list with one per image.

        Returns:
            (B, C, H, W).

        Raises:
            ValueError: for a level that training did not show.
        """
        sigma = torch.as_tensor(level, dtype=image.dtype, device=self.device).expand(len(image))
        if not bool(((sigma >= 0) & (sigma <= self.augment)).all()):
            raise ValueError(f"level is a standard deviation from 0 to {self.augment}, as in training; got {level}")
        if not noisy and bool(sigma.any()):
            image = self.noised(image.to(self.device), sigma, generator)
        given = partial(NoisySmall, sigma=sigma)
        return super().sample(told, image, *arguments, generator=generator, given=given, **options)


class CDM(Augmented, ClassConditional):
    """A class-conditional upsampler with noise-conditioning augmentation (Ho et al. 2022)."""


class GlideCDM(Augmented, GlideUpsampler):
    """A text-conditioned upsampler with noise-conditioning augmentation."""


class Regression(Upsampler):
    """An upsampler asked in pure noise only: least squares from the small image, and no diffusion.

    At the last level of the schedule x says nothing about the image, so the x_0 that minimises L_simple is
    E[x_0 | label, small image]. Draw with ``steps=1``.
    """

    def noise_level(self, times: Tensor, generator=None) -> NoiseLevel:
        """The noisiest level, whatever the times."""
        return super().noise_level(torch.full_like(times, self.schedule.T - 1), generator)


def truncated(schedule: DiscreteSchedule, steps: Steps, sigma: float) -> list[NoiseLevel]:
    """The chain of ``steps``, cut where its noise has fallen to sigma (``eq-truncated``).

    Args:
        schedule: Of the system that samples.
        steps: As in ``respaced``.
        sigma: Where to stop: at the level of the schedule that is nearest to it.

    Raises:
        ValueError: when nothing of the chain is left.
    """
    deviations = (1 - schedule.alpha_bar).sqrt()
    end = schedule.level(int((deviations - sigma).abs().argmin()))
    chain = [level for level in respaced(schedule, steps) if level.sigma > end.sigma]
    if not chain:
        raise ValueError(f"a chain cut at sigma = {sigma:g} has no step left")
    return [*chain, end]


def cascade(stages: Sequence[tuple[Diffusion, dict]], told, generator=None, truncate: bool = False) -> Tensor:
    """Draw small images and enlarge them, stage by stage.

    A stage with a ``level`` among its options enlarges images with that much noise in them. Without truncation the
    stage before samples to its end and the noise is added (Ho et al. 2022, section 4.2.2); with it, that stage stops
    where its own chain has so much noise left (section 4.2.1). Images that are sampled to the end are handed on by way
    of eight bits, as the next stage has them ``stored``.

    Args:
        stages: Systems, the base first, each with further arguments of its ``sample``: scale, steps, sampler, level.
        told: Labels or captions, told to every stage.
        generator: One generator, or a list with one per image; it serves all stages.
        truncate: Stop chains early.

    Returns:
        (B, C, H, W) in the size of the last stage.

    Raises:
        ValueError: when a stage does not take what the one before draws, or no stage is given.
    """
    if not stages:
        raise ValueError("a cascade needs at least one stage, its base")
    for (before, _), (after, _) in pairwise(stages):
        if before.shape != after.small_shape:
            raise ValueError(f"one stage draws {before.shape}, the next enlarges {after.small_shape}")
    drawn, noisy = None, {}
    for (system, own), (_, following) in zip(stages, [*stages[1:], (None, {})], strict=True):
        options = {**own, **noisy}
        small = [] if drawn is None else [drawn if noisy else system.stored(drawn)]
        stop, noisy = following.get("level", 0.0) if truncate else 0.0, {}
        if stop:
            options["steps"] = truncated(system.schedule, options.get("steps", 50), stop)
            noisy = {"level": options["steps"][-1].sigma, "noisy": True}
        drawn = system.sample(told, *small, generator=generator, **options)
    return drawn
