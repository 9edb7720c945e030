"""Checks of the build page on digits: what is trained is judged by how far it is from the ideal."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Generator, Tensor

from minidiff.course.comparing import expect, exploding_pair, normal, uniform
from minidiff.course.contest import BEST, GRADING, NEXT, lead, levels, raced, rival
from minidiff.course.exercises import case, exercise
from minidiff.course.forms import call, number, prediction, taking, tensor
from minidiff.course.outcomes import Mistake
from minidiff.data.digits import digits
from minidiff.exact import GaussianMixtureDenoiser
from minidiff.guidance import classifier_free
from minidiff.metrics import frechet_distance
from minidiff.metrics.embedders import embedder
from minidiff.prediction import Prediction
from minidiff.sampler import heun, sample
from minidiff.schedule import DATA, NoiseLevel

LESSON = "build_digits"


def _at(angle: float) -> NoiseLevel:
    """The variance-preserving level of an angle."""
    return NoiseLevel(math.cos(angle), math.sin(angle), angle)


# -- ex-build-loss ----------------------------------------------------------------------------------------------------


def _shown(said: Tensor, seen: list) -> Callable:
    """A network that says what it always says, and writes down what it is shown."""

    def network(x, level, label):
        seen.append((x, level, label))
        return said.to(x)

    return taking("x level label", network)


def _step(rng: Generator, level: NoiseLevel, *shape: int) -> tuple[dict, Tensor, list]:
    """Arguments of a loss, what the network will say, and the list of what it is shown."""
    said, seen = normal(rng, *shape), []
    label = torch.randint(3, shape[:1], generator=rng)
    given = {"x0": normal(rng, *shape), "label": label, "level": level, "eps": normal(rng, *shape)}
    return {"network": _shown(said, seen)} | given, said, seen


exercise(
    "ex-build-loss",
    name="loss",
    lesson=LESSON,
    form=call(number(), lambda rng: _step(rng, _at(0.7), 3, 1, 2, 2)[0]),
)


def _truths(given: dict) -> dict[str, Tensor]:
    alpha, sigma = given["level"].like(given["x0"])
    return {"v": alpha * given["eps"] - sigma * given["x0"], "x": alpha * given["x0"] + sigma * given["eps"]}


@case("ex-build-loss", "shown-the-noisy-picture")
def _(answer, rng):
    given, _, seen = _step(rng, _at(uniform(rng, 0.5, 0.6)), 4, 1, 2, 2)
    answer(**given)
    assert seen, "the network was not asked"
    (x, level, label), (alpha, sigma) = seen[-1], given["level"].like(given["x0"])
    wrong = {
        "the network was shown the clean picture": given["x0"],
        "the noise was shown without a picture in it": given["eps"],
        "alpha and sigma are swapped": sigma * given["x0"] + alpha * given["eps"],
        "the noise was added in full: it is sigma eps": alpha * given["x0"] + given["eps"],
        "the picture was not made fainter: it is alpha x_0": given["x0"] + sigma * given["eps"],
        "you took variances for standard deviations": alpha**2 * given["x0"] + sigma**2 * given["eps"],
    }
    expect(x, _truths(given)["x"], "the network must be shown x_t = alpha x_0 + sigma eps", wrong)
    expect(label, given["label"], "the labels must reach the network as they are")
    expect(level.sigma, given["level"].sigma, "the network must be told the level of what it is shown")


def _worth(answer, given: dict, said: Tensor, say: str) -> None:
    v = _truths(given)["v"]
    alpha, sigma = given["level"].like(given["x0"])
    off = lambda target: (said - target).square().mean()
    wrong = {
        "the network says v; you compared with eps": off(given["eps"]),
        "the network says v; you compared with x_0": off(given["x0"]),
        "the sign of v is turned round: it is alpha eps - sigma x_0": off(-v),
        "v is alpha eps - sigma x_0; you added them": off(alpha * given["eps"] + sigma * given["x0"]),
        "v is alpha eps - sigma x_0; you have alpha and sigma swapped": off(sigma * given["eps"] - alpha * given["x0"]),
        "you added up the squares; their mean was asked for": (said - v).square().sum(),
        "you added up the pixels of a picture; the mean of all was asked for": (said - v).square().sum() / len(v),
        "this is the root of the mean; the mean of the squares was asked for": off(v).sqrt(),
        "these are absolute values; squares were asked for": (said - v).abs().mean(),
        "this is half of it": off(v) / 2,
    }
    expect(answer(**given), off(v), say, wrong)


@case("ex-build-loss", "mean-of-squares", points=2)
def _(answer, rng):
    given, said, _ = _step(rng, _at(uniform(rng, 0.5, 0.6)), 4, 1, 2, 2)
    _worth(answer, given, said, "the mean over pixels and pictures is {right}, not {got}")


@case("ex-build-loss", "a-level-for-each-picture")
def _(answer, rng):
    for shape in ((5, 1, 2, 2), (1, 3, 1, 2)):
        angle = uniform(rng, 0.2, 1.4, shape[0])
        given, said, _ = _step(rng, NoiseLevel(angle.cos(), angle.sin(), angle), *shape)
        _worth(answer, given, said, f"with a level for each of {shape[0]} pictures it is {{right}}, not {{got}}")


@case("ex-build-loss", "variance-exploding")
def _(answer, rng):
    level = exploding_pair(rng)[0]
    given, said, _ = _step(rng, level, 3, 2, 1, 2)
    expect(
        answer(**given),
        (said - _truths(given)["v"]).square().mean(),
        f"alpha and sigma come from the level: at alpha = 1, sigma = {level.sigma:.2f} it is {{right}}, not {{got}}",
    )


# -- ex-build-train and ex-build-classifier ---------------------------------------------------------------------------

STEPS = 250
ANGLES = {"near clean data": 0.25, "half-way": 0.8, "near pure noise": 1.3}
WITHIN = 0.1  # of the data's variance; the reference is off by 0.03 at most, one that ignores labels by 0.2 half-way
KL_WITHIN = 0.125  # nats; the reference is off by 0.02 at most, a classifier of clean pictures by 0.5 half-way


def _world(rng: Generator, shape=(1, 2, 2), classes: int = 2) -> GaussianMixtureDenoiser:
    """Classes of different shares, each one Gaussian, the first two well apart."""
    apart = normal(rng, *shape)
    means = normal(rng, classes, *shape)
    means[0], means[1] = 1.2 * apart / apart.norm(), -1.2 * apart / apart.norm()
    return GaussianMixtureDenoiser(means, 0.15, [3.0, *[1.0] * (classes - 1)])


def _drawn(world: GaussianMixtureDenoiser, rng: Generator, n: int) -> tuple[Tensor, Tensor]:
    labels = torch.multinomial(world.weights, n, replacement=True, generator=rng)
    noise = normal(rng, n, *world.shape)
    return world.means[labels] + world.variance.sqrt() * noise, labels


def _data(rng: Generator, world: GaussianMixtureDenoiser) -> dict:
    images, labels = _drawn(world, rng, 1500)
    return {"images": images.float(), "labels": labels}


def _noisy(world: GaussianMixtureDenoiser, rng: Generator, level: NoiseLevel) -> tuple[Tensor, Tensor, float]:
    """Noisy pictures in float32, their labels, and the variance of the clean ones."""
    x0, labels = _drawn(world, rng, 400)
    x = level.alpha * x0 + level.sigma * normal(rng, *x0.shape)
    return x.float(), labels, (x0 - x0.mean(0)).square().mean().item()


exercise(
    "ex-build-train",
    name="train",
    lesson=LESSON,
    form=call(
        call(
            prediction("x"),
            lambda rng: {"x": normal(rng, 3, 1, 2, 2).float(), "level": _at(0.7), "label": torch.tensor([0, 1, -1])},
        ),
        lambda rng: _data(rng, _world(rng)) | {"steps": 2, "seed": 3},
    ),
)


def _same_seed(answer, rng: Generator, ask: Callable) -> None:
    """Short trainings: one seed gives one result, and another one another."""
    data = _data(rng, _world(rng))
    first, again, other = (ask(answer(**data, steps=15, seed=seed)) for seed in (5, 5, 6))
    if not torch.equal(first, again):
        raise Mistake("the same seed trained two different networks: everything that is drawn must come from the seed")
    if torch.equal(first, other):
        raise Mistake("another seed trains the very same network: the seed makes no difference")


@case("ex-build-train", "the-seed-decides", points=0)
def _(answer, rng):
    x = normal(rng, 4, 1, 2, 2).float()
    _same_seed(answer, rng, lambda model: model(x, _at(0.7), torch.zeros(4).long()).x0)


def _off(model, world: GaussianMixtureDenoiser, rng: Generator, told: bool, where: dict[str, float]) -> None:
    """What the model says of x_0 against the ideal denoiser, as a share of the variance of the data."""
    for name, angle in where.items():
        x, labels, variance = _noisy(world, rng, _at(angle))
        asked = labels if told else torch.full_like(labels, -1)
        right = world(x.double(), _at(angle), labels if told else None).x0
        got = model(x, _at(angle), asked).x0.double()
        off = (got - right).square().mean().item() / variance
        how = "with the label" if told else "asked for nothing, was a label ever dropped?"
        say = f"{name}, {how}: your model is off by {off:.2f} of the variance of the data; at most {WITHIN} is allowed"
        if not told and off > WITHIN:
            for c in range(world.n_classes):
                if (got - world(x.double(), _at(angle), torch.full_like(labels, c)).x0).square().mean() < off / 4:
                    raise Mistake(f"asked for nothing, your model draws class {c}")
        assert off <= WITHIN, say


@case("ex-build-train", "with-a-label", points=2)
def _(answer, rng):
    world = _world(rng)
    model = answer(**_data(rng, world), steps=STEPS, seed=int(uniform(rng, 0, 1000)))
    _off(model, world, rng, True, ANGLES)


@case("ex-build-train", "without-a-label", points=2)
def _(answer, rng):
    world = _world(rng)
    model = answer(**_data(rng, world), steps=STEPS, seed=int(uniform(rng, 0, 1000)))
    _off(model, world, rng, False, ANGLES)


@case("ex-build-train", "three-classes")
def _(answer, rng):
    world = _world(rng, (2, 1, 2), 3)
    model = answer(**_data(rng, world), steps=STEPS, seed=1)
    _off(model, world, rng, True, {"half-way": 0.8})


exercise(
    "ex-build-classifier",
    name="train_classifier",
    lesson=LESSON,
    form=call(
        call(
            tensor(lambda given: (len(given["x"]), 2)),
            lambda rng: {"x": normal(rng, 3, 1, 2, 2).float(), "level": _at(0.7)},
        ),
        lambda rng: _data(rng, _world(rng)) | {"steps": 2, "seed": 3},
    ),
)


@case("ex-build-classifier", "the-seed-decides", points=0)
def _(answer, rng):
    x = normal(rng, 4, 1, 2, 2).float()
    _same_seed(answer, rng, lambda log_prob: log_prob(x, _at(0.7)))


@case("ex-build-classifier", "logarithms-of-probabilities", points=0)
def _(answer, rng):
    world = _world(rng)
    got = answer(**_data(rng, world), steps=20, seed=2)(_noisy(world, rng, _at(0.5))[0], _at(0.5))
    total = got.exp().sum(1)
    # the learner's network is float32, and ten exponentials add up
    if bool((got >= 0).all()) and torch.allclose(got.sum(1), torch.ones(len(got)).double(), atol=1e-3):
        raise Mistake("these are the probabilities; their logarithms were asked for")
    # the learner's network is float32, and ten exponentials add up
    expect(total, torch.ones_like(total), "the exponentials of a row must add up to one", rtol=0, atol=1e-3)


@case("ex-build-classifier", "as-sure-as-it-may-be", points=3)
def _(answer, rng):
    world = _world(rng)
    log_prob = answer(**_data(rng, world), steps=STEPS, seed=int(uniform(rng, 0, 1000)))
    for name, angle in ANGLES.items():
        x = _noisy(world, rng, _at(angle))[0]
        right = world.log_prob_label(x.double(), _at(angle))
        off = (right.exp() * (right - log_prob(x, _at(angle)))).sum(1).mean().item()
        assert off <= KL_WITHIN, (
            f"{name} your classifier is {off:.2f} nats from the true p(c|x); at most {KL_WITHIN} is allowed"
        )


# -- ex-build-draw ----------------------------------------------------------------------------------------------------

LEVELS, NEAR, MOST_CALLS = 60, 1 / 10, 4


def _small_world(rng: Generator) -> GaussianMixtureDenoiser:
    """Two blobs for each of two classes, so small that no threshold at one touches what is guided."""
    return GaussianMixtureDenoiser(0.2 * normal(rng, 4, 1, 2, 2).clamp(-1.5, 1.5), 0.01, labels=[0, 1, 0, 1])


@cache
def _chain(n: int) -> list[NoiseLevel]:
    return [*(_at(1.5 * (1 - k / n)) for k in range(n)), DATA]


def _flow(world, labels: Tensor, scale: float, noise: Tensor) -> Tensor:
    guided = classifier_free(world, labels, torch.full_like(labels, -1), scale)
    return sample(heun(), guided, _chain(120), noise)


def _told(rng: Generator, n: int = 24) -> tuple[Tensor, Tensor]:
    return torch.randint(2, (n,), generator=rng), normal(rng, n, 1, 2, 2)


def _sample_call(rng: Generator) -> dict:
    labels, noise = _told(rng, 3)
    return {"model": _small_world(rng), "labels": labels, "scale": 2.0, "levels": _chain(4), "noise": noise}


exercise("ex-build-draw", name="draw", lesson=LESSON, form=call(tensor("noise"), _sample_call))


def _away(got: Tensor, end: Tensor) -> float:
    """Root mean square distance, in units of the spread of where the flow ends."""
    return ((got - end).square().mean().sqrt() / (end - end.mean(0)).square().mean().sqrt()).item()


def _lands(answer, rng: Generator, scale: float, slips: Callable[[Tensor], dict[str, tuple]], say: str) -> None:
    world, (labels, noise) = _small_world(rng), _told(rng)
    end = _flow(world, labels, scale, noise)
    got = answer(model=world, labels=labels, scale=scale, levels=_chain(LEVELS), noise=noise)
    if not (away := _away(got, end)) <= NEAR:
        for diagnosis, (other_labels, other_scale) in slips(labels).items():
            if _away(got, _flow(world, other_labels, other_scale, noise)) < NEAR:
                raise Mistake(diagnosis)
        raise AssertionError(f"{say}: you end {away:.2f} of the spread away, at most {NEAR:.2f} is allowed")


@case("ex-build-draw", "plainly-conditional")
def _(answer, rng):
    slips = lambda labels: {
        "the labels are turned round": (1 - labels, 1.0),
        "the label makes no difference": (labels, 0.0),
        "the scale is counted from the unconditional prediction: at 1 nothing is guided": (labels, 2.0),
        "every picture has its own label; you took the first one's for all": (labels[:1].expand(len(labels)), 1.0),
    }
    _lands(answer, rng, 1.0, slips, "at s = 1 the flow of the model with its label")


@case("ex-build-draw", "guided", points=2)
def _(answer, rng):
    for scale in (1.5, 3.0):
        slips = lambda labels, s=scale: {
            "this is what s + 1 does: the scale is counted from the unconditional prediction": (labels, s + 1),
            "this is s = 1: nothing is guided": (labels, 1.0),
            "this is what 1 - s does: the halves are swapped": (labels, 1 - s),
        }
        _lands(answer, rng, scale, slips, f"at s = {scale}")
    _lands(answer, rng, 0.0, lambda labels: {"at s = 0 no label counts": (labels, 1.0)}, "at s = 0")


@case("ex-build-draw", "finer-is-nearer")
def _(answer, rng):
    world, (labels, noise) = _small_world(rng), _told(rng)
    end = _flow(world, labels, 2.0, noise)
    away = [_away(answer(world, labels, 2.0, _chain(n), noise), end) for n in (15, 120)]
    assert away[1] < max(away[0] / 4, 2e-3), (
        f"with 15 levels you end {away[0]:.3f} away, with 120 levels {away[1]:.3f}: eight times as many must bring "
        "it to less than a quarter"
    )


@case("ex-build-draw", "at-most-four-calls-a-level")
def _(answer, rng):
    world, (labels, noise), calls = _small_world(rng), _told(rng, 2), []

    def counted(x, level, label) -> Prediction:
        calls.append(level)
        return world(x, level, label)

    answer(taking("x level label", counted), labels, 2.0, _chain(10), noise)
    most = MOST_CALLS * 10
    assert len(calls) <= most, f"ten levels took {len(calls)} calls of the model; at most {most} are allowed"


# -- ex-build-digits --------------------------------------------------------------------------------------------------

FEATURES, OF_EACH = "digits-classifier-clean", 20
exercise("ex-build-digits", name="my_digits", lesson=LESSON, form=tensor((10 * OF_EACH, 1, 8, 8)))


def _asked() -> Tensor:
    return torch.arange(10).repeat_interleave(OF_EACH)


def _seen(images: Tensor) -> tuple[Tensor, Tensor]:
    """Features and logarithms of the classes' probabilities."""
    judge = embedder(FEATURES)
    with torch.no_grad():
        return judge.images(images.float()), judge.classes(images.float())


