"""A small lesson's checks, for the tests of check() and of grading: functions, callbacks, a value, a mixture."""

from __future__ import annotations

import torch

from minidiff.course.comparing import expect, normal
from minidiff.course.exercises import case, exercise
from minidiff.course.forms import call, number, tensor
from minidiff.exact import GaussianMixtureDenoiser
from minidiff.schedule import linear_schedule

LESSON = "99_toy"
LEVEL = linear_schedule().level(300)

exercise(
    "ex-99-marginal",
    name="marginal",
    lesson=LESSON,
    form=call(tensor("x0"), lambda rng: {"x0": normal(rng, 3, 2), "level": LEVEL, "eps": normal(rng, 3, 2)}),
)
exercise("ex-99-scaled", name="scaled", lesson=LESSON)
exercise("ex-99-gradient", name="gradient", lesson=LESSON)
exercise("ex-99-number", name="number", lesson=LESSON, form=number())


@case("ex-99-marginal", "mean")
def _(answer, rng):
    x0 = normal(rng, 3, 2)
    expect(answer(x0, LEVEL, torch.zeros_like(x0)), LEVEL.alpha * x0, "without noise, alpha x_0 is left")


@case("ex-99-marginal", "deviation", points=2)
def _(answer, rng):
    eps = normal(rng, 3, 2)
    variance = "you used the variance where the standard deviation belongs"
    got = answer(torch.zeros_like(eps), LEVEL, eps)
    expect(got, LEVEL.sigma * eps, "without data, sigma eps is left", {variance: LEVEL.sigma**2 * eps})


@case("ex-99-scaled", "of-a-function")
def _(answer):
    assert torch.equal(answer(lambda x: x + 1, 3.0)(torch.ones(2)), torch.full((2,), 6.0)), "three times f"


@case("ex-99-gradient", "of-a-mixture")
def _(answer):
    world = GaussianMixtureDenoiser(torch.tensor([[-1.0], [1.0]]), 0.1)
    x = torch.tensor([[0.3], [-0.2]], dtype=torch.float64)
    assert torch.allclose(answer(world, x, LEVEL), world(x, LEVEL).score), "the gradient of log q is the score"


@case("ex-99-number", "value")
def _(answer):
    assert abs(answer - 42) < 1e-9, "the answer is 42"
