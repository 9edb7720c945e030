"""What a signature promises is kept: each row is a call with one bad argument, refused by a sentence that names it."""

from __future__ import annotations

import dataclasses
import inspect
import math
import pickle
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from minidiff import (
    exact,
    guidance,
    likelihood,
    load,
    pictures,
    pixels,
    pmi,
    prediction,
    process,
    random,
    recipes,
    sampler,
    schedule,
    smc,
    store,
)
from minidiff.arguments import (
    Bins,
    Count,
    Device,
    Finite,
    Inside,
    Natural,
    NonNegative,
    Positive,
    Randomness,
    Share,
    checked,
    described,
    flags,
    floats,
    integers,
    kind,
    numbers,
    require_broadcast,
)
from minidiff.condition import Condition, column
from minidiff.metrics import captions, drawing, intervals, quality
from minidiff.models.clip import CLIPConfig
from minidiff.models.text import TextConfig
from minidiff.models.unet import UNetConfig
from minidiff.settings import to_plain
from minidiff.systems import sampling
from minidiff.systems.draw import draw
from minidiff.systems.parts import Known, LowRes
from minidiff.training import levels
from minidiff.training.plan import TrainingRecipe

NAN, INF = math.nan, math.inf
NO_NUMBER = ("3", None, [1.0], True, 1j, torch.ones(2), np.ones(2))
NO_WHOLE = (*NO_NUMBER, 1.5, NAN, INF, 1 << 63)
NO_TENSOR = ("x", None, 3, [1.0], np.ones(2), torch.ones(2).to(torch.complex64))
HELD = [  # an annotation, some values that it promises, and some that it does not
    (int, (3, -3, np.int64(3)), NO_WHOLE),
    (float, (3, 0.5, NAN, INF, np.float32(1)), NO_NUMBER),
    (Count, (1, 10), (*NO_WHOLE, 0, -1)),
    (Natural, (0, 1), (*NO_WHOLE, -1)),
    (Bins, (2, 256), (*NO_WHOLE, 1)),
    (Finite, (0, -1.5), (*NO_NUMBER, NAN, INF)),
    (Positive, (1, 0.5), (*NO_NUMBER, NAN, INF, 0, -1)),
    (NonNegative, (0, 0.5), (*NO_NUMBER, NAN, INF, -0.1)),
    (Share, (0, 1, 0.5), (*NO_NUMBER, NAN, INF, -0.1, 1.1)),
    (Inside, (0.5,), (*NO_NUMBER, NAN, 0, 1)),
    (bool, (True, False), (1, 0, None, "x")),
    (str, ("", "x"), (None, 3, b"x", ["x"])),
    (Device, ("cpu", torch.device("cpu")), (None, "x", "meta", 3)),
    (Any, (None, 3, "x"), ()),
    (torch.Tensor, (torch.ones(2), torch.ones(2).long(), torch.ones(2).bool()), NO_TENSOR),
    (floats(), (torch.ones(()), torch.ones(2, 3).half()), (*NO_TENSOR, torch.ones(2).long(), torch.ones(2).bool())),
    (integers(), (torch.ones(2).long(),), (*NO_TENSOR, torch.ones(2), torch.ones(2).bool())),
    (flags(), (torch.ones(2).bool(),), (*NO_TENSOR, torch.ones(2), torch.ones(2).long())),
    (numbers("B"), (torch.ones(2).bool(),), (*NO_TENSOR, torch.ones(()), torch.ones(2, 1))),
    (floats("B C *S"), (torch.ones(2, 3), torch.ones(2, 3, 4, 5)), (torch.ones(2), torch.ones(()))),
    (floats("B 3 S S"), (torch.ones(2, 3, 4, 4),), (torch.ones(2, 1, 4, 4), torch.ones(2, 3, 4, 5))),
    (floats("N") | None, (None, torch.ones(2)), (3, torch.ones(2, 2))),
    (int | str, (3, "x"), (1.5, None)),
    (Sequence[int], ((), [1], range(3)), (None, 3, "x", [1.5], [None], torch.ones(2))),
    (list[str], ([], ["x"]), (("x",), [3], "x")),
    (Iterable[int], ([1], range(3), iter(["not looked at"])), (None, 3, "x", ["x"], torch.ones(2))),
    (tuple[int, str], ((3, "x"), [3, "x"]), (None, (3,), (3, 3), "ab")),
    (tuple[Count, ...], ((), (1, 2)), ((0,), 1, "x")),
    (Mapping[str, torch.Tensor], ({}, {"x": torch.ones(2)}), (None, [], {"x": 3})),
    (Callable[[int, int], int], (lambda a, b: 0, lambda a, b, c=0: 0, lambda *a: 0, torch.nn.ReLU()),
     (None, 3, "x", lambda a: 0, lambda a, b, c: 0, int)),
    (Callable[..., int], (lambda: 0, print), (None, 3, int)),
    (schedule.NoiseLevel, (schedule.DATA,), (None, 3, "x", schedule.NoiseLevel, {"alpha": 1})),
    (Randomness, (None, torch.Generator(), [torch.Generator()]), (0, "x", (torch.Generator(),), [0])),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "good", "bad"), HELD, ids=lambda value: None)
