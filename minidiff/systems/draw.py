"""The one way to sample any system, chains of systems that hand images on, and many images in batches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ..arguments import Count, Natural, NonNegative, Positive, Randomness, called, checked
from ..condition import Part, Value, each
from ..denoiser import Denoiser
from ..guidance import Guide, cfg
from ..process import start_std
from ..random import randn, require_generators, sample_generators
from ..sampler import Sampler, ddim, sample
from ..schedule import DiscreteSchedule, NoiseLevel, respaced
from .diffusion import Diffusion
from .told import Told

PLAIN = cfg(1.0)
OWN = "own"  # of the system, where something is left out
Threshold = called("a threshold such as static_threshold, a function of (denoiser)", Callable[[Denoiser], Denoiser])
Levels = int | str | Sequence[NoiseLevel]
Stage = tuple[Told, Mapping[str, object]]  # a system, and the options of ``draw`` that are its own


@checked
def draw(
    system: Diffusion,
    n: Count,
    *,
    guide: Guide = PLAIN,
    levels: Levels = 50,
    sampler: Sampler | None = None,
    x_T: Tensor | None = None,
    threshold: Threshold | Literal["own"] | None = OWN,
    temperature: NonNegative = 1.0,
    candidates: Count | None = None,
    generator: Randomness = None,
    **values,
) -> Tensor:
    """Draw n samples. Values enter the network once, at the start.

    Gradients are recorded only where x_T or a value asks for them; that of a classifier or CLIP that guides is a
    constant to them.

    Args:
        system: What draws.
        n: Number of samples.
        guide: From the model, the condition and the null to a denoiser, see ``minidiff.guidance``.
        levels: Number of steps; "250", "ddim25", "fast27" or sections, see ``schedule.respaced``; or a chain of levels.
        sampler: A sampler; ``ddim()`` when left out.
        x_T: (n, *system.shape) to start from; when left out, noise as ``process.start_std`` of the first level has it.
        threshold: Applied to the guided denoiser, so that x_0 stays in the range of the data; None for nothing. When
            left out the system's own, which for pictures is ``static_threshold``.
        temperature: Standard deviation of that noise, over that of the process; GLIDE's upsampler takes .997.
        candidates: Samples that are drawn for each that is kept, the best by the system's ``merit`` (``eq-best-of``);
            when left out the system's own number, which for pictures is 1.
        generator: One generator, or a list with one per sample.
        values: Of the parts, by key, one or n of each: ``label=7``, ``caption=["a red ring"]``, ``low_res=images``.

    Returns:
        (n, *system.drawn_shape): of latents the pictures.

    Raises:
        ValueError: for values that the system does not read, what is no guide, sampler or threshold, a guide that it
            has no null for, or levels that its schedule does not have.
    """
    threshold = system.threshold if threshold == OWN else threshold
    require_generators(generator, n)
    given = system.read(values, n)
    tensors = [x_T, *(t for value in given.values() for t in ((value,) if isinstance(value, Tensor) else value))]
    gradients = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    chain = _chain(system.schedule, levels)
    starts = _starts(system, n, x_T, temperature * start_std(chain[0]), candidates, generator)
    with torch.set_grad_enabled(gradients):
        condition = system.encode(given)
        null = system.encode(system.nulls(given)) if system.has_null else condition
        denoiser = guide(system, condition, null)
        denoiser = denoiser if threshold is None else threshold(denoiser)
        for part in system.parts:
            denoiser = part.impose(denoiser, given[part.key])
        run = lambda x: system.finished(sample(sampler or ddim(), denoiser, chain, x, generator, gradients))
        return _best(system, map(run, starts), given)


def _starts(system: Diffusion, n: int, x_T: Tensor | None, std, candidates: int | None, generator) -> Iterable[Tensor]:
    """What chains begin from, one batch of n for each candidate: noise, drawn when it is asked for, or x_T."""
    if candidates is None:
        candidates = 1 if x_T is not None else system.candidates
    if candidates < 1 or (x_T is not None and candidates > 1):
        raise ValueError(f"one candidate or more is accepted, and one of a given x_T; got {candidates}")
    shape = (n, *system.shape)
    if x_T is None:
        return (std * randn(shape, generator, system.dtype, system.device) for _ in range(candidates))
    if tuple(x_T.shape) != shape:
        raise ValueError(f"x_T must be {shape}, got {tuple(x_T.shape)}")
    if (x_T.dtype, x_T.device.type) != (system.dtype, system.device.type):
        there = f"{system.dtype} on {system.device}"
        raise ValueError(f"x_T must be of {there}, as the system; got {x_T.dtype} on {x_T.device}")
    return [x_T]


def _best(system: Diffusion, candidates: Iterator[Tensor], given: Mapping[str, Value]) -> Tensor:
    """Of several batches the samples with the largest merit, each for itself."""
    best = next(candidates)
    for other in candidates:
        better = system.merit(other, given) > system.merit(best, given)
        best = torch.where(better.reshape(-1, *[1] * (best.ndim - 1)), other, best)
    return best


def _chain(schedule, levels: Levels) -> Sequence[NoiseLevel]:
    """The chain of ``levels``, checked: one's own may be anything."""
    chain = respaced(schedule, levels)
    if len(chain) < 2 or not all(isinstance(level, NoiseLevel) for level in chain):
        raise ValueError(f"a chain holds two noise levels or more, from noise to data, got {chain!r}")
    return chain


