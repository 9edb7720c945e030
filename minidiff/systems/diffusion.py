"""What every system shares that denoises with a network at discrete levels: its prediction, loss and sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..denoiser import Condition, as_denoiser, conditioned
from ..guidance import LogProb, classifier_free, classifier_guidance, mean_shift_guidance, static_threshold
from ..likelihood import hybrid_vlb, mean_flat
from ..prediction import Prediction
from ..process import beta_tilde, diffuse
from ..random import randint, randn
from ..sampler import Sampler, ancestral, ddim, sample
from ..schedule import DiscreteSchedule, NoiseLevel

RULES = ("score", "adm")


Steps = int | str | Sequence[NoiseLevel]


def respaced(schedule: DiscreteSchedule, steps: Steps) -> Sequence[NoiseLevel]:
    """The chain of levels that a number of steps, or ADM's spelling of one, stands for.

    Args:
        schedule: The schedule that the network was trained with.
        steps: 250 or "250" evenly, "ddim25" with an integer stride from 0, "90,60,60,20,20": the steps of each equal
            section, data end first; "fast27", those of GLIDE's upsampler; or a chain of one's own, from noise to data.

    Raises:
        ValueError: for anything else, or a number of steps that the schedule cannot give.
    """
    if isinstance(steps, Sequence) and not isinstance(steps, str):
        return steps
    if not isinstance(steps, str):
        return schedule.levels(steps)
    if steps == "fast27":
        return schedule.levels(spacing=steps)
    text = steps.removeprefix("ddim")
    if not text.replace(",", "").isdigit() or (text != steps and "," in text):
        accepted = "a number, '250', 'ddim25', 'fast27' or sections such as '90,60,60,20,20'"
        raise ValueError(f"steps must be {accepted}, got {steps!r}")
    if text != steps:
        return schedule.levels(int(text), "ddim")
    return schedule.levels(spacing=[int(count) for count in text.split(",")])


class Diffusion(nn.Module):
    """A network read as a denoiser. Called as a conditional model, ``system(x, level, given)``.

    What is *told*, a label or the tokens of a caption, names the content of an image. What is *given* is all that the
    system sees beside x: what is told, or a dataclass of tensors with one entry per sample that also holds images. A
    system says by ``condition`` what it means, by ``dropped`` what of it is hidden in training, by ``null`` what stands
    for nothing told.

    Args:
        network: ``(x, time, condition) -> output``, with its shape in ``config``.
        schedule: Discrete noise levels.
        predicts: "eps", "v" or "x0".
        variance: "fixed" or "learned_range".
        bins: Number of values a pixel can take, for the bound.

    Raises:
        ValueError: for a network that takes another number of channels than this system shows it.
    """

    def __init__(self, network: nn.Module, schedule: DiscreteSchedule, predicts: str, variance: str, bins: int = 256):
        super().__init__()
        self.network, self.schedule = network, schedule
        self.predicts, self.variance, self.bins = predicts, variance, bins
        self._denoise = as_denoiser(network, predicts, variance)
        self._floor = beta_tilde(schedule.level(1), schedule.level(0))
        shown = self.shape[0] + self.image_channels
        if network.config.in_channels != shown:
            raise ValueError(f"this system needs {shown} input channels, got {network.config.in_channels}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        config = self.network.config
        return config.out_channels // (1 + (self.variance == "learned_range")), config.size, config.size

    has_null = True  # whether what is told can be nothing

    def null(self, n: int):
        """What n samples are told when they are told nothing."""
        raise NotImplementedError

    @property
    def image_channels(self) -> int:
        """Channels that enter the network through the image door, beside those of x."""
        return 0

    def condition(self, given) -> Condition:
        """What is given, as it enters the network."""
        raise NotImplementedError

    def dropped(self, given, generator=None):
        """What of it a training step shows; all, unless a system hides some."""
        return given

    def forward(self, x: Tensor, level: NoiseLevel, given) -> Prediction:
        """The prediction for x (B, C, H, W)."""
        return self._denoise(x, level, self.condition(given))

    def noise_level(self, times: Tensor, generator=None) -> NoiseLevel:
        """The level that a training image is noised to at each of the times (B,)."""
        return self.schedule.level(times)

    def shown(self, images: Tensor, told, generator=None):
        """What a training step is given of images and what is told of them: what is told, unless a system sees more."""
        return told

    def loss(self, images: Tensor, told, generator=None, times: Tensor | None = None) -> dict[str, Tensor]:
        """L_simple in the network's own parametrisation, plus T/1000 times the bound where the variance is learned.

        Nichol and Dhariwal 2021, equation 16. ``times`` (B,) are drawn uniformly when left out. Returns (B,) "loss",
        "simple" and, with a learned variance, "vlb".
        """
        given = self.shown(images, told, generator)
        times = randint(self.schedule.T, len(images), generator, images.device) if times is None else times
        t = self.noise_level(times, generator)
        eps = randn(images.shape, generator, images.dtype, images.device)
        x_t = diffuse(images, t, eps)
        prediction = self(x_t, t, self.dropped(given, generator))
        target = Prediction(x_t, t, eps, "eps")
        target = {"eps": eps, "x0": images, "v": target.v}[self.predicts]
        simple = mean_flat((prediction.value - target) ** 2)
        if self.variance == "fixed":
            return {"loss": simple, "simple": simple}
        vlb = hybrid_vlb(prediction, images, t, self.schedule.previous(t), self._floor, self.bins)
        return {"loss": simple + vlb * self.schedule.T / 1000, "simple": simple, "vlb": vlb}

    @torch.no_grad()
    def sample(
        self,
        told: Tensor,
        scale: float = 1.0,
        steps: Steps = 50,
        *,
        sampler: Sampler | None = None,
        log_prob: LogProb | None = None,
        generator=None,
        rule: str = "score",
        temperature: float = 1.0,
        given: Callable = lambda told: told,
    ) -> Tensor:
        """Draw images of what is told, x_0 kept inside [-1, 1]. What is given enters the network once, at the start.

        Args:
            told: (B, ...) what to draw.
            scale: Guidance scale s.
            steps: Number of steps; or "250", "ddim25", "fast27", or sections, see ``respaced``.
            sampler: A sampler; ``ddim()`` when left out.
            log_prob: ``(x_t, level) -> (B,)`` that guides; classifier-free guidance when left out.
            generator: One generator, or a list with one per image.
            rule: "score": classifier-free guidance, or log_prob shifts the score of the null (of what is told, when
                there is no null); x_0 is clamped to [-1, 1] last. "adm": log_prob guides the model that knows what is
                told, after x_0 is clamped, as in ADM's scripts (Dhariwal and Nichol 2021, algorithms 1 and 2):
                ancestral steps shift the mean, a "ddim" spacing takes DDIM steps and shifts the score.
            temperature: Standard deviation of the noise to start from, over that of the process; GLIDE's upsampler
                takes .997.
            given: From what is told to what this system is given, where that is more.

        Returns:
            (B, C, H, W).

        Raises:
            ValueError: for what cannot be told, a rule, scale or steps out of range, or a combination that the rule
                does not have.
        """
        if rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
        if log_prob is None and scale != 1 and (rule == "adm" or not self.has_null):
            what = "ADM's rule needs a classifier" if rule == "adm" else "this network knows no null condition"
            raise ValueError(f"{what} to guide at scale {scale:g}; only scale 1 is left")
        levels, condition = respaced(self.schedule, steps), self.condition(given(told))
        if rule == "adm":
            if sampler is not None:
                raise ValueError("ADM's rule brings its own sampler; choose it by steps, such as '250' or 'ddim25'")
            deterministic = isinstance(steps, str) and steps.startswith("ddim")
            denoiser = static_threshold(conditioned(self._denoise, condition))
            if log_prob is not None:
                guide = classifier_guidance if deterministic else mean_shift_guidance
                denoiser = guide(denoiser, log_prob, scale)
            sampler = ddim() if deterministic else ancestral("beta" if self.variance == "fixed" else "learned")
        else:
            null = self.condition(given(self.null(len(told)))) if self.has_null else None
            if log_prob is None:
                denoiser = classifier_free(self._denoise, condition, null, scale)
            else:
                base = conditioned(self._denoise, condition if null is None else null)
                denoiser = classifier_guidance(base, log_prob, scale)
            denoiser = static_threshold(denoiser)
        x_T = temperature * randn((len(told), *self.shape), generator, device=self.device)
        return sample(sampler or ddim(), denoiser, levels, x_T, generator)

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.parameters()).device