def test_a_kind_holds_what_it_promises_and_nothing_else(annotation, good, bad):
    promised = kind(annotation)
    for value in good:
        assert promised.holds(value, {}), (annotation, value)
    for value in bad:
        assert not promised.holds(value, {}), (annotation, value)


@checked
def paired(x: floats("B *S"), y: floats("B *S"), mask: numbers("B/1 *S/1"), n: Count = 0, *more: Share, **rest) -> str:
    """A function of several tensors."""
    return "asked"


@checked
@dataclasses.dataclass
class Held:
    """A dataclass with a method."""

    rate: Positive

    def ask(self, n: Natural) -> int:
        return n

    @staticmethod
    def still(n: Natural) -> int:
        return n

    @classmethod
    def made(cls, rate: Positive):
        return cls(rate)


class Below(Held):
    """Its fields are those of the class above."""


def test_axes_of_the_same_name_have_the_same_size():
    x, one = torch.ones(2, 3, 4), torch.ones(1, 1, 4)
    assert (
        paired(x, x, x) == paired(x, x, one) == paired(x, y=x, mask=one) == paired(x, x, x, 1, 0.5, other=3) == "asked"
    )
    message = r"^paired: (y|mask) must be a tensor \(B( or 1)?, \*S( or 1)?\) of .*numbers"
    for y, mask in ((x[:1], x), (x[:, :2], x), (x[0], x), (x, x[:, :2]), (x, torch.ones(3, 3, 4)), (x, x[0])):
        with pytest.raises(ValueError, match=message):
            paired(x, y, mask)
    with pytest.raises(ValueError, match=r"where B = 2, \*S = \(3, 4\), got a tensor \(1, 3, 4\) of float32"):
        paired(x, x[:1], x)


def test_a_default_is_taken_and_everything_given_is_looked_at():
    x = torch.ones(2, 3)
    for arguments, options in (
        ((x, x, x, 0), {}),
        ((x, x, x, 1, 0.5, 2), {}),
        ((x, x), {"mask": 3}),
        ((x, x, x), {"n": "1"}),
    ):
        with pytest.raises(ValueError, match=r"^paired: "):
            paired(*arguments, **options)
    with pytest.raises(TypeError, match="missing"):
        paired(x)


def test_methods_fields_and_inherited_fields():
    assert (Held(1).ask(0), Held.still(3), Held.made(2.0).rate, Below(1).rate) == (0, 3, 2.0, 1)
    refused = [lambda: Held(0), lambda: Held(rate=NAN), lambda: Below(-1), lambda: dataclasses.replace(Held(1), rate=0)]
    for call in (*refused, lambda: Held(1).ask(-1), lambda: Held.still(1.5), lambda: Held.made("x")):
        with pytest.raises(ValueError, match=r"(rate|n) must be a"):
            call()


def test_an_annotation_that_only_type_checkers_can_read_promises_nothing():
    def ask(x):
        return x

    ask.__annotations__ = {"x": "Unknown | None"}
    assert checked(ask)(3) == 3


def test_what_a_function_looks_like_from_outside_stays():
    assert paired.__doc__ == "A function of several tensors." and paired.__name__ == "paired"
    assert paired.__wrapped__.__code__.co_argcount == 4


