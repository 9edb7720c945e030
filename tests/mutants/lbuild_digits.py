"""Right answers in other styles, and planted wrong ones, for the build page on digits."""

from __future__ import annotations

import copy
import math
from functools import partial
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from minidiff.course.checks.lbuild_digits import real_digits
from minidiff.guidance import classifier_free
from minidiff.prediction import Prediction
from minidiff.process import diffuse
from minidiff.sampler import ancestral, ddim, heun, sample
from minidiff.schedule import NoiseLevel
from tools.lessons import ROOT, read


def _given() -> dict:
    """What the page gives: its network."""
    names = {"math": math, "torch": torch, "nn": nn, "F": F}
    for cell in read(ROOT / "lessons/build_digits.md").code:
        if "class Network" in cell.source:
            exec(cell.source, names)
    return names


Network = _given()["Network"]

# -- ex-build-loss ----------------------------------------------------------------------------------------------------


def loss_by_prediction(network, x0, label, level, eps):
    x, (alpha, sigma) = diffuse(x0, level, eps), level.like(x0)
    return F.mse_loss(network(x, level, label), alpha * eps - sigma * x0)


def loss_in_a_loop(network, x0, label, level, eps):
    alpha, sigma = (torch.as_tensor(part, dtype=x0.dtype).expand(len(x0)) for part in (level.alpha, level.sigma))
    said = network(torch.stack([a * p + s * e for a, s, p, e in zip(alpha, sigma, x0, eps, strict=True)]), level, label)
    rows = [(y - a * e + s * p).square().mean() for y, a, s, p, e in zip(said, alpha, sigma, x0, eps, strict=True)]
    return sum(rows) / len(rows)


def loss_in_float32(network, x0, label, level, eps):
    alpha, sigma = level.like(x0.float())
    x0, eps = x0.float(), eps.float()
    said = network(x=alpha * x0 + sigma * eps, level=level, label=label)
    return (said - alpha * eps + sigma * x0).pow(2).mean().item()


def _loss(see=None, target=None, worth=lambda off: off.square().mean(), tell=lambda label, level: (label, level)):
    see = see or (lambda a, s, x0, eps: a * x0 + s * eps)
    target = target or (lambda a, s, x0, eps: a * eps - s * x0)

    def loss(network, x0, label, level, eps):
        label, level_told = tell(label, level)
        parts = (*level.like(x0), x0, eps)
        return worth(network(see(*parts), level_told, label) - target(*parts))

    return loss


def _first_level(network, x0, label, level, eps):
    alpha, sigma = (torch.as_tensor(part).reshape(-1)[0] for part in (level.alpha, level.sigma))
    return (network(alpha * x0 + sigma * eps, level, label) - (alpha * eps - sigma * x0)).square().mean()


def _preserving(network, x0, label, level, eps):
    alpha, sigma = level.like(x0)
    x, root = alpha * x0 + sigma * eps, (alpha**2 + sigma**2) ** 0.5
    return (network(x, level, label) - (alpha * eps - sigma * x0) / root).square().mean()