@checked
def truncated(schedule: DiscreteSchedule, levels: Levels, sigma: Positive) -> list[NoiseLevel]:
    """The chain of ``levels``, cut where its noise has fallen to sigma (``eq-truncated``).

    Args:
        schedule: Discrete, of the system that samples.
        levels: As in ``draw``.
        sigma: Where to stop: at the level of the schedule that is nearest to it.

    Raises:
        ValueError: when nothing of the chain is left, or sigma is not positive.
    """
    deviations = (1 - schedule.alpha_bar).sqrt()
    end = schedule.level(int((deviations - sigma).abs().argmin()))
    chain = [level for level in _chain(schedule, levels) if level.sigma > end.sigma]
    if not chain:
        raise ValueError(f"a chain cut at sigma = {sigma:g} has no step left")
    return [*chain, end]


@checked
def cascade(
    stages: Sequence[Stage], n: Count, generator: Randomness = None, truncate: bool = False, **values
) -> Tensor:
    """Draw small images and enlarge them, stage by stage.

    A stage with an ``aug_level`` among its options enlarges images with that much noise in them. Without truncation the
    stage before samples to its end and the noise is added (Ho et al. 2022, section 3.3); with it, that stage stops
    where its own chain has so much noise left (section 3.2). Images that are sampled to the end are handed on in eight
    bits.

    Args:
        stages: Systems, the base first, each with options of ``draw`` of its own, ``aug_level``, and values.
        n: Number of images.
        generator: One generator, or a list with one per image; it serves all stages.
        truncate: Stop chains early.
        values: For every stage that has such a part; one at least must have.

    Returns:
        (n, C, H, W) in the size of the last stage.

    Raises:
        ValueError: when a stage does not take what the one before draws, there is no stage, or the base has an
            aug_level.
    """
    if not stages:
        raise ValueError("a cascade needs at least one stage, its base")
    if "aug_level" in stages[0][1]:
        raise ValueError("aug_level is of the image that a stage enlarges; the base has none, name it with the next")
    for (before, _), (after, _) in pairwise(stages):
        takes = receiver(after) and receiver(after).takes(after.shape)
        if before.drawn_shape != takes:
            raise ValueError(f"one stage draws {before.drawn_shape}, the next takes {takes or 'nothing'}")
    known = {part.key for system, _ in stages for part in system.parts}
    handed: dict[str, object] = {}
    for i, (system, own) in enumerate(stages):
        options = {key: value for key, value in own.items() if key != "aug_level"} | handed
        following = stages[i + 1] if i + 1 < len(stages) else None
        level = following[1].get("aug_level", 0.0) if following else 0.0
        if level and truncate:
            options["levels"] = truncated(system.schedule, options.get("levels", 50), level)
        keys = [part.key for part in system.parts]
        given = {key: value for key, value in values.items() if key in keys or key not in known}
        drawn = _one_stage(system)(n, generator=generator, **{**given, **options})
        if following:
            end = options["levels"][-1].sigma if level and truncate else 0.0
            part = receiver(following[0])
            handed = {part.key: part.hand(drawn, level, end, generator)}
    return drawn


def _one_stage(system: Told) -> Callable[..., Tensor]:
    """How a stage draws: as all denoisers do, or in a way of its own."""
    return partial(draw, system) if isinstance(system, Diffusion) else system.draw


def receiver(system: Told) -> Part | None:
    """The part of a system whose value another one draws: the small image, or the embedding."""
    return next((part for part in system.parts if part.handed), None)


@checked
def drawn(
    stages: Sequence[tuple[Told, Callable[[Tensor], Mapping[str, object]]]],
    values: Mapping[str, Value],
    n: Count,
    seed: int = 0,
    batch: Count = 64,
    rank: Natural = 0,
    world: Count = 1,
    skip: Collection[int] = (),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Many images from a cascade, or from one system; image i depends on the seed, its values and i alone.

    Args:
        stages: Systems, the base first, each with a function from the indices of a batch to its options.
        values: Of the parts, n of each.
        n: Number of images.
        seed: Seed.
        batch: Images at a time.
        rank: This process.
        world: Number of processes; each draws every ``world``-th image.
        skip: Indices that are not drawn.

    Yields:
        (b,) indices and (b, C, H, W) images on the CPU, until this process has drawn its share.

    Raises:
        ValueError: unless 0 <= rank < world, when batch or n is no positive number, or a stage does not fit.
    """
    if not stages:
        raise ValueError("at least one picture of one stage is drawn, got none")
    if not 0 <= rank < world or batch < 1:
        raise ValueError(f"need 0 <= rank < world and batch >= 1, got rank {rank}, world {world}, batch {batch}")
    share = torch.tensor([i for i in range(rank, n, world) if i not in skip], dtype=torch.long)
    for mine in share.split(batch) if len(share) else ():  # an empty tensor splits into one part
        generators = sample_generators(seed, mine.tolist(), stages[0][0].device.type)
        given = {key: each(lambda tensor, mine=mine: tensor[mine], value) for key, value in values.items()}
        own = [(system, options(mine)) for system, options in stages]
        yield mine, cascade(own, len(mine), generators, **given).cpu()