def test_what_is_checked_is_pickled_compiled_and_differentiated():
    level, x = TABLE.level(3), torch.ones(2, 3, requires_grad=True)
    assert pickle.loads(pickle.dumps(level)) == level and pickle.loads(pickle.dumps(process.diffuse)) is process.diffuse
    assert list(inspect.signature(process.diffuse).parameters) == ["x0", "level", "eps"]
    assert inspect.signature(process.diffuse).parameters["x0"].annotation == "floats('*S')"
    process.diffuse(x, level, x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, level.alpha + level.sigma))
    compiled = torch.compile(lambda x: process.diffuse(x, level, x), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), process.diffuse(x, level, x))


def test_values_in_messages_are_short():
    shown = {3: "3", "x" * 99: f"{repr('x' * 99)[:57]}...", None: "None", int: "the class int"}
    assert {value: described(value) for value in shown} == shown
    assert (
        described([1, "a", [2]]) == "[1, 'a', a list]" and described((1,)) == "(1)" and described([0] * 9) == "a list"
    )
    assert described(torch.ones(2, 1).long()) == "a tensor (2, 1) of int64"
    assert (
        described(torch.ones(2, device="meta")).endswith("on meta")
        and described(object()) == "an object"
        and described(load) == "the function load"
    )


def test_shapes_that_broadcast():
    require_broadcast(torch.ones(2, 1), 3.0, torch.ones(4))
    with pytest.raises(ValueError, match=re.escape("got (2, 3) and (4,)")):
        require_broadcast(torch.ones(2, 3), torch.ones(4))


# The package's own doors: what once was accepted in silence, or was refused by a traceback.

TABLE = schedule.linear_schedule(50)
LEVEL, LOWER, PAIR = TABLE.level(20), TABLE.level(10), TABLE.level(torch.tensor([3, 7]))
THREE, CHAIN = TABLE.level(torch.tensor([1, 2, 3])), TABLE.levels(4)
X = torch.zeros(2, 1, 8, 8)
BROKEN = torch.full_like(X, NAN)
FLAT = exact.GaussianDenoiser(torch.zeros(1, 8, 8), 1.0)
TWO = exact.GaussianMixtureDenoiser(torch.stack([X[0] - 1, X[0] + 1]), 0.1)
TOLD = prediction.Prediction(X, LEVEL, X, "eps")
FEATURES = torch.arange(40.0).reshape(20, 2) ** 2
SMALL = {"size": 8, "channels": 8, "channel_mult": (1, 2), "groups": 4}
TOWERS = {"size": 8, "patch": 4, "embedding": 8, "width": 8, "layers": 1, "heads": 2, "vocabulary": 9, "context": 4,
          "text_width": 8, "text_layers": 1, "text_heads": 2}  # fmt: skip

