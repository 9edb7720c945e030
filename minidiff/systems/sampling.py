"""How a system is sampled, as a recipe says it: of a preset, as its samples were published."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..arguments import Finite, NonNegative, Share, checked
from ..guidance import cfg, dynamic_threshold, static_threshold
from ..sampler import Sampler, ancestral, ddim, heun, interpolated
from ..schedule import read_steps

SAMPLERS = ("ddim", "ancestral", "heun")
GUIDES = ("cfg", "classifier", "clip", "adm")
THRESHOLDS = {"static": static_threshold, "dynamic": dynamic_threshold(), "none": None}


@checked
@dataclass(frozen=True)
class Sampling:
    """How a system is sampled.

    Attributes:
        steps: "250", "ddim25", "fast27" or sections, see ``schedule.respaced``.
        sampler: "ddim", "heun", or "ancestral", which takes the learned variance where there is one; when left out
            ddim, or what ADM's guide needs.
        gamma: Of ancestral steps: how far their variance lies from the lower bound, 0, to the upper, 1, see
            ``sampler.interpolated``; when left out as the sampler has it.
        scale: Scale of classifier-free guidance; when left out nothing was published.
        temperature: Of the noise at the start, see ``systems.draw.draw``.
        aug_level: Standard deviation of the noise in a small image that is enlarged.
        threshold: What keeps x_0 in the range of the data, "static", "dynamic" (at 99.5 %) or "none"; the system's own
            when left out.
        guide: How a classifier or a CLIP guides, where one is named: "classifier", "clip" or "adm".
        classifier_scales: Scale for the classifier of the same size, by the spelling of steps.

    Raises:
        ValueError: for a name that is not known, a number out of range, or steps that are spelled otherwise.
    """

    steps: str = "50"
    sampler: str | None = None
    gamma: Share | None = None
    scale: Finite | None = None
    temperature: NonNegative = 1.0
    aug_level: float = 0.0
    threshold: str | None = None
    guide: str | None = None
    classifier_scales: dict[str, Finite] = field(default_factory=dict)

    def __post_init__(self):
        for steps in (self.steps, *self.classifier_scales):
            read_steps(steps)
        for name, known in (("sampler", SAMPLERS), ("guide", GUIDES), ("threshold", THRESHOLDS)):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise ValueError(f"the {name} is one of {', '.join(known)}, got {value!r}")
        if self.gamma is not None and self.sampler != "ancestral":
            raise ValueError(f"gamma is of the sampler ancestral, and the sampler is {self.sampler or 'ddim'}")
        if not 0 <= self.aug_level < 1:
            raise ValueError(f"aug_level is a standard deviation in [0, 1), got {self.aug_level}")

    def sampler_for(self, system, fixed: str = "beta_tilde") -> Sampler:
        """The sampler of a system; ``fixed`` is the reverse variance of ancestral steps where none is learned."""
        if self.gamma is not None:
            return interpolated(self.gamma)
        if self.sampler == "ancestral":
            return ancestral("learned" if system.variance == "learned" else fixed)
        return heun() if self.sampler == "heun" else ddim()

    def options(self, system) -> dict:
        """The options of ``draw`` that this stands for: ``draw(system, 4, **sampling.options(system), label=7)``."""
        threshold = {} if self.threshold is None else {"threshold": THRESHOLDS[self.threshold]}
        return threshold | {
            "levels": self.steps,
            "sampler": self.sampler_for(system),
            "temperature": self.temperature,
            "guide": cfg(1.0 if self.scale is None else self.scale),
        }

    def __str__(self):
        parts = [f"{self.steps} steps", self.sampler or "ddim"]
        parts += [f"gamma {self.gamma:g}"] if self.gamma is not None else []
        parts += [f"s = {self.scale:g}"] if self.scale is not None else []
        parts += [f"temperature {self.temperature:g}"] if self.temperature != 1 else []
        parts += [f"noise {self.aug_level:g} in the small picture"] if self.aug_level else []
        return ", ".join(parts)
