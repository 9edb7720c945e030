"""How pictures are drawn from the command line: a chain of systems, how each is sampled, and who guides the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..condition import Part, Question
from ..guidance import adm, cfg, classifier
from ..sampler import ancestral, ddim, heun
from ..systems.diffusion import Diffusion
from ..systems.draw import drawn
from ..systems.parts import Label
from .processes import Processes

GUIDES = ("cfg", "classifier", "clip", "adm")
SAMPLERS = ("ddim", "ancestral", "heun")


@dataclass(frozen=True)
class Drawing:
    """A way to draw.

    Attributes:
        systems: The base, then those that enlarge what it draws.
        steps: Of every chain, as ``schedule.respaced`` takes them.
        sampler: One of ``SAMPLERS``; the guide's own when left out.
        guide: One of ``GUIDES``; by what guides, classifier-free where nothing does, when left out.
        classifier: A classifier that guides.
        clip: A CLIP that guides.
        aug_levels: Noise in what each enlarger sees, as far as they are given.
        temperature: See ``systems.draw.draw``; of the base.
        seed: Seed.
        batch: Pictures at a time.

    Raises:
        ValueError: for systems that do not go together, a guide without what it guides by, or a level for a system that
            was trained without noise in the small image.
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
    batch: int = 64
    names: Sequence[str] = field(default=())

    def __post_init__(self):
        if len(self.aug_levels) > len(self.systems) - 1:
            raise ValueError(f"a level is for the image that a system enlarges; {len(self.aug_levels)} are too many")
        for i, system in enumerate(self.systems[1:]):
            _require_enlarges(self.systems[0], system, self._name(i + 1))
            if i < len(self.aug_levels) and not system.part("low_res").augment:
                raise ValueError(f"{self._name(i + 1)} was trained without noise in the small image: it takes no level")
        if self.classifier is not None and self.clip is not None:
            raise ValueError("one guide is accepted, a classifier or a CLIP")
        judged = self.part.judge if self.part else ""
        if judged == "caption" and self.classifier is not None:
            raise ValueError("this system reads captions; a classifier guides systems with classes, a CLIP this one")
        if judged == "class" and self.clip is not None:
            raise ValueError(
                "this system draws classes and reads no captions; a CLIP cannot guide it, a classifier can"
            )
        need = {"classifier": self.classifier, "clip": self.clip, "adm": self.classifier or self.clip}
        if self.guide in need and need[self.guide] is None:
            raise ValueError(f"the guide {self.guide!r} needs a classifier or a CLIP to guide by")

    def _name(self, i: int) -> str:
        return self.names[i] if i < len(self.names) else f"stage {i}"

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
        found = [question for part in self.parts(0) for question in part.questions]
        for i in range(1, len(self.systems)):
            found += [q for part in self.parts(i) if part.key != "low_res" for q in part.questions]
        if self.part is not None:
            found += self.part.questions
        return list({question.name: question for question in found}.values())

    def parts(self, i: int) -> Sequence[Part]:
        """The parts of a stage."""
        return self.systems[i].parts

    def answers(self, given: Mapping[str, object], n: int) -> tuple[list[dict], Tensor]:
        """The values of n pictures for every stage from the answers to ``questions``, and the number of each picture.

        The number is that of its class or caption, -1 where there is none.

        Raises:
            ValueError: when an answer is missing or wrong.
        """
        number, values = torch.full((n,), -1), []
        for i, system in enumerate(self.systems):
            own = {}
            for part in system.parts:
                if i and part.key == "low_res":
                    continue
                own[part.key], numbers = part.answer(given, n, system.shape)
                number = number if numbers is None else numbers
            values.append(system.read({**own, **self._blank(i, n)}, n))
        if self.part is not None and self.systems[0].part(self.part.key) is None:
            number = self.part.answer(given, n, self.systems[0].shape)[1]
        return values, number

    def _blank(self, i: int, n: int) -> dict[str, Tensor]:
        """What stands for the image that the stage before will have drawn."""
        small = self.systems[i].part("low_res") if i else None
        return {} if small is None else {"low_res": torch.zeros(1, *small.small_shape(self.systems[i].shape))}

    def draw(
        self,
        here: Processes,
        values: Sequence[Mapping[str, object]],
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
        plain = {"levels": self.steps}

        def base(mine: Tensor) -> dict:
            return plain | {"temperature": self.temperature} | self._guided(number[mine], scale, captions)

        def enlarger(i: int) -> Callable[[Tensor], dict]:
            more = {"aug_level": self.aug_levels[i - 1]} if i <= len(self.aug_levels) else {}
            own = {k: v for k, v in values[i].items() if k not in ("low_res", *values[0])} | _known(values[i])
            return lambda mine: plain | more | {k: _rows(v, mine) for k, v in own.items()}

        stages = [(self.systems[0], base), *((s, enlarger(i)) for i, s in enumerate(self.systems) if i)]
        return drawn(stages, values[0], len(number), self.seed, self.batch, here.rank, here.world)

    def _guided(self, number: Tensor, scale: float, captions: Sequence[str]) -> dict:
        """Options of ``draw`` that say who guides the pictures of these classes or captions, and by which sampler."""
        learned = self.systems[0].variance == "learned"
        samplers = {"ddim": ddim(), "heun": heun(), "ancestral": ancestral("learned" if learned else "beta_tilde")}
        own = {} if self.sampler is None else {"sampler": samplers[self.sampler]}
        if self.classifier is not None:
            log_prob = self.classifier.classifier(number)
        elif self.clip is not None:
            log_prob = self.clip.critic([captions[i] for i in number.tolist()])
        else:
            return {"guide": cfg(scale)} | own
        if self.guide == "cfg":
            raise ValueError("classifier-free guidance takes no classifier and no CLIP: leave one of the two out")
        if self.guide != "adm":
            return {"guide": classifier(log_prob, scale)} | own
        ode = self.sampler in ("ddim", "heun") or str(self.steps).startswith("ddim")
        mean = {"sampler": ancestral("learned" if learned else "beta")}
        return {"guide": adm(log_prob, scale, ode), "threshold": None} | ({} if ode else mean) | own


def _known(values: Mapping[str, object]) -> dict:
    return {key: value for key, value in values.items() if key == "known"}


def _rows(value, mine: Tensor):
    return value[mine] if isinstance(value, Tensor) else tuple(tensor[mine] for tensor in value)


def _require_enlarges(base: Diffusion, system: Diffusion, name: str) -> None:
    """A system that enlarges what a base draws is told the same as the base."""
    if system.part("low_res") is None:
        raise ValueError(f"{name} does not enlarge what another system drew; systems with a small image do")
    tokenizer = lambda s: getattr(s.part("caption"), "tokenizer", None)
    told = [(getattr(s.part("label"), "n_classes", None), getattr(tokenizer(s), "name", None)) for s in (base, system)]
    if told[0] != told[1]:
        raise ValueError(f"{name} is told something else than what is to be enlarged: labels, or other tokens")