DOORS = {
    "schedule": [
        lambda: schedule.NoiseLevel(NAN, 0.1, 3),
        lambda: schedule.NoiseLevel(0.5, -1, 3),
        lambda: schedule.NoiseLevel(0.5, 0.5, None),
        lambda: schedule.NoiseLevel(torch.tensor([NAN]), torch.ones(1), torch.ones(1)),
        lambda: schedule.NoiseLevel(torch.ones(2), torch.ones(3), torch.ones(2)),
        lambda: schedule.NoiseLevel(torch.ones(2, 1), torch.ones(2, 1), torch.ones(2, 1)),
        lambda: schedule.linear_schedule("9"),
        lambda: schedule.linear_schedule(9, NAN, 0.1),
        lambda: schedule.clipped_cosine_schedule(9, -1.0),
        lambda: schedule.cosine_schedule(NAN),
        lambda: schedule.cosine_schedule(-1),
        lambda: schedule.cosine_schedule(1e6),
        lambda: schedule.vp_schedule(NAN),
        lambda: schedule.vp_schedule(-5, -1),
        lambda: schedule.vp_schedule(5, 1),
        lambda: schedule.edm_schedule(-1),
        lambda: schedule.edm_schedule(2, 1),
        lambda: schedule.edm_schedule(rho=0),
        lambda: schedule.respaced(None, 5),
        lambda: LEVEL.repeat(0),
        lambda: THREE.like(X),
        lambda: THREE.times(X),
        lambda: schedule.broadcast(torch.ones(3), X),
        lambda: random.randn((-1,)),
        lambda: random.randint(0, 2),
        lambda: random.sample_generators(0, [1], "nosuch"),
    ],
    "process": [
        lambda: prediction.Prediction(X, 20, X, "eps"),
        lambda: prediction.Prediction(X.long(), LEVEL, X.long(), "eps"),
        lambda: prediction.Prediction(X, LEVEL, X, "eps", fraction=X[:1]),
        lambda: process.diffuse(X, 20, X),
        lambda: process.diffuse(X, LEVEL, X[:1]),
        lambda: process.diffuse(X, THREE, X),
        lambda: process.diffuse(X.long(), LEVEL, X),
        lambda: process.diffuse(X.numpy(), LEVEL, X),
        lambda: process.renoise(X, PAIR, THREE, X),
        lambda: process.posterior_mean(X, X, THREE, THREE),
        lambda: process.start_std(PAIR),
        lambda: process.beta_tilde_floor([]),
        lambda: process.as_known(X + 0.5),
        lambda: process.as_known([1, 0]),
        lambda: process.paste(X, LEVEL, X, X, X),
        lambda: process.reverse_log_variance(TOLD, LEVEL, LOWER, "beta", NAN),
        lambda: pixels.to_uint8(BROKEN),
        lambda: pixels.to_uint8(X.long()),
        lambda: pixels.quantize(X, 1),
        lambda: pixels.from_uint8(X),
        lambda: pictures.grid(X[:0]),
        lambda: pictures.grid(X[0]),
        lambda: pictures.grid(X, 0),
        lambda: Condition(vector=torch.zeros(2, 3), image=X[:1]),
        lambda: Condition() + 3,
        lambda: column({"image": X, "label": torch.zeros(3)}, "image", (1, 8, 8)),
        lambda: column({"image": X.byte()}, "image", (1, 8, 8)),
        lambda: column({"image": X[:0]}, "image", (1, 8, 8)),
        lambda: column({"image": X}, "image", (3, 8, 8)),
    ],
    "guidance": [
        lambda: guidance.cfg("3"),
        lambda: guidance.cfg(None),
        lambda: guidance.cfg(10**30),
        lambda: guidance.interval(guidance.cfg(2.0), 3, 1),
        lambda: guidance.auto(None, 2.0),
        lambda: guidance.clip(None, "a", 1.0),
        lambda: guidance.grad_log_prob(TWO.classifier(1), X.long(), LEVEL),
        lambda: guidance.grad_log_prob(lambda x: x, X, LEVEL),
        lambda: guidance.replace_known(FLAT, X[0], X),
        lambda: guidance.replace_known(FLAT, X, None),
        lambda: guidance.replace_known(FLAT, X, torch.ones(3, 1, 8, 8)),
        lambda: sampler.sample(sampler.ddim, FLAT, CHAIN, X),
        lambda: sampler.sample("ddim", FLAT, CHAIN, X),
        lambda: sampler.sample(sampler.ddim(), None, CHAIN, X),
        lambda: sampler.sample(sampler.ddim(), FLAT, 5, X),
        lambda: sampler.sample(sampler.ddim(), FLAT, [1, 0], X),
        lambda: sampler.sample(sampler.ddim(), FLAT, CHAIN, BROKEN),
        lambda: sampler.sample(sampler.ddim(), FLAT, CHAIN, X, 0),
        lambda: sampler.ddim("0.5"),
        lambda: sampler.replacing(sampler.ddim(), X, X[0]),
        lambda: next(smc.corrected(FLAT, FLAT, NAN, CHAIN, X)),
        lambda: next(smc.filtered_replacement(FLAT, X, X, CHAIN, torch.cat([X, X]), particles=4)),
        lambda: smc.path_log_weight(X, X, torch.ones(3), 2.0),
        lambda: smc.path_log_weight(X, X[:1], 0.1, 2.0),
        lambda: smc.systematic_resample([[0.0]]),
    ],
    "likelihood": [
        lambda: likelihood.mean_flat(torch.ones(3)),
        lambda: likelihood.gaussian_kl(X, X, X[:, :, :3], X),
        lambda: likelihood.gaussian_kl("x", 0.0, 0.0, 0.0),
        lambda: likelihood.discretized_gaussian_log_likelihood(X, X, 0.0, 1),
        lambda: likelihood.discretized_gaussian_log_likelihood(X, X, NAN),
        lambda: likelihood.vlb_terms(FLAT, BROKEN, CHAIN),
        lambda: likelihood.vlb_terms(FLAT, X, CHAIN, bins=1),
        lambda: pmi.pointwise_mutual_information(torch.tensor([[INF, 1.0]])),
        lambda: pmi.mutual_information(torch.tensor([[NAN, 1.0]])),
        lambda: pmi.info_nce_limit(torch.full((2, 2), NAN), torch.ones(2, 2)),
        lambda: pmi.residual(torch.ones(2, 2), rows=torch.tensor([INF, 1.0])),
        lambda: pmi.info_nce([[1.0]]),
    ],
    "exact": [
        lambda: exact.GaussianDenoiser(torch.tensor([NAN]), 1.0),
        lambda: exact.GaussianDenoiser(torch.zeros(2), NAN),
        lambda: exact.GaussianDenoiser(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])),
        lambda: exact.GaussianMixtureDenoiser(torch.zeros(0, 2), 1.0),
        lambda: exact.GaussianMixtureDenoiser(torch.full((2, 2), NAN), 1.0),
        lambda: exact.GaussianMixtureDenoiser(torch.zeros(2, 2), NAN),
        lambda: exact.GaussianMixtureDenoiser(torch.zeros(2, 2), 1.0, torch.tensor([NAN, 1.0])),
        lambda: exact.GaussianMixtureDenoiser("x", 1.0),
        lambda: exact.EmpiricalDenoiser(X, bandwidth=-1),
        lambda: exact.EmpiricalDenoiser(X, bandwidth=NAN),
        lambda: TWO(X, 20),
        lambda: TWO(X, LEVEL, 1.5),
        lambda: TWO(X, LEVEL, torch.ones(2)),
        lambda: TWO.sample(-1),
        lambda: TWO.sample(2.5),
        lambda: TWO.classifier(torch.tensor([NAN])),
    ],
    "metrics": [
        lambda: quality.frechet_distance(FEATURES.numpy(), FEATURES),
        lambda: quality.precision(FEATURES[:0], FEATURES),
        lambda: quality.hits(FEATURES.log_softmax(1), torch.full((20,), 7)),
        lambda: quality.kernel_distance(FEATURES, FEATURES, degree=0),
        lambda: captions.place_of_name(FEATURES * NAN, FEATURES, ["a"] * 20),
        lambda: captions.place_of_name(FEATURES, FEATURES, ["a"]),
        lambda: captions.clip_score(FEATURES, FEATURES * NAN),
        lambda: captions.diversity(torch.full((2, 2, 3), NAN)),
        lambda: intervals.proportion(torch.tensor([NAN, 1.0])),
        lambda: intervals.proportion(torch.tensor([2, 1])),
        lambda: intervals.share_difference(torch.tensor([0.5]), torch.tensor([1.0])),
        lambda: intervals.around(NAN, torch.zeros(30)),
        lambda: intervals.around(1.0, torch.full((30,), NAN)),
        lambda: intervals.subset([0, 1], 1),
    ],
    "training": [
        lambda: levels.Uniform().draw(TABLE, -1),
        lambda: levels.Uniform().draw(None, 2),
        lambda: levels.Tilted("x"),
        lambda: levels.Importance(2.5),
        lambda: levels.Only(None),
        lambda: levels.Only(-1).draw(TABLE, "2"),
        lambda: TrainingRecipe("3"),
        lambda: TrainingRecipe(3, lr=None),
        lambda: TrainingRecipe(3, ema=0.9),
        lambda: recipes.ScheduleRecipe(T=0),
        lambda: recipes.load_recipe(None),
        lambda: store.find(None),
        lambda: store.find("digits", "nosuch"),
        lambda: UNetConfig(**SMALL | {"channels": "8"}),
        lambda: UNetConfig(**SMALL | {"channel_mult": (0,)}),
        lambda: UNetConfig(**SMALL | {"channel_mult": (1e30,)}),
        lambda: UNetConfig(**SMALL, dropout=NAN),
        lambda: UNetConfig(**SMALL, heads=0),
        lambda: UNetConfig(**SMALL, heads=3, head_channels=8),
        lambda: UNetConfig(**SMALL, classes=0),
        lambda: TextConfig(9, 4, 8, 1, 0),
        lambda: CLIPConfig(**TOWERS | {"text_layers": 0}),
        lambda: CLIPConfig(**TOWERS, pixel_mean=()),
        lambda: CLIPConfig(**TOWERS, pixel_std=(0.0, 1.0, 1.0)),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("door", "row"), [(door, row) for door, calls in DOORS.items() for row in range(len(calls))])
