"""How pictures are drawn from the command line: a chain of systems, how each is sampled, and who guides the first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..arguments import Count, checked
from ..condition import Part, Question, Value, each
from ..guidance import LogProb, adm, cfg, classifier
from ..sampler import Sampler, ancestral, ddim, heun
from ..schedule import respaced
from ..systems.diffusion import Diffusion
from ..systems.draw import drawn
from ..systems.parts import Label
from .processes import Processes

GUIDES = ("cfg", "classifier", "clip", "adm")
SAMPLERS = ("ddim", "ancestral", "heun")
HANDED = "low_res"  # the part whose value an enlarger has from the system before it


@checked
@dataclass(frozen=True)
class Drawing:
    """A way to draw.

    Attributes:
        systems: The base, then those that enlarge what it draws.
        steps: Of every chain, as ``schedule.respaced`` takes them.
        sampler: One of ``SAMPLERS``, of the base; the guide's own when left out.
        guide: One of ``GUIDES``, of the base; by what guides, classifier-free where nothing does, when left out.
        classifier: A classifier that guides.
        clip: A CLIP that guides.
        aug_levels: Noise in what each enlarger sees, as far as they are given.
        temperature: See ``systems.draw.draw``; of the base.
        seed: Seed.
        batch: Pictures at a time.
        names: Of the systems, for messages.

    Raises:
        ValueError: for no systems or such that do not go together, another sampler or guide, a guide without what it
            guides by, a temperature that is none, or a level that a system was not trained with.
    """

    systems: Sequence[Diffusion]
    steps: int | str = 50
    sampler: str | None = None
    guide: str | None = None
    classifier: nn.Module | None = None
    clip: nn.Module | None = None
    aug_levels: Sequence[float] = ()
    temperature: float = 1.0
    seed: int = 0
    batch: Count = 64
    names: Sequence[str] = ()

    def __post_init__(self):
        if not self.systems:
            raise ValueError("something has to draw: name a system")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"the temperature is a finite number >= 0, got {self.temperature}")
        for name, given, known in (("sampler", self.sampler, SAMPLERS), ("guide", self.guide, GUIDES)):
            if given is not None and given not in known:
                raise ValueError(f"the {name} is one of {', '.join(known)}, got {given!r}")
        for system in self.systems:
            respaced(system.schedule, self.steps)
        self._require_stages()
        self._require_guide()

    def _require_stages(self) -> None:
        if len(self.aug_levels) > len(self.systems) - 1:
            raise ValueError(f"a level is for the image that a system enlarges; {len(self.aug_levels)} are too many")
        for i, system in enumerate(self.systems[1:], 1):
            name = self.names[i] if self.names else f"stage {i}"
            _require_enlarges(self.systems[0], system, name)
            level, most = self._aug_level(i), system.part(HANDED).augment
            if not 0 <= level <= most:
                trained = f"with noise from 0 to {most:g}" if most else "without noise"
                raise ValueError(f"{name} was trained {trained} in the small image, not with {level:g}")

    def _require_guide(self) -> None:
        judge, by = self.part.judge if self.part else "", {"classifier": self.classifier, "clip": self.clip}
        given = [name for name, network in by.items() if network is not None]
        if len(given) > 1:
            raise ValueError("one guide is accepted, a classifier or a CLIP")
        if judge == "caption" and self.classifier is not None:
            raise ValueError("this system reads captions; a classifier guides systems with classes, a CLIP this one")
        if judge != "caption" and self.clip is not None:
            raise ValueError("this system reads no captions; a CLIP cannot guide it, a classifier can")
        if self.guide == "cfg" and given:
            raise ValueError(f"classifier-free guidance takes no {given[0]}: leave one of the two out")
        if (self.guide in by and given != [self.guide]) or (self.guide == "adm" and not given):
            raise ValueError(f"the guide {self.guide!r} needs a classifier or a CLIP to guide by")

    def _aug_level(self, i: int) -> float:
        return self.aug_levels[i - 1] if i <= len(self.aug_levels) else 0.0

    @property
    def part(self) -> Part | None:
        """The part of the base by which samples are judged; a classifier gives a base without labels some."""
        judged = next((part for part in self.systems[0].parts if part.judge), None)
        if judged is None and self.classifier is not None:
            return Label(self.classifier.n_classes)
        return judged

    @property
    def questions(self) -> list[Question]:
        """What a person is asked to have the values of all parts."""
        parts = [part for i in range(len(self.systems)) for part in self._asked(i)]
        parts += [] if self.part is None else [self.part]
        return list({question.name: question for part in parts for question in part.questions}.values())

    def _asked(self, i: int) -> list[Part]:
        """The parts of a stage whose values are not handed on by the stage before."""
        return [part for part in self.systems[i].parts if i == 0 or part.key != HANDED]

    def answers(self, given: Mapping[str, object], n: Count) -> tuple[list[dict[str, Value]], Tensor]:
        """The values of n pictures for every stage from the answers to ``questions``, and the number of each picture.

        The number is that of its class or caption, -1 where there is none.

        Raises:
            ValueError: when an answer is missing or wrong.
        """
        values = [self._values(i, given, n) for i in range(len(self.systems))]
        number = None if self.part is None else self.part.answer(given, n, self.systems[0].shape)[1]
        return values, torch.full((n,), -1) if number is None else number

    def _values(self, i: int, given: Mapping[str, object], n: int) -> dict[str, Value]:
        system = self.systems[i]
        told = {part.key: part.answer(given, n, system.shape)[0] for part in self._asked(i)}
        if i == 0:
            return system.read(told, n)
        blank = torch.zeros(1, *system.part(HANDED).small_shape(system.shape))
        read = system.read({**told, HANDED: blank}, n)
        return {key: value for key, value in read.items() if key != HANDED}

    def draw(
        self,
        here: Processes,
        values: Sequence[Mapping[str, Value]],
        number: Tensor,
        scale: float,
        captions: Sequence[str] = (),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of the pictures: their indices and images (b, C, H, W) on the CPU.

        Args:
            here: This process among its peers.
            values: Of the parts of every stage, as many entries as pictures.
            number: (n,) class or caption of each picture.
            scale: Guidance scale s of the base.
            captions: The captions that are numbered.
        """

        def base(mine: Tensor) -> dict:
            guided = self._guided(number[mine], scale, captions)
            return {"levels": self.steps, "temperature": self.temperature, "sampler": self._sampler()} | guided

        def enlarger(i: int, mine: Tensor) -> dict:
            own = {key: each(lambda tensor: tensor[mine], value) for key, value in values[i].items()}
            return {"levels": self.steps, "aug_level": self._aug_level(i)} | own

        stages = [(self.systems[0], base)]
        stages += [(system, partial(enlarger, i)) for i, system in enumerate(self.systems[1:], 1)]
        return drawn(stages, values[0], len(number), self.seed, self.batch, here.rank, here.world)

    def _guided(self, number: Tensor, scale: float, captions: Sequence[str]) -> dict:
        """Options of ``draw`` that say who guides the pictures of these classes or captions."""
        log_prob = self._log_prob(number, captions)
        if log_prob is None:
            return {"guide": cfg(scale)}
        if self.guide == "adm":
            return {"guide": adm(log_prob, scale, ode=self._sampler_name() != "ancestral"), "threshold": None}
        return {"guide": classifier(log_prob, scale)}

    def _log_prob(self, number: Tensor, captions: Sequence[str]) -> LogProb | None:
        if self.classifier is not None:
            return self.classifier.classifier(number)
        return None if self.clip is None else self.clip.critic([captions[i] for i in number.tolist()])

    def _sampler_name(self) -> str:
        """ADM's guide takes ancestral steps, unless the steps are spelled as DDIM's are; all others take DDIM's."""
        ancestral_steps = self.guide == "adm" and not str(self.steps).startswith("ddim")
        return self.sampler or ("ancestral" if ancestral_steps else "ddim")

    def _sampler(self) -> Sampler:
        name = self._sampler_name()
        if name != "ancestral":
            return {"ddim": ddim, "heun": heun}[name]()
        fixed = "beta" if self.guide == "adm" else "beta_tilde"
        return ancestral("learned" if self.systems[0].variance == "learned" else fixed)


def _require_enlarges(base: Diffusion, system: Diffusion, name: str) -> None:
    """A system that enlarges what a base draws is told the same as the base."""
    if system.part(HANDED) is None:
        raise ValueError(f"{name} does not enlarge what another system drew; systems with a small image do")
    if _vocabulary(base) != _vocabulary(system):
        raise ValueError(f"{name} is told something else than what is to be enlarged: labels, or other tokens")


def _vocabulary(system: Diffusion) -> tuple[int | None, str | None]:
    """How many classes a system is told, and in which tokens it reads captions."""
    label, caption = system.part("label"), system.part("caption")
    return label and label.n_classes, caption and caption.tokenizer.name