SHOWN, MEAN = "shown-the-noisy-picture", "mean-of-squares"
LOSS = {
    "form-not-reduced": (_loss(worth=lambda off: off.square()), "form"),
    "form-forgot-return": (lambda network, x0, label, level, eps: None, "form"),
    "clean": (_loss(see=lambda a, s, x0, eps: x0), SHOWN, "the clean picture"),
    "noise": (_loss(see=lambda a, s, x0, eps: eps), SHOWN, "without a picture"),
    "swapped": (_loss(see=lambda a, s, x0, eps: s * x0 + a * eps), SHOWN, "swapped"),
    "noise-in-full": (_loss(see=lambda a, s, x0, eps: a * x0 + eps), SHOWN, "in full"),
    "not-fainter": (_loss(see=lambda a, s, x0, eps: x0 + s * eps), SHOWN, "fainter"),
    "variances": (_loss(see=lambda a, s, x0, eps: a**2 * x0 + s**2 * eps), SHOWN, "variances"),
    "labels-lost": (_loss(tell=lambda label, level: (label * 0 - 1, level)), SHOWN),
    "wrong-level": (_loss(tell=lambda label, level: (label, NoiseLevel(level.sigma, level.alpha, 0))), SHOWN),
    "never-asked": (lambda network, x0, label, level, eps: (eps - x0).square().mean(), SHOWN),
    "eps": (_loss(target=lambda a, s, x0, eps: eps), MEAN, "compared with eps"),
    "x0": (_loss(target=lambda a, s, x0, eps: x0), MEAN, "compared with x_0"),
    "sign": (_loss(target=lambda a, s, x0, eps: s * x0 - a * eps), MEAN, "turned round"),
    "added": (_loss(target=lambda a, s, x0, eps: a * eps + s * x0), MEAN, "you added them"),
    "v-swapped": (_loss(target=lambda a, s, x0, eps: s * eps - a * x0), MEAN, "swapped"),
    "sum": (_loss(worth=lambda off: off.square().sum()), MEAN, "added up the squares"),
    "sum-of-pixels": (_loss(worth=lambda off: off.square().flatten(1).sum(1).mean()), MEAN, "pixels of a picture"),
    "root": (_loss(worth=lambda off: off.square().mean().sqrt()), MEAN, "the root"),
    "absolute": (_loss(worth=lambda off: off.abs().mean()), MEAN, "absolute"),
    "half": (_loss(worth=lambda off: off.square().mean() / 2), MEAN, "half"),
    "first-level": (_first_level, "a-level-for-each-picture"),
    "preserving": (_preserving, "variance-exploding"),
}

# -- ex-build-train ---------------------------------------------------------------------------------------------------


ADAM = partial(torch.optim.Adam, lr=2e-3, betas=(0.9, 0.99))