def test_what_a_door_does_not_take(door, row):
    with pytest.raises(ValueError) as refused:
        DOORS[door][row]()
    assert type(refused.value) is ValueError and 10 < len(str(refused.value)) < 400, refused.value


SYSTEMS = [
    lambda: load("glide").part("caption").answer({"caption": [""]}, 1, (3, 16, 16)),
    lambda: draw(None, 1),
    lambda: draw(load("digits-classifier"), 1, levels=2),
    lambda: draw(load("digits"), 1, guide=guidance.cfg),
    lambda: draw(load("digits"), 1, guide="cfg"),
    lambda: draw(load("digits"), 1, threshold=0.5),
    lambda: draw(load("digits"), 1, temperature="1"),
    lambda: draw(load("digits"), 1, generator=0),
    lambda: draw(load("digits"), 2, x_T=torch.zeros(2, 1, 8, 8), generator=[torch.Generator()]),
    lambda: draw(load("digits"), 2, x_T=[1]),
    lambda: load("digits").condition(-1),
    lambda: load("digits")(X, THREE),
    lambda: load("digits")(X.double(), LEVEL),
    lambda: load("digits").loss({"image": X, "label": torch.zeros(3).long()}),
    lambda: load("digits").loss({"image": X.byte(), "label": torch.zeros(2).long()}),
    lambda: load("digits-classifier").log_prob_label(X, THREE),
    lambda: load("digits-classifier").log_prob_label(X.double(), LEVEL),
    lambda: load("digits-classifier").classifier(1)(None, LEVEL),
    lambda: load("digits-classifier").loss({"image": X, "label": torch.zeros(3).long()}),
    lambda: draw(load("digits"), 1, levels="0"),
    lambda: sampling.Sampling("x"),
    lambda: drawing.Drawing([load("digits")], batch=0),
    lambda: LowRes(2, 1).read(BROKEN[..., :4, :4], (1, 8, 8)),
    lambda: Known(1).read((BROKEN, X + 1), (1, 8, 8)),
]


