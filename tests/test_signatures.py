"""Every number and every tensor that a documented function takes: what its annotation leaves out is refused by name.

The walk is over all modules of the API reference. Each parameter gets every bad value alone, so that a refusal comes
from the door itself; where a check stands behind it, the other arguments of ``BESIDE`` are given too.
``pytest -s tests/test_signatures.py`` prints the counts.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import torch
from torch import Tensor

from minidiff import arguments, guidance
from minidiff.arguments import Finite
from minidiff.exact import GaussianDenoiser
from minidiff.schedule import linear_schedule

API = Path(__file__).parents[1] / "book" / "api"
NUMBERS = {int, float}
TYPES = ["a word", {"a": 1}, [["a"]], 1j, torch.ones(1, dtype=torch.complex64)]
RANGE = [math.nan, math.inf, -1]
SHAPES = [torch.ones(()), torch.ones(0), torch.ones(1, 2, 1, 2, 1, 2)]

WORLD, TABLE = GaussianDenoiser(torch.zeros(2), 1.0), linear_schedule(50)
BESIDE: dict[str, dict[str, Any]] = {  # arguments of a good call, where a check stands behind the door
    "minidiff.guidance.guidance_interval": {"guided": WORLD, "plain": WORLD, "low": 0.1, "high": 2.0},
    "minidiff.guidance.interval": {"guide": guidance.cfg(1.0), "low": 0.1, "high": 2.0},
    "minidiff.schedule.respaced": {"schedule": TABLE, "steps": 5},
    "minidiff.schedule.DiscreteSchedule": {"betas": torch.tensor([0.1])},
    "minidiff.training.plan.TrainingRecipe": {"steps": 1},
}

# What is not refused at the door, by the reason. The test fails for a name that no longer belongs here.
NOT_COVERED: dict[str, str] = {
    "inside of a network: made by a checked configuration, asked hundreds of times in a step by a checked system": """
        schedule.broadcast sampler.State
        models.clip.Towers.image models.clip.Towers.text models.clip.Towers.forward models.clip.Towers.critic
        models.clip.NoisedCLIP.image models.clip.NoisedCLIP.text models.latent_unet.SpatialTransformer
        models.latent_unet.SpatialTransformer.forward models.layers.timestep_embedding models.layers.attention
        models.layers.attend models.layers.GroupNorm.forward models.layers.check_input
        models.layers.Dropout.forward models.layers.pointwise models.layers.residual models.layers.ResBlock
        models.layers.ResBlock.forward models.layers.AttentionBlock models.layers.AttentionBlock.forward
        models.layers.AttentionPool models.layers.AttentionPool.forward models.layers.AttentionPool.features
        models.layers.Downsample models.layers.Downsample.forward models.layers.Upsample
        models.layers.Upsample.forward models.layers.Stage.forward models.open_clip.ReleasedCLIP.image
        models.open_clip.ReleasedCLIP.text models.open_clip.ReleasedCLIP.states models.open_clip.OpenCLIP.image
        models.open_clip.OpenCLIP.text models.open_clip.OpenCLIP.states models.open_clip.OpenCLIP.counted
        models.open_clip.ReleasedCLIP.counted models.language.Contextual.forward models.language.Table
        models.language.Table.forward models.efficient_unet.CrossAttention models.efficient_unet.CrossAttention.forward
        models.efficient_unet.Enlarge models.efficient_unet.Enlarge.forward models.unet.Encoder.embed_image_level
        models.unet.Encoder.entering models.text.TextTransformer models.text.TextTransformer.forward
        models.transformer.Transformer models.transformer.Transformer.forward models.unet.time_embedding
        models.unet.decoder models.unet.Encoder.halved models.unet.Encoder.embed_time models.unet.Encoder.encode
        models.vae.Encoder models.vae.Encoder.forward models.vae.Decoder models.vae.Decoder.forward
        models.vae.Autoencoder models.vae.Autoencoder.decode models.vae.Quantized
        models.vae.Autoencoder.forward models.vae.Autoencoder.moments models.vae.Autoencoder.law
        models.vae.Autoencoder.render models.transformer.quick_gelu
    """,
    "lessons call it with constants; answers that are graded go through course.forms, which has its own words": """
        course.claims.Claim course.claims.Claim.meets course.claims.claim course.comparing.normal
        course.comparing.uniform course.comparing.close course.comparing.expect course.comparing.apart
        course.exercises.Case course.exercises.Result course.exercises.case course.exercises.run_cases
        course.exercises.grade_answer course.forms.Form.constant course.forms.tensor course.forms.listed
        course.grading.grade.grade_paths course.notebook.Run course.widgets.frames
    """,
    "called by a command, whose options have ranges of their own": """
        bench.plain_attention bench.Diffusers.forward bench.Race bench.Ceiling bench.peak_memory doctor.python
        doctor.disk doctor.shared_memory doctor.cores doctor.memory training.cost.Cost training.cost.Cost.days
    """,
    "called by the training loop alone, with what it made itself": """
        training.loop.Loss.forward training.parallel.whole training.parallel.gathered training.parallel.everyones
        training.parallel.placed training.resume.State.resume training.resume.require_whole
        training.trainable.Trainable.loss training.trainable.Trainable.load_training_state
        training.trainable.Trainable.published_beside
    """,
    "checked behind the door, where it is known what else was given: in the tests of its module": """
        arguments.require_broadcast data.pack.pack schedule.DiscreteSchedule.levels
        systems.bipartite.Bipartite systems.draw.draw systems.draw.truncated
    """,
    "infinity is a limit that never binds": """
        guidance.guidance_interval guidance.interval systems.unclip_prior.PriorOptions training.plan.TrainingRecipe
    """,
    "reads published files, whose names and shapes are compared with the network's own": """
        pretrained.Layout pretrained.read_into stable.fill
    """,
}

Call = tuple[str, Callable, bool]  # its dotted name, itself, whether it is a method


def documented() -> list[str]:
    """Modules of the API reference."""
    pages = "".join(page.read_text(encoding="utf-8") for page in API.glob("*.md"))
    return sorted(set(re.findall(r"automodule:: (minidiff[\w.]*)", pages)))


def calls() -> Iterator[Call]:
    """Functions, constructors and public methods of the documented modules."""
    for module in documented():
        for name, thing in vars(importlib.import_module(module)).items():
            if name.startswith("_") or getattr(thing, "__module__", None) != module:
                continue
            if inspect.isfunction(thing):
                yield f"{module}.{name}", thing, False
            elif inspect.isclass(thing):
                if "__init__" in vars(thing):
                    yield f"{module}.{name}", thing, False
                for method, function in vars(thing).items():
                    if inspect.isfunction(function) and not method.startswith("_"):
                        yield f"{module}.{name}.{method}", function, True


def bases(hint: Any) -> set[type]:
    """Which of int, float and Tensor an annotation speaks of."""
    if hint in (int, float, Tensor):
        return {hint}
    if get_origin(hint) is Annotated:
        return bases(get_args(hint)[0])
    inner = () if get_origin(hint) in (Literal, Callable) else get_args(hint)
    if "Callable" in str(get_origin(hint)):
        return set()
    return set().union(*map(bases, inner)) if inner else set()


def parameters(call: Callable) -> Iterator[tuple[str, Any]]:
    """Names and annotations of what a function takes."""
    names = vars(sys.modules[call.__module__])
    for parameter in inspect.signature(call).parameters.values():
        if parameter.kind is not parameter.VAR_KEYWORD:
            yield parameter.name, arguments._promise(parameter.annotation, names)


def bad_values(hint: Any) -> Iterator[tuple[Any, bool]]:
    """Values that an annotation leaves out, and whether it accepts them on purpose for all that."""
    kinds, text = bases(hint), str(hint)
    for value in TYPES:
        yield value, ("str" in text and isinstance(value, str)) or ("dict" in text and isinstance(value, dict))
    if kinds <= NUMBERS:
        for value in RANGE:
            on_purpose = value == -1 and (hint in (int, Finite) or "a finite number" in text)
            yield value, on_purpose or ("Mapping" in text)
    else:
        for value in SHAPES:
            yield value, True
    if kinds == {Tensor}:
        yield torch.full((2, 2), math.nan), True  # a device would have to wait until its numbers are read


def refused(call: Callable, method: bool, name: str, value: Any, beside: dict) -> bool:
    """Whether a bad value is refused by a sentence that names the argument."""
    try:
        call(*([None] if method else []), **{**beside, name: value})
    except ValueError as error:
        return len(str(error)) > 10 and name in str(error)
    except Exception:
        return False
    return False


def walked() -> tuple[Counter, dict[str, list[str]]]:
    """How many bad values were tried, refused, accepted on purpose; and what is left of each call."""
    counts, left = Counter(), {}
    for where, call, method in calls():
        for name, hint in parameters(call):
            if not bases(hint):
                continue
            for value, on_purpose in bad_values(hint):
                counts["tried"] += 1
                if refused(call, method, name, value, BESIDE.get(where, {})):
                    counts["refused"] += 1
                elif on_purpose:
                    counts["accepted on purpose"] += 1
                else:
                    counts["not covered"] += 1
                    left.setdefault(where, []).append(f"{name}={arguments.described(value)}")
    return counts, left


def test_what_signatures_leave_out_is_refused():
    counts, left = walked()
    print(dict(counts))
    listed = [f"minidiff.{name}" for names in NOT_COVERED.values() for name in names.split()]
    assert sorted(set(left) - set(listed)) == [], {name: left[name] for name in set(left) - set(listed)}
    assert sorted(set(listed) - set(left)) == [], "these no longer need to be listed"