def fit(
    images,
    labels,
    steps,
    seed,
    *,
    drop=0.15,
    null=-1,
    angles=lambda u: math.pi / 2 * u,
    classes=None,
    target=lambda a, s, x0, eps: a * eps - s * x0,
    keep=lambda k: min(0.999, (k + 1) / (k + 10)),
    optimizer=ADAM,
    rate=lambda share: 1 - share,
    pick=lambda batch, n, generator: torch.randint(n, (batch,), generator=generator),
    forget=True,
    noise=None,
    said="v",
):
    """A training loop, or what a slip makes of it."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = Network(images.shape[1:], classes or int(labels.max()) + 1)
    averaged, optimizer = copy.deepcopy(network), optimizer(network.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1, (k + 1) / 50) * rate(k / steps))
    for k in range(steps):
        chosen = pick(128, len(images), generator)
        x0 = images[chosen]
        told = torch.where(torch.rand(len(x0), generator=generator) < drop, null, labels[chosen])
        angle = angles(torch.rand(len(x0), generator=generator))
        level = NoiseLevel(angle.cos(), angle.sin(), angle)
        eps = torch.randn(x0.shape, generator=generator) if noise is None else noise.expand(x0.shape)
        parts = (*level.like(x0), x0, eps)
        if forget:
            optimizer.zero_grad()
        off = network(diffuse(x0, level, eps), level, told) - target(*parts)
        off.square().mean().backward()
        optimizer.step()
        schedule.step()
        for kept, new in zip(averaged.parameters(), network.parameters(), strict=True):
            kept.data.lerp_(new.data, 1 - keep(k))

    @torch.no_grad()
    def model(x, level, label):
        return Prediction(x, level, averaged(x, level, label), said)

    return model


def train_without_an_average(images, labels, steps, seed):
    return fit(images, labels, steps, seed, keep=lambda k: 0.0)


def train_with_adamw(images, labels, steps, seed):
    slips = {"drop": 0.25, "rate": lambda share: (1 + math.cos(math.pi * share)) / 2}
    adamw = partial(torch.optim.AdamW, lr=2e-3)
    return fit(images=images, labels=labels, steps=steps, seed=seed, optimizer=adamw, **slips)


def train_in_epochs(images, labels, steps, seed):
    """Every picture once before any comes again."""
    order = []

    def pick(batch, n, generator):
        if len(order) < batch:
            order.extend(torch.randperm(n, generator=generator).tolist())
        chosen, order[:] = order[:batch], order[batch:]
        return torch.tensor(chosen)

    return fit(images, labels, steps, seed, pick=pick)


def _fit(**slips):
    return lambda images, labels, steps, seed: fit(images, labels, steps, seed, **slips)


def _unseeded(images, labels, steps, seed):
    return fit(images, labels, steps, int(torch.randint(10**6, ())) if steps < 100 else seed)


def _shuffled(images, labels, steps, seed):
    return fit(images, labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))], steps, seed)


def _null_of_its_own(images, labels, steps, seed):
    """Asked for nothing it answers for class 0."""
    model = fit(images, labels, steps, seed)
    return lambda x, level, label: model(x, level, label.clamp(min=0))


WITH, WITHOUT = "with-a-label", "without-a-label"
TRAIN = {
    "form-network": (lambda images, labels, steps, seed: torch.zeros(3), "form"),
    "form-forgot-return": (lambda images, labels, steps, seed: None, "form"),
    "form-raw-output": (
        lambda images, labels, steps, seed: lambda x, level, label: fit(images, labels, 2, seed)(x, level, label).value,
        "form",
    ),
    "seed-ignored": (_unseeded, "the-seed-decides", "the same seed"),
    "one-seed": (
        lambda images, labels, steps, seed: fit(images, labels, steps, 0),
        "the-seed-decides",
        "makes no difference",
    ),
    "labels-shuffled": (_shuffled, WITH),
    "all-labels-dropped": (_fit(drop=1.0), WITH),
    "never-steps": (_fit(rate=lambda share: 0.0), WITH),
    "a-tenth-of-the-steps": (
        lambda images, labels, steps, seed: fit(images, labels, max(2, steps // 10), seed),
        WITH,
    ),
    "one-level": (_fit(angles=lambda u: 0.8 + 0 * u), WITH),
    "near-data-alone": (_fit(angles=lambda u: 0.5 * u), WITH),
    "gradients-pile-up": (_fit(forget=False), WITH),
    "average-of-the-start": (_fit(keep=lambda k: 0.999), WITH),
    "learns-eps-says-v": (_fit(target=lambda a, s, x0, eps: eps), WITH),
    "noise-drawn-once": (_fit(noise=torch.tensor(0.7)), WITH),
    "no-label-dropped": (_fit(drop=0.0), WITHOUT),
    "class-0-for-null": (_null_of_its_own, WITHOUT, "draws class 0"),
    "dropped-to-class-0": (_fit(null=0), WITHOUT),
    "two-classes": (_fit(classes=2), "three-classes"),
}

# -- ex-build-draw ----------------------------------------------------------------------------------------------------


def _guided(model, labels, scale):
    return classifier_free(model, labels, torch.full_like(labels, -1), scale)


def draw_by_heun(model, labels, scale, levels, noise):
    return sample(heun(), _guided(model, labels, scale), levels, noise)


def draw_by_ddim(model, labels, scale, levels, noise):
    return sample(ddim(), _guided(model, labels, scale), levels, noise)


def draw_in_one_pass(model, labels, scale, levels, noise):
    """Both halves in one batch; a step is a rotation."""
    x, both = noise, torch.cat([labels, torch.full_like(labels, -1)])
    for t, s in pairwise(levels):
        told, plain = model(torch.cat([x, x]), t, both).v.chunk(2)
        turn = math.atan2(t.sigma, t.alpha) - math.atan2(s.sigma, s.alpha)
        x = math.cos(turn) * x - math.sin(turn) * (plain + scale * (told - plain))
    return x


def _draw(scale_of=lambda s: s, labels_of=lambda labels: labels, sampler=ddim, levels_of=lambda levels: levels):
    return lambda model, labels, scale, levels, noise: sample(
        sampler(), _guided(model, labels_of(labels), scale_of(scale)), levels_of(levels), noise, torch.Generator()
    )


def _unguided_model(model, labels, scale, levels, noise):
    return sample(ddim(), lambda x, level: model(x, level, torch.full_like(labels, -1)), levels, noise)


def _one_step(model, labels, scale, levels, noise):
    return _guided(model, labels, scale)(noise, levels[0]).x0


def _asks_much(model, labels, scale, levels, noise):
    for level in levels[:-1]:
        for _ in range(4):
            model(noise, level, labels)
    return draw_by_ddim(model=model, labels=labels, scale=scale, levels=levels, noise=noise)


def _biased(model, labels, scale, levels, noise):
    end = draw_by_heun(model, labels, scale, levels, noise)
    return end + 0.08 * end.std()


PLAIN = "plainly-conditional"
DRAW = {
    "form-forgot-return": (lambda model, labels, scale, levels, noise: None, "form"),
    "form-one-for-all": (lambda model, labels, scale, levels, noise: noise[:1], "form"),
    "noise": (lambda model, labels, scale, levels, noise: noise, PLAIN),
    "one-step": (_one_step, PLAIN),
    "random": (_draw(sampler=ancestral), PLAIN),
    "other-labels": (_draw(labels_of=lambda labels: 1 - labels), PLAIN, "turned round"),
    "no-label": (_unguided_model, PLAIN, "makes no difference"),
    "first-label": (_draw(labels_of=lambda labels: labels[:1].expand(len(labels))), PLAIN, "the first one's"),
    "one-plus-s": (_draw(lambda s: 1 + s), PLAIN, "nothing is guided"),
    "halves-swapped": (_draw(lambda s: 1 - s), PLAIN, "makes no difference"),
    "not-guided": (_draw(lambda s: 1.0), "guided", "this is s = 1"),
    "at-least-one": (_draw(lambda s: max(s, 1.0)), "guided", "at s = 0 no label counts"),
    "w-for-s": (_draw(lambda s: s + (s > 1)), "guided", "s + 1 does"),
    "one-minus-s": (_draw(lambda s: 1 - s if s > 1 else s), "guided", "the halves are swapped"),
    "biased": (_biased, "finer-is-nearer"),
    "asks-too-much": (_asks_much, "at-most-four-calls-a-level"),
}

# -- ex-build-classifier ----------------------------------------------------------------------------------------------


def classify(
    images, labels, steps, seed, *, angles=lambda u: math.pi / 2 * u, read=lambda z: z.log_softmax(1), decay=0.1
):
    torch.manual_seed(seed)
    network = Network(images.shape[1:], 0, outputs=int(labels.max()) + 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=decay)
    for k in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - k / steps)
        chosen = torch.randint(len(images), (128,))
        angle = angles(torch.rand(128))
        level = NoiseLevel(angle.cos(), angle.sin(), angle)
        x = diffuse(images[chosen], level, torch.randn(images[chosen].shape))
        optimizer.zero_grad()
        F.nll_loss(network(x, level).log_softmax(1), labels[chosen]).backward()
        optimizer.step()
    return lambda x, level: read(network(x, level))


def classify_without_decay(images, labels, steps, seed):
    return classify(images, labels, steps, seed, decay=0.0)


def classify_by_keywords(images, labels, steps, seed):
    log_prob = classify(images=images, labels=labels, steps=steps, seed=seed)
    return lambda x, level: log_prob(x=x, level=level).double()


def classify_by_logits(images, labels, steps, seed):
    """Log softmax by hand."""
    return classify(images, labels, steps, seed, read=lambda z: z - z.logsumexp(1, keepdim=True))


def _classify(**slips):
    return lambda images, labels, steps, seed: classify(images, labels, steps, seed, **slips)


SURE = "as-sure-as-it-may-be"
CLASSIFIER = {
    "form-one-number": (
        lambda images, labels, steps, seed: lambda x, level: classify(images, labels, 2, seed)(x, level)[:, 0],
        "form",
    ),
    "form-forgot-return": (lambda images, labels, steps, seed: None, "form"),
    "unseeded": (
        lambda images, labels, steps, seed: classify(images, labels, steps, int(torch.randint(10**6, ()))),
        "the-seed-decides",
        "the same seed",
    ),
    "one-seed": (lambda images, labels, steps, seed: classify(images, labels, steps, 0), "the-seed-decides", "another"),
    "logits": (_classify(read=lambda z: z), "logarithms-of-probabilities"),
    "probabilities": (_classify(read=lambda z: z.softmax(1)), "logarithms-of-probabilities", "the probabilities"),
    "clean-pictures-alone": (_classify(angles=lambda u: 0 * u), SURE),
    "noise-alone": (_classify(angles=lambda u: 1.5 + 0 * u), SURE),
    "too-sure": (_classify(read=lambda z: (5 * z).log_softmax(1)), SURE),
    "hardly-trained": (lambda images, labels, steps, seed: classify(images, labels, max(2, steps // 20), seed), SURE),
    "the-shares": (lambda images, labels, steps, seed: _shares(labels, seed), SURE),
}


def _shares(labels, seed):
    """Knows how frequent the classes are, and looks at nothing; a little off, by the seed."""
    share = torch.bincount(labels).double() / len(labels)
    told = (share.log() + 1e-4 * torch.tensor([seed % 100, 0])).log_softmax(0)
    return lambda x, level: told.expand(len(x), -1)


# -- ex-build-digits --------------------------------------------------------------------------------------------------


def _later_ones():
    return real_digits("heldout", 40).view(10, 40, 1, 8, 8)[:, 20:].reshape(200, 1, 8, 8)


def _noised(images, sigma):
    return images + sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


def _turned(images):
    return images.view(10, 20, 1, 8, 8).transpose(0, 1).reshape(200, 1, 8, 8)


def _same_ten():
    """Five zeros, each four times; and so on."""
    return real_digits("heldout", 5).repeat_interleave(4, 0)


HELD = real_digits("heldout")
DIGITS = {
    "form-too-few": (HELD[:100], "form"),
    "form-function": (lambda: HELD, "form"),
    "turned": (_turned(HELD), "what-was-asked-for", "twenty zeros come first"),
    "next-class": (HELD.roll(20, 0), "what-was-asked-for"),
    "noise": (torch.randn(200, 1, 8, 8, generator=torch.Generator().manual_seed(0)), "what-was-asked-for"),
    "training-digits": (real_digits("train"), "new", "the training digits"),
    "training-digits-with-noise": (_noised(real_digits("train"), 0.05), "new"),
    "one-of-each": (real_digits("heldout", 1).repeat_interleave(20, 0), "varied"),
    "means": (HELD + 0.6 * (HELD.view(10, 20, 64).mean(1).repeat_interleave(20, 0).view_as(HELD) - HELD), "varied"),
    "darker": (HELD / 2 - 0.5, "varied"),
    "five-of-each": (_same_ten(), "like-real-ones"),
    "noisy": (_noised(HELD, 0.3), "like-real-ones"),
}

# -- ex-build-schedule ------------------------------------------------------------------------------------------------


def _within(low, high, scale):
    """Guided in an interval of sigma / alpha, and nowhere else."""
    return lambda level: scale if low < level.sigma / level.alpha < high else 1.0


def not_in_noise(level):
    return torch.tensor(2.0 if level.sigma < 5 * level.alpha else 1.0)


def bell(level):
    return 1 + 2 * level.alpha * level.sigma


BEATS = "beats-the-best-constant"
SCHEDULE = {
    "form-forgot-return": (lambda level: None, "form"),
    "form-many": (lambda level: [level.alpha, level.sigma], "form"),
    "the-best-constant": (lambda level: 1.5, "not-everywhere-the-same", "this is the constant 1.5"),
    "a-constant-that-loops": (lambda level: 2.0 + 0 * level.sigma, "not-everywhere-the-same", "this is the constant 2"),
    "infinite": (lambda level: math.inf if level.sigma > level.alpha else 1.0, "not-everywhere-the-same"),
    "near-the-data": (_within(0, 0.5, 2.0), BEATS),
    "nearly-constant": (lambda level: 1.75 + 0.01 * level.alpha, "not-everywhere-the-same"),
}

RIGHT = {
    "ex-build-loss": {
        "mse_loss": loss_by_prediction,
        "loop": loss_in_a_loop,
        "float32": loss_in_float32,
    },
    "ex-build-train": {
        "no average": train_without_an_average,
        "AdamW": train_with_adamw,
        "epochs": train_in_epochs,
    },
    "ex-build-draw": {"Heun": draw_by_heun, "DDIM": draw_by_ddim, "one pass": draw_in_one_pass},
    "ex-build-classifier": {
        "no decay": classify_without_decay,
        "by keywords": classify_by_keywords,
        "by hand": classify_by_logits,
    },
    "ex-build-digits": {"unseen": HELD, "other unseen ones": _later_ones().double(), "a list": list(HELD)},
    "ex-build-schedule": {"interval": _within(0.3, 3, 2.0), "not in noise": not_in_noise, "bell": bell},
}

MUTANTS = {
    "ex-build-loss": LOSS,
    "ex-build-train": TRAIN,
    "ex-build-draw": DRAW,
    "ex-build-classifier": CLASSIFIER,
    "ex-build-digits": DIGITS,
    "ex-build-schedule": SCHEDULE,
}