@pytest.mark.parametrize("row", range(len(SYSTEMS)))
def test_what_a_system_does_not_take(row):
    with pytest.raises(ValueError) as refused:
        SYSTEMS[row]()
    assert type(refused.value) is ValueError and 10 < len(str(refused.value)) < 400, refused.value


def test_what_is_not_known_of_a_picture_may_be_anything():
    image, mask = torch.full((1, 1, 8, 8), NAN), torch.zeros(1, 1, 8, 8)
    image[..., :4], mask[..., :4] = 0.5, 1
    seen = Known(1).encode(torch.nn.Module(), Known(1).read((image, mask), (1, 8, 8))).image
    assert torch.equal(seen[:, :1], 0.5 * mask) and torch.equal(seen[:, 1:], mask)


NEVER = [NAN, INF, -1, -0.5, 10**30, {"a": 1}, [1, "x"], [None]]  # no number of a recipe may be these
MAY_BE = {"data.seed": (-1,), "training.lr": (10**30,), "training.final_lr": (10**30,), "training.clip": (INF, 10**30),
          "training.weight_decay": (10**30,), "network.text.embedding_std": (10**30,), "data.path": (),
          "network.pixel_mean": (-1, -0.5, 10**30), "network.pixel_std": (10**30,)}  # fmt: skip


@pytest.mark.parametrize("name", ["digits", "glide", "shapes8-16", "digits-classifier", "scenes-clip", "glide-inpaint"])
def test_every_field_of_a_recipe_has_a_range(name):
    plain = recipes.load_recipe(name).to_plain()

    def fields(values, before=()):
        for key, value in values.items():
            yield (*before, key)
            yield from fields(value, (*before, key)) if isinstance(value, dict) else ()

    def changed(values, path, value):
        return values | {path[0]: changed(values[path[0]], path[1:], value) if path[1:] else value}

    assert recipes.Recipe.from_plain(plain).to_plain() == to_plain(plain)
    for path in fields(plain):
        field = ".".join(path[2:] if path[0] == "before" else path)  # of a stage, or of the recipe itself
        for value in NEVER:
            if not any(value is one or value == one for one in MAY_BE.get(field, ())):
                with pytest.raises(ValueError):
                    recipes.Recipe.from_plain(changed(plain, path, value)).build(empty=True)
                    pytest.fail(f"{'.'.join(path)} = {value!r}")