@cache
def real_digits(split: str, of_each: int = OF_EACH) -> Tensor:
    """The first digits of every class of a split, in order."""
    images, labels = digits(split)
    return torch.cat([images[labels == c][:of_each] for c in range(10)])


@cache
def _reference() -> Tensor:
    return _seen(digits("train")[0])[0]


@cache
def _real_distance() -> float:
    """Frechet distance of as many unseen digits from the training digits."""
    return frechet_distance(_seen(real_digits("heldout"))[0], _reference())


def _nearest(images: Tensor) -> float:
    return torch.cdist(images.flatten(1).float(), digits("train")[0].flatten(1)).amin(1).mean().item()


def _spreads(images: Tensor) -> Tensor:
    """(10,) mean squared distance of a class's pictures from their mean."""
    by_class = images.double().view(10, -1, 64)
    return (by_class - by_class.mean(1, keepdim=True)).square().sum(2).mean(1)


@case("ex-build-digits", "what-was-asked-for")
def _(answer):
    right = (_seen(answer)[1].argmax(1) == _asked()).double().mean().item()
    turns = (_seen(answer)[1].argmax(1) == torch.arange(10).repeat(OF_EACH)).double().mean().item()
    if right < 0.9 <= turns:
        raise Mistake("your digits go 0, 1, ..., 9, 0, 1, ...; twenty zeros come first, then twenty ones")
    assert right >= 0.9, f"a share of {right:.2f} is read as the digit that was asked for; 0.9 is needed"


