"""How pictures are drawn from the command line: a chain of systems, how each is sampled, and who guides the first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from ..arguments import Count, Finite, checked
from ..condition import Part, Question, Value, each
from ..data.sets import require_names
from ..guidance import LogProb, adm, cfg, classifier
from ..sampler import watched
from ..schedule import respaced
from ..systems.diffusion import Diffusion
from ..systems.draw import drawn, receiver
from ..systems.parts import Label
from ..systems.sampling import GUIDES, Sampling
from ..systems.told import Told
from ..training.trainable import classes_told
from .processes import Processes


@checked
@dataclass(frozen=True)
class Drawing:
    """A way to draw.

    Attributes:
        systems: The base, then those that enlarge what it draws; before it perhaps what draws an embedding for it.
        ways: How each of them is sampled; as a recipe that says nothing when left out.
        guide: One of ``GUIDES``, of the base; by what guides, classifier-free where nothing does, when left out.
        classifier: A classifier that guides.
        clip: A CLIP that guides.
        seed: Seed.
        batch: Pictures at a time.
        names: Of the systems, for messages.

    Raises:
        ValueError: for no systems or such that do not go together or call their classes otherwise, another guide, a
            guide without what it guides by, or a level that a system was not trained with.
    """

    systems: Sequence[Told]
    ways: Sequence[Sampling] = ()
    guide: str | None = None
    classifier: nn.Module | None = None
    clip: nn.Module | None = None
    seed: int = 0
    batch: Count = 64
    names: Sequence[str] = ()

    def __post_init__(self):
        if not self.systems:
            raise ValueError("something has to draw: name a system")
        if self.guide is not None and self.guide not in GUIDES:
            raise ValueError(f"the guide is one of {', '.join(GUIDES)}, got {self.guide!r}")
        if self.ways and len(self.ways) != len(self.systems):
            raise ValueError(f"{len(self.systems)} systems take as many ways to sample, got {len(self.ways)}")
        self._require_stages()
        self._require_guide()

    def way(self, i: int) -> Sampling:
        """How a system is sampled. ADM's guide takes ancestral steps, unless the steps are spelled as DDIM's are."""
        way = self.ways[i] if self.ways else Sampling()
        if i == self.base and self.guide == "adm" and way.sampler is None:
            return replace(way, sampler="ddim" if way.steps.startswith("ddim") else "ancestral")
        return way

    def steps(self, left: int) -> int:
        """How many steps of chains a process takes to draw ``left`` pictures."""
        drawers = ((i, system) for i, system in enumerate(self.systems) if isinstance(system, Diffusion))
        chains = [respaced(system.schedule, self.way(i).steps) for i, system in drawers]
        return -(-left // self.batch) * sum(len(chain) - 1 for chain in chains)

    def _require_stages(self) -> None:
        for i, system in enumerate(self.systems[1:], 1):
            name = self._name(i)
            _require_enlarges(self.systems[0], system, name)
            require_names(_names(system), self.class_names, name, self._name(0))
            level, most = self.way(i).aug_level, getattr(receiver(system), "augment", 0.0)
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
        if self.classifier is not None:
            require_names(_names(self.classifier), self.class_names, "the classifier", self._name(0))

    def _name(self, i: int) -> str:
        return self.names[i] if self.names else f"stage {i}"

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the classes that the base is told are called; () where it is told none, or their names are not known."""
        return _names(self.systems[0])

    @property
    def base(self) -> int:
        """Number of the first system that draws pictures."""
        return next((i for i, system in enumerate(self.systems) if len(system.shape) == 3), 0)

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
        return [part for part in self.systems[i].parts if i == 0 or not part.handed]

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
        handed = receiver(system)
        read = system.read({**told, handed.key: torch.zeros(1, *handed.takes(system.shape))}, n)
        return {key: value for key, value in read.items() if key != handed.key}

    def draw(
        self,
        here: Processes,
        values: Sequence[Mapping[str, Value]],
        number: Tensor,
        scale: Finite,
        captions: Sequence[str] = (),
        skip: Collection[int] = (),
        watch: Callable[[], object] = lambda: None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of the pictures: their indices and images (b, C, H, W) on the CPU.

        Args:
            here: This process among its peers.
            values: Of the parts of every stage, as many entries as pictures.
            number: (n,) class or caption of each picture.
            scale: Guidance scale s of the base.
            captions: The captions that are numbered.
            skip: Pictures that are not drawn.
            watch: Called after every step of a chain.
        """

        def options(i: int, fixed: str = "beta_tilde") -> dict:
            way, system = self.way(i), self.systems[i]
            return way.options(system) | {"sampler": watched(way.sampler_for(system, fixed), watch)}

        first = self.base

        def own(i: int, mine: Tensor) -> dict:
            return {key: each(lambda tensor: tensor[mine], value) for key, value in values[i].items()} if i else {}

        def prior(i: int, mine: Tensor) -> dict:
            return options(i) if isinstance(self.systems[i], Diffusion) else {"scale": self.way(i).scale or 1.0}

        def base(mine: Tensor) -> dict:
            fixed = "beta" if self.guide == "adm" else "beta_tilde"
            return options(first, fixed) | self._guided(number[mine], scale, captions) | own(first, mine)

        def enlarger(i: int, mine: Tensor) -> dict:
            return options(i) | {"aug_level": self.way(i).aug_level} | own(i, mine)

        stages = [(system, partial(prior, i)) for i, system in enumerate(self.systems[:first])]
        stages += [(self.systems[first], base)]
        stages += [(system, partial(enlarger, i)) for i, system in enumerate(self.systems[first + 1 :], first + 1)]
        return drawn(stages, values[0], len(number), self.seed, self.batch, here.rank, here.world, skip)

    def _guided(self, number: Tensor, scale: Finite, captions: Sequence[str]) -> dict:
        """Options of ``draw`` that say who guides the pictures of these classes or captions."""
        log_prob = self._log_prob(number, captions)
        if log_prob is None:
            return {"guide": cfg(scale)}
        if self.guide == "adm":
            return {"guide": adm(log_prob, scale, ode=self.way(self.base).sampler != "ancestral"), "threshold": None}
        return {"guide": classifier(log_prob, scale)}

    def _log_prob(self, number: Tensor, captions: Sequence[str]) -> LogProb | None:
        if self.classifier is not None:
            return self.classifier.classifier(number)
        return None if self.clip is None else self.clip.critic([captions[i] for i in number.tolist()])


def _require_enlarges(base: Told, system: Told, name: str) -> None:
    """A system that goes on from what a base draws reads the same labels or captions, as far as it reads some."""
    if receiver(system) is None:
        raise ValueError(
            f"{name} does not enlarge what another system drew; systems with a small image do, see `minidiff sample "
            "--help-system NAME`"
        )
    for own, other in zip(_vocabulary(system), _vocabulary(base), strict=True):
        if own is not None and own != other:
            raise ValueError(
                f"{name} reads something else than what is to be enlarged, labels or captions in other tokens: name an "
                "enlarger that was trained with the same"
            )


def _names(system: nn.Module) -> tuple[str, ...]:
    """What a system calls the classes that it tells apart or is told; () of one that knows none."""
    return getattr(system, "class_names", ()) if classes_told(system) is not None else ()


def _vocabulary(system: Told) -> tuple[int | None, str | None]:
    """How many classes a system knows, and in which tokens it reads captions."""
    label, tokenizer = system.part("label"), getattr(system.part("caption"), "tokenizer", None)
    return label and label.n_classes, tokenizer and tokenizer.name