@case("ex-build-digits", "new", points=2)
def _(answer):
    share = _nearest(answer) / _nearest(real_digits("heldout"))
    # copies come back from eight bits: near a training digit, not at it
    if share < 0.02:
        raise Mistake("these are the training digits")
    assert share > 0.5, f"your digits are {share:.2f} as far from the training digits as unseen ones; 0.5 is needed"


@case("ex-build-digits", "varied")
def _(answer):
    share = _spreads(answer) / _spreads(real_digits("heldout"))
    least = int(share.argmin())
    assert share[least] >= 1 / 3, f"your {least}s spread {share[least]:.2f} as much as real ones; a third is needed"


@case("ex-build-digits", "like-real-ones", points=2)
def _(answer):
    distance, most = frechet_distance(_seen(answer)[0], _reference()), 2 * _real_distance()
    assert distance <= most, f"their Frechet distance from the training digits is {distance:.2f}; {most:.2f} is allowed"


# -- ex-build-schedule ------------------------------------------------------------------------------------------------

exercise("ex-build-schedule", name="scale_at", lesson=LESSON, form=call(number(), lambda rng: {"level": levels()[2]}))


@case("ex-build-schedule", "not-everywhere-the-same", points=0)
def _(answer):
    scales = [answer(level) for level in levels()]
    assert all(map(math.isfinite, scales)), f"each scale must be finite; yours are {scales}"
    apart = max(scales) - min(scales)
    if apart < 1e-6:  # a constant, perhaps in float32
        raise Mistake(f"this is the constant {scales[0]:g}")
    assert apart >= 0.25, f"your scales differ by {apart:.2g}: that is hardly a schedule, at least 0.25 is asked for"


@case("ex-build-schedule", "beats-the-best-constant", points=4)
def _(answer):
    entry = raced(answer, GRADING)
    value, low, high = lead(entry, rival(BEST, GRADING))
    assert low > 0, (
        f"you are nearer to real photographs than s = {BEST:g} by {value:.2f} ({low:.2f} to {high:.2f}); all of the "
        "interval must be above zero"
    )
    value = lead(entry, rival(NEXT, GRADING)).value
    assert value > 0, f"s = {NEXT:g} everywhere is nearer to real photographs than you, by {-value:.2f}"
