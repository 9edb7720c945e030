"""Right answers in other styles, and planted wrong ones, for lesson 03."""

from __future__ import annotations

import math

import numpy as np
import torch

from minidiff.course.checks.l03_classifier_guidance import guided_moments, overshoot_of, tilted_moments
from minidiff.exact import GaussianMixtureDenoiser
from minidiff.guidance import classifier_guidance, grad_log_prob
from minidiff.prediction import Prediction
from minidiff.process import beta, beta_tilde, posterior_mean, transition
from minidiff.random import rand, randn
from minidiff.sampler import ddim, sample
from minidiff.schedule import DATA, NoiseLevel, cosine_schedule

# -- ex-03-tilted-step ------------------------------------------------------------------------------------------------


def tilted_by_completing_the_square(mean, variance, gradient, curvature, scale):
    precision = 1 / variance + scale * curvature
    return (mean * precision + scale * gradient) / precision, 1 / precision


def tilted_without_division_by_variance(mean, variance, gradient, curvature, scale):
    shrunk = variance / (1 + scale * curvature * variance)
    return torch.tensor([mean + shrunk * scale * gradient, shrunk])


def tilted_in_float32(mean, variance, gradient, curvature, scale):
    m, v, g, k, s = (np.float32(a) for a in (mean, variance, gradient, curvature, scale))
    return m + s * g / (1 / v + s * k), 1 / (1 / v + s * k)


def tilted_by_quadrature(mean, variance, gradient, curvature, scale):
    x = mean + np.linspace(-20, 20, 20001)
    log_p = gradient * (x - mean) - curvature * (x - mean) ** 2 / 2
    weight = np.exp(scale * log_p - (x - mean) ** 2 / (2 * variance))
    centre = (weight * x).sum() / weight.sum()
    return centre, (weight * (x - centre) ** 2).sum() / weight.sum()


def _precise(change):
    """A wrong answer whose variance is 1 / ``change(v, k, s)``; the mean follows."""

    def tilted(mean, variance, gradient, curvature, scale):
        precision = change(variance, curvature, scale)
        return mean + scale * gradient / precision, 1 / precision

    return tilted


def _mean(change):
    """A wrong answer: ``change(m, v, g, k, s)`` is its mean."""
    return lambda mean, variance, gradient, curvature, scale: (
        change(mean, variance, gradient, curvature, scale),
        tilted_by_completing_the_square(mean, variance, gradient, curvature, scale)[1],
    )


def _variance(change):
    """A wrong answer: ``change(v, k, s)`` is its variance."""
    return lambda mean, variance, gradient, curvature, scale: (
        tilted_by_completing_the_square(mean, variance, gradient, curvature, scale)[0],
        change(variance, curvature, scale),
    )


STRAIGHT, MEAN, VARIANCE = "straight-tilt-is-the-mean-shift", "mean-by-brute-force", "variance-by-brute-force"
TILTED_STEP = {
    "form-mean-alone": (lambda mean, variance, gradient, curvature, scale: mean, "form"),
    "form-forgot-return": (lambda mean, variance, gradient, curvature, scale: None, "form"),
    "form-vectors": (lambda mean, variance, gradient, curvature, scale: (torch.ones(2), torch.ones(2)), "form"),
    "form-other-names": (lambda mu, sigma, g, k, s: tilted_in_float32(mu, sigma, g, k, s), "form"),
    "shift-without-sigma": (_mean(lambda m, v, g, k, s: m + s * g), STRAIGHT, "left Sigma out"),
    "std-for-variance": (_mean(lambda m, v, g, k, s: m + v**0.5 * s * g), STRAIGHT, "the standard deviation"),
    "sign": (_mean(lambda m, v, g, k, s: m - s * g / (1 / v + s * k)), STRAIGHT, "sign is wrong"),
    "scale-missing": (_mean(lambda m, v, g, k, s: m + g / (1 / v + k)), STRAIGHT, "scale is missing"),
    "w-for-s": (_mean(lambda m, v, g, k, s: m + (1 + s) * g / (1 / v + (1 + s) * k)), STRAIGHT, "1 + s"),
    "divided-by-sigma": (_mean(lambda m, v, g, k, s: m + s * g / v), STRAIGHT, "you divided by Sigma"),
    "shift-alone": (_mean(lambda m, v, g, k, s: s * g / (1 / v + s * k)), STRAIGHT, "this is the shift"),
    "mean-stays": (_mean(lambda m, v, g, k, s: m), STRAIGHT, "yours stayed"),
    "other-order": (
        lambda mean, variance, gradient, curvature, scale: tilted_in_float32(
            mean, variance, gradient, curvature, scale
        )[::-1],
        STRAIGHT,
        "the order is",
    ),
    "half-the-shift": (_mean(lambda m, v, g, k, s: m + s * g * v / 2), STRAIGHT),
    "first-order-mean": (_mean(lambda m, v, g, k, s: m + v * s * g), MEAN, "mean of the straight tilt"),
    "straight-alone": (
        lambda mean, variance, gradient, curvature, scale: (mean + variance * scale * gradient, variance),
        MEAN,
        "mean of the straight tilt",
    ),
    "curvature-unscaled": (_precise(lambda v, k, s: 1 / v + k), MEAN, "multiplies the curvature too"),
    "curvature-sign": (_precise(lambda v, k, s: 1 / v - s * k), MEAN, "sign of k"),
    "half-the-curvature": (_precise(lambda v, k, s: 1 / v + s * k / 2), MEAN, "you took k / 2"),
    "twice-the-curvature": (_precise(lambda v, k, s: 1 / v + 2 * s * k), MEAN, "you took 2 k"),
    "one-for-precision": (_precise(lambda v, k, s: (1 + s * k) / v), MEAN, "you took 1 + s k"),
    "variances-added": (_precise(lambda v, k, s: 1 / (v + s * k)), MEAN, "precisions add, not variances"),
    "variance-of-the-tilt-added": (
        _precise(lambda v, k, s: 1 / (v + 1 / (s * k)) if k else 1 / v),
        MEAN,
        "variance of the tilt",
    ),
    "gradient-unscaled": (
        _mean(lambda m, v, g, k, s: m + g / (1 / v + s * k) if k else m + s * g * v),
        MEAN,
        "in front of the gradient",
    ),
    "clamp-hides-the-sign": (_precise(lambda v, k, s: 1 / v + max(k - s * k, -0.1)), MEAN),
    "precision": (_variance(lambda v, k, s: 1 / v + s * k), VARIANCE, "the precision"),
    "standard-deviation": (_variance(lambda v, k, s: (1 / v + s * k) ** -0.5), VARIANCE, "standard deviation"),
    "variance-stays": (_variance(lambda v, k, s: v), VARIANCE, "no effect"),
    "variance-unscaled": (_variance(lambda v, k, s: 1 / (1 / v + k)), VARIANCE, "multiplies the curvature too"),
    "variance-sign": (_variance(lambda v, k, s: 1 / (1 / v - s * k)), VARIANCE, "sign of k"),
    "variance-by-scale": (_variance(lambda v, k, s: v / s), VARIANCE),
    "curvature-cut-off": (_precise(lambda v, k, s: 1 / v + s * max(k, 0)), "curved-the-other-way", "cut it off"),
    "curvature-absolute": (_precise(lambda v, k, s: 1 / v + s * abs(k)), "curved-the-other-way", "absolute value"),
    "variance-never-grows": (
        _variance(lambda v, k, s: min(v, 1 / (1 / v + s * k))),
        "curved-the-other-way",
    ),
}

# -- ex-03-shift-ratio ------------------------------------------------------------------------------------------------


def ratio_by_moving_x0(noisier, cleaner, variance):
    """Push x_0 by what the gradient 1 makes of it and watch the mean."""
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    moved = posterior_mean(zero, one * noisier.sigma**2 / noisier.alpha, noisier, cleaner)
    return moved / variance


def ratio_in_float32(noisier, cleaner, variance):
    a_t, s_t, a_r, s_r = (np.float32(v) for v in (noisier.alpha, noisier.sigma, cleaner.alpha, cleaner.sigma))
    return (a_r / a_t * s_t**2 - a_t / a_r * s_r**2) / np.float32(variance)


def ratio_in_minidiff(noisier, cleaner, variance):
    scale, step = transition(cleaner, noisier)
    return step / scale / variance


def _ratio(change):
    """A wrong answer: ``change`` of (t, r, Sigma, beta, alpha_r / alpha_t)."""
    return lambda noisier, cleaner, variance: change(
        noisier, cleaner, variance, beta(noisier, cleaner), cleaner.alpha / noisier.alpha
    )


def _kept(level):
    return NoiseLevel(level.alpha, math.sqrt(1 - level.alpha**2) if level.alpha < 1 else level.sigma, 0)


ONE, MEASURED = "one-over-root-one-minus-beta", "measured-on-a-mixture"
SHIFT_RATIO = {
    "form-forgot-return": (lambda noisier, cleaner, variance: None, "form"),
    "form-pair": (lambda noisier, cleaner, variance: (1.0, variance), "form"),
    "form-other-names": (lambda t, r, variance: ratio_in_minidiff(t, r, variance), "form"),
    "upside-down": (_ratio(lambda t, r, v, b, a: v / (a * b)), ONE, "other way round"),
    "alpha-forgotten": (_ratio(lambda t, r, v, b, a: b / v), ONE, "is missing"),
    "alpha-bar-for-alpha": (_ratio(lambda t, r, v, b, a: a**2 * b / v), ONE, "you squared"),
    "alpha-upside-down": (_ratio(lambda t, r, v, b, a: b / (a * v)), ONE, "other way round"),
    "all-the-noise": (_ratio(lambda t, r, v, b, a: a * t.sigma**2 / v), ONE, "all the noise"),
    "sigma-not-scaled": (
        _ratio(lambda t, r, v, b, a: a * (t.sigma**2 - r.sigma**2) / v),
        ONE,
        "before it is subtracted",
    ),
    "deviations-subtracted": (
        _ratio(lambda t, r, v, b, a: a * (t.sigma - r.sigma / a) ** 2 / v),
        ONE,
        "not deviations",
    ),
    "distance": (_ratio(lambda t, r, v, b, a: a * b), ONE, "the distance that the mean moves"),
    "minus": (_ratio(lambda t, r, v, b, a: -a * b / v), ONE),
    "always-beta": (_ratio(lambda t, r, v, b, a: a), MEASURED, "you took beta"),
    "times-sigma": (_ratio(lambda t, r, v, b, a: a if v == b else a * b * v), MEASURED, "you multiplied"),
    "root-of-sigma": (_ratio(lambda t, r, v, b, a: a if v == b else a * b / v**0.5), MEASURED, "took its root"),
    "sigma-squared": (_ratio(lambda t, r, v, b, a: a if v == b else a * b / v**2), MEASURED, "you squared it"),
    "no-sigma": (_ratio(lambda t, r, v, b, a: a if v == b else a * b), MEASURED, "it is missing"),
    "beta-tilde": (
        _ratio(lambda t, r, v, b, a: a if v == b else a * beta_tilde(t, r) / v),
        MEASURED,
        "not by beta-tilde",
    ),
    "at-least-one": (_ratio(lambda t, r, v, b, a: max(a * b / v, 0.9 * a)), MEASURED),
    "preserving-only": (
        _ratio(lambda t, r, v, b, a: a * beta(_kept(t), _kept(r)) / v),
        "any-levels",
        "does not hold here",
    ),
    "step-of-alphas": (_ratio(lambda t, r, v, b, a: a * (1 - 1 / a**2) / v), "any-levels", "holds only where"),
    "nothing-at-clean-data": (_ratio(lambda t, r, v, b, a: a * b / v if r.sigma else 0.0), "any-levels"),
}

# -- ex-03-acceptance -------------------------------------------------------------------------------------------------


def accept_by_powers(world, x, label, scale):
    return world.classifier(label)(x, DATA).exp() ** (scale - 1)


def accept_by_bayes(world, x, label, scale):
    joint = world.log_prob(x, DATA, label) + world.weights[world.labels == label].sum().log()
    return (joint - world.log_prob(x, DATA)).exp() ** (scale - 1)


def accept_one_by_one(world, x, label, scale):
    return [math.exp((scale - 1) * world.classifier(label)(one[None], DATA).item()) for one in x]


def accept_in_float32(world, x, label, scale):
    return ((scale - 1) * world.log_prob_label(x, DATA)[:, label].float()).exp()


def _accept(change):
    """A wrong answer: ``change`` of (log p(c | x), s)."""
    return lambda world, x, label, scale: change(world.classifier(label)(x, DATA), scale)


def accept_after_a_logarithm(world, x, label, scale):
    return ((scale - 1) * world.classifier(label)(x, DATA).exp().log()).exp()


def accept_the_tilted_density(world, x, label, scale):
    return (world.log_prob(x, DATA) + scale * world.classifier(label)(x, DATA)).exp()


def accept_squeezed(world, x, label, scale):
    return accept_by_powers(world, x, label, scale).squeeze()


TILTS = "tilts-the-density"
ACCEPTANCE = {
    "form-forgot-return": (lambda world, x, label, scale: None, "form"),
    "form-one-number": (_accept(lambda log_p, s: ((s - 1) * log_p).exp().mean()), "form"),
    "form-column": (_accept(lambda log_p, s: ((s - 1) * log_p).exp()[:, None]), "form"),
    "form-which": (_accept(lambda log_p, s: log_p > -0.5), "form"),
    "s-powers": (_accept(lambda log_p, s: (s * log_p).exp()), TILTS, "already holds one power"),
    "divides-by-p": (_accept(lambda log_p, s: ((1 - s) * log_p).exp()), TILTS, "cannot exceed one"),
    "one-more": (_accept(lambda log_p, s: ((s + 1) * log_p).exp()), TILTS, "you paid one more"),
    "no-scale": (_accept(lambda log_p, s: log_p.exp()), TILTS, "scale is missing"),
    "linear-in-s": (_accept(lambda log_p, s: (s - 1) * log_p.exp()), TILTS, "you multiplied by it"),
    "logarithm": (_accept(lambda log_p, s: (s - 1) * log_p), TILTS, "the logarithm"),
    "thrown-away": (_accept(lambda log_p, s: 1 - ((s - 1) * log_p).exp()), TILTS, "throwing a point away"),
    "over-the-largest": (_accept(lambda log_p, s: ((s - 1) * (log_p - log_p.max())).exp()), TILTS, "over the largest"),
    "softmax": (_accept(lambda log_p, s: ((s - 1) * log_p).softmax(0)), TILTS, "sum to one"),
    "tilted-density": (accept_the_tilted_density, TILTS, "divided by p(x | c)"),
    "all": (_accept(lambda log_p, s: 0 * log_p + 1), TILTS, "all points are kept"),
    "half": (_accept(lambda log_p, s: ((s - 1) * log_p).exp() / 2), TILTS),
    "a-power-of-half": (_accept(lambda log_p, s: ((s - 1) * (log_p - 1)).exp()), TILTS),
    "squeezed": (accept_squeezed, "any-batch"),
    "coarse-in-float32": (
        lambda world, x, label, scale: (
            accept_by_powers(world, x, label, scale) if x.dtype == torch.float64 else torch.ones(len(x)) / 2
        ),
        "any-batch",
    ),
    "logarithm-of-p": (accept_after_a_logarithm, "unlikely-points", "minus infinity is nan"),
    "at-least-a-little": (
        _accept(lambda log_p, s: ((s - 1) * log_p).exp().clamp(min=1e-6)),
        "unlikely-points",
    ),
    "never-quite-one": (_accept(lambda log_p, s: (max(s - 1, 1e-3) * log_p).exp()), "unlikely-points"),
}

# -- ex-03-overshoot --------------------------------------------------------------------------------------------------


def overshoot_by_drawing():
    """Samples on both sides: DDIM, and rejection."""
    world, generator = GaussianMixtureDenoiser(torch.tensor([[-1.0], [1.0]]), 1.0), torch.Generator().manual_seed(1)
    guided = classifier_guidance(world, world.classifier(1), 4.0)
    made = sample(ddim(), guided, cosine_schedule().levels(150), randn((10000, 1), generator, torch.float64))
    drawn = world.sample(60000, generator, 1)
    wanted = drawn[rand((60000,), generator, torch.float64) < accept_by_powers(world, drawn, 1, 4.0)]
    return (made.mean() - wanted.mean()) / wanted.std()


def overshoot_by_runge_kutta():
    """dx / d phi = -sin(phi) (tanh(alpha x) + 2 s p(0 | x)) from equally likely noise; the tilted density on a grid."""
    sigmoid = lambda u: 1 / (1 + np.exp(-u))
    slope = lambda x, phi: -np.sin(phi) * (np.tanh(np.cos(phi) * x) + 8 * sigmoid(-2 * np.cos(phi) * x))
    x = torch.special.ndtri((torch.arange(401).double() + 0.5) / 401).numpy()
    for phi, h in ((math.pi / 2 * (1 - i / 100), -math.pi / 200) for i in range(100)):
        k1 = slope(x, phi)
        k2 = slope(x + h / 2 * k1, phi + h / 2)
        k3 = slope(x + h / 2 * k2, phi + h / 2)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x + h * k3, phi + h))
    grid = np.linspace(-8, 8, 3201)
    weight = (np.exp(-((grid - 1) ** 2) / 2) + np.exp(-((grid + 1) ** 2) / 2)) * sigmoid(2 * grid) ** 4
    mean = np.average(grid, weights=weight)
    return (x.mean() - mean) / np.sqrt(np.average((grid - mean) ** 2, weights=weight))


IN, RIGHT_OVERSHOOT = "in-standard-deviations", overshoot_of()
(MADE, MADE_STD), (TILTED, TILTED_STD) = guided_moments(4.0), tilted_moments(4.0)
OVERSHOOT = {
    "form-function": (overshoot_by_runge_kutta, "form"),
    "form-samples": (torch.full((4,), RIGHT_OVERSHOOT), "form"),
    "form-text": ("1.05", "form"),
    "gap-not-in-deviations": (MADE - TILTED, IN, "gap of the means itself"),
    "in-deviations-of-the-made": ((MADE - TILTED) / MADE_STD, IN, "deviations of the guided samples"),
    "from-the-conditional": (MADE - 1, IN, "distance from p(x | 1)"),
    "from-the-mean-of-the-conditional": ((MADE - 1) / TILTED_STD, IN, "mean of p(x | 1)"),
    "tilted-minus-guided": (-RIGHT_OVERSHOOT, IN, "sign is wrong"),
    "tilted-by-five": (overshoot_of(tilted=5.0), IN, "you tilted by s = 5"),
    "tilted-by-three": (overshoot_of(tilted=3.0), IN, "you tilted by s = 3"),
    "guided-by-five": (overshoot_of(guided=5.0), IN, "guided by s = 5"),
    "w-for-s": (overshoot_of(5.0, 5.0), IN, "you used 1 + s"),
    "scale-3": (overshoot_of(3.0, 3.0), IN, "you used s - 1"),
    "not-guided": (overshoot_of(guided=0.0), IN, "not guided"),
    "bayes-alone": (overshoot_of(guided=1.0), IN, "guided by s = 1"),
    "ancestral": (overshoot_of(name="ancestral"), IN, "ancestral sampler"),
    "no-overshoot": (0.0, IN),
    "just-outside": (RIGHT_OVERSHOOT + 0.045, IN),
}

# -- ex-03-class-gradient ---------------------------------------------------------------------------------------------


def _autograd(function, x):
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(function(x), x)[0]


def _right_gradient(world, x, level, label):
    return _autograd(lambda y: world.classifier(label)(y, level).sum(), x)


def gradient_by_scores(world, x, level, label):
    return world(x, level, label).score - world(x, level).score


def gradient_in_a_loop(world, x, level, label):
    of_one = lambda one: _autograd(lambda y: world.log_prob_label(y, level)[0, label], one[None])
    return torch.cat([of_one(one) for one in x])


def gradient_in_float32(world, x, level, label):
    return grad_log_prob(world.classifier(label), x.float(), level)


@torch.enable_grad()
def gradient_backward(world, x, level, label):
    x = x.clone().requires_grad_(True)
    log_p = world.classifier(label)(x=x, level=level)
    log_p.backward(torch.ones_like(log_p))
    return x.grad


def _through_p(world, x, level, label, floor=0.0):
    return _autograd(lambda y: (world.classifier(label)(y, level).exp() + floor).log().sum(), x)


def gradient_without_enable(world, x, level, label):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(world.classifier(label)(x, level).sum(), x)[0]


def gradient_zero_without_grad(world, x, level, label):
    """Gives up where nothing is recorded."""
    return _right_gradient(world, x, level, label) if torch.is_grad_enabled() else torch.zeros_like(x)


def _first_alone(world, x, level, label):
    return _right_gradient(world, x[:1], level, label).expand_as(x)


def _first_three(world, x, level, label):
    return torch.cat([_right_gradient(world, x[:3], level, label), torch.zeros_like(x[3:])])


def _normalised(world, x, level, label):
    out = _right_gradient(world, x, level, label)
    return out / out.norm(dim=-1, keepdim=True)


SCORES, OWN = "difference-of-scores", "each-sample-its-own"
CLASS_GRADIENT = {
    "form-forgot-return": (lambda world, x, level, label: None, "form"),
    "form-tuple": (lambda world, x, level, label: (x, x), "form"),
    "form-log-p": (lambda world, x, level, label: world.classifier(label)(x, level), "form"),
    "gradient-of-p": (
        lambda world, x, level, label: _autograd(lambda y: world.classifier(label)(y, level).exp().sum(), x),
        SCORES,
        "not its logarithm",
    ),
    "gradient-of-log-joint": (
        lambda world, x, level, label: _autograd(lambda y: world.log_prob(y, level, label).sum(), x),
        SCORES,
        "log p(x_t | c)",
    ),
    "unconditional": (lambda world, x, level, label: world(x, level).score, SCORES, "does not know the class"),
    "descent": (lambda world, x, level, label: -_right_gradient(world, x, level, label), SCORES, "sign is wrong"),
    "shift-of-eps": (
        lambda world, x, level, label: -level.sigma * _right_gradient(world, x, level, label),
        SCORES,
        "shift of eps",
    ),
    "times-sigma": (
        lambda world, x, level, label: level.sigma * _right_gradient(world, x, level, label),
        SCORES,
        "without a factor sigma",
    ),
    "clean-classifier": (
        lambda world, x, level, label: _autograd(lambda y: world.classifier(label)(y, DATA).sum(), x),
        SCORES,
        "told how noisy",
    ),
    "classifier-of-the-denoised": (
        lambda world, x, level, label: _autograd(lambda y: world.classifier(label)(world(y, level).x0, DATA).sum(), x),
        SCORES,
        "opinion about its mean",
    ),
    "zero": (lambda world, x, level, label: 0 * x, SCORES, "this is zero"),
    "another-class": (lambda world, x, level, label: _right_gradient(world, x, level, (label + 1) % 3), SCORES),
    "label-zero-is-none": (
        lambda world, x, level, label: gradient_by_scores(world, x, level, label or None),
        SCORES,
        "this is zero",
    ),
    "normalised": (_normalised, SCORES),
    "mean-over-batch": (
        lambda world, x, level, label: _autograd(lambda y: world.classifier(label)(y, level).mean(), x),
        OWN,
        "averaged log p",
    ),
    "sum-of-all": (
        lambda world, x, level, label: _right_gradient(world, x, level, label).sum(0).expand_as(x),
        OWN,
        "their sum",
    ),
    "mean-of-all": (
        lambda world, x, level, label: _right_gradient(world, x, level, label).mean(0).expand_as(x),
        OWN,
        "their mean",
    ),
    "first-for-all": (_first_alone, OWN, "first one's"),
    "three-at-most": (_first_three, OWN),
    "no-enable-grad": (gradient_without_enable, "under-no-grad", "torch.enable_grad()"),
    "nothing-under-no-grad": (gradient_zero_without_grad, "under-no-grad"),
    "through-p": (_through_p, "unlikely-class", "never go through p"),
    "log-p-cut-off": (
        lambda world, x, level, label: _through_p(world, x, level, label, 1e-30),
        "unlikely-class",
        "is not cut off",
    ),
    "gradient-cut-off": (
        lambda world, x, level, label: _right_gradient(world, x, level, label).clamp(-100, 100),
        "unlikely-class",
    ),
}

# -- ex-03-guide ------------------------------------------------------------------------------------------------------


def _guide(shift, sigma_of=lambda level, x: level.like(x)[1]):
    """A guide that adds shift(sigma, s, g) to eps."""

    def guide(denoiser, gradient, scale):
        def guided(x, level):
            prediction = denoiser(x, level)
            return prediction.with_eps(prediction.eps + shift(sigma_of(level, x), scale, gradient(x, level)))

        return guided

    return guide


_right_guide = _guide(lambda sigma, s, g: -sigma * s * g)


def guide_through_x0(denoiser, gradient, scale):
    def guided(x, level):
        asked, (alpha, sigma) = denoiser(x=x, level=level), level.like(x)
        return asked.with_x0(asked.x0 + scale * sigma**2 / alpha * gradient(x=x, level=level))

    return guided


def guide_the_score(denoiser, gradient, scale):
    def guided(x, level):
        asked = denoiser(x, level)
        return asked.replace(value=asked.score + scale * gradient(x, level=level), kind="score")

    return guided


def guide_in_float32(denoiser, gradient, scale):
    def guided(x, level):
        asked, sigma = denoiser(x.float(), level), level.like(x.float())[1]
        return asked.with_eps(asked.eps - scale * sigma * gradient(x.float(), level).float())

    return guided


def guide_one_by_one(denoiser, gradient, scale):
    def guided(x, level):
        asked, eps = denoiser(x, level), []
        sigmas = torch.as_tensor(level.sigma, dtype=torch.float64).expand(len(x)).tolist()
        for e, sigma, g in zip(asked.eps, sigmas, gradient(x, level), strict=True):
            eps.append(e - scale * sigma * g)
        return asked.with_eps(torch.stack(eps))

    return guided


def _on_x0(amount):
    """A guide that adds amount(sigma) times the gradient to x_0."""

    def guide(denoiser, gradient, scale):
        def guided(x, level):
            asked = denoiser(x, level)
            return asked.with_x0(asked.x0 + amount(level.like(x)[1]) * scale * gradient(x, level))

        return guided

    return guide


def _anew(denoiser, gradient, scale):
    def guided(x, level):
        eps = denoiser(x, level).eps - level.like(x)[1] * scale * gradient(x, level)
        return Prediction(x, level, eps, "eps")

    return guided


def _of_eps(change):
    """A guide whose eps is change(eps, sigma g, s)."""

    def guide(denoiser, gradient, scale):
        def guided(x, level):
            asked = denoiser(x, level)
            return asked.with_eps(change(asked.eps, level.like(x)[1] * gradient(x, level), scale))

        return guided

    return guide


def _forgets_x(denoiser, gradient, scale):
    def guided(x, level):
        right = _right_guide(denoiser, gradient, scale)(x, level)
        return right.replace(x=torch.zeros_like(x), value=right.eps, kind="eps")

    return guided


def _other_fraction(denoiser, gradient, scale):
    return lambda x, level: _right_guide(denoiser, gradient, scale)(x, level).replace(fraction=0 * x)


def _alpha(level, x):
    return level.like(x)[0]


_first = lambda level, x: float(torch.as_tensor(level.sigma).reshape(-1)[0])
_mean_sigma = lambda level, x: float(torch.as_tensor(level.sigma).mean())
_last_axis = lambda level, x: level.sigma
_at_most_one = lambda level, x: torch.as_tensor(level.like(x)[1]).clamp(max=1)
_of_alpha = lambda level, x: (1 - torch.as_tensor(level.like(x)[0]) ** 2).clamp(min=0).sqrt()
minus = lambda sigma, s, g: -sigma * s * g
BAYES = "scale-1-is-conditional"
GUIDE = {
    "form-forgot-return": (lambda denoiser, gradient, scale: lambda x, level: None, "form"),
    "form-forgot-to-return-guided": (lambda denoiser, gradient, scale: None, "form"),
    "form-eps": (
        lambda denoiser, gradient, scale: lambda x, level: _right_guide(denoiser, gradient, scale)(x, level).eps,
        "form",
    ),
    "form-called-at-once": (lambda denoiser, gradient, scale: torch.zeros(3, 2), "form"),
    "plus-sign": (_guide(lambda sigma, s, g: sigma * s * g), BAYES, "is subtracted"),
    "no-sigma": (_guide(lambda sigma, s, g: -s * g), BAYES, "comes with a factor sigma"),
    "added-without-sigma": (_guide(lambda sigma, s, g: s * g), BAYES, "you added the gradient itself"),
    "variance-as-std": (_guide(lambda sigma, s, g: -(sigma**2) * s * g), BAYES, "you used the variance"),
    "alpha-for-sigma": (_guide(minus, _alpha), BAYES, "you took alpha"),
    "shift-of-x0-for-eps": (
        _guide(minus, lambda level, x: level.like(x)[1] ** 2 / level.like(x)[0]),
        BAYES,
        "belongs to the shift of x_0",
    ),
    "w-for-s": (_guide(lambda sigma, s, g: -sigma * (1 + s) * g), BAYES, "you used 1 + s"),
    "w-from-s": (_guide(lambda sigma, s, g: -sigma * (s - 1) * g), BAYES, "nothing is guided"),
    "in-its-place": (_of_eps(lambda eps, shift, s: -s * shift), BAYES, "you put it in its place"),
    "shift-of-eps-for-x0": (_on_x0(lambda sigma: -sigma), BAYES, "shift of eps given to x_0"),
    "shift-of-score-for-x0": (_on_x0(lambda sigma: 1.0), BAYES, "shift of the score given to x_0"),
    "half": (_guide(lambda sigma, s, g: -sigma * s * g / 2), BAYES),
    "ignores-scale": (_guide(lambda sigma, s, g: -sigma * g), "any-scale", "no effect"),
    "scale-squared": (_guide(lambda sigma, s, g: -sigma * s**2 * g), "any-scale", "you squared the scale"),
    "root-of-scale": (_guide(lambda sigma, s, g: -sigma * s**0.5 * g), "any-scale", "the root of the scale"),
    "scales-the-whole": (_of_eps(lambda eps, shift, s: s * (eps - shift)), "any-scale", "multiplied the whole"),
    "scales-the-denoiser": (_of_eps(lambda eps, shift, s: s * eps - shift), "any-scale", "not what the denoiser says"),
    "scale-cut-off": (_guide(lambda sigma, s, g: -sigma * min(s, 1.5) * g), "any-scale"),
    "first-sigma-for-all": (_guide(minus, _first), "one-level-per-sample", "the first for all"),
    "mean-sigma-for-all": (_guide(minus, _mean_sigma), "one-level-per-sample", "their mean"),
    "along-the-last-axis": (_guide(minus, _last_axis), "one-level-per-sample", "along the last axis"),
    "scalar-levels-alone": (_guide(minus, lambda level, x: float(level.sigma)), "one-level-per-sample"),
    "sigma-of-alpha": (_guide(minus, _of_alpha), "variance-exploding", "does not hold here"),
    "sigma-at-most-one": (_guide(minus, _at_most_one), "variance-exploding"),
    "prediction-anew": (_anew, "keeps-the-rest", "learned variance is lost"),
    "x-forgotten": (_forgets_x, "keeps-the-rest"),
    "another-fraction": (_other_fraction, "keeps-the-rest"),
}

RIGHT = {
    "ex-03-tilted-step": {
        "completing-the-square": tilted_by_completing_the_square,
        "tensor": tilted_without_division_by_variance,
        "float32": tilted_in_float32,
        "quadrature": tilted_by_quadrature,
    },
    "ex-03-shift-ratio": {
        "moving-x0": ratio_by_moving_x0,
        "minidiff": ratio_in_minidiff,
        "float32": ratio_in_float32,
    },
    "ex-03-acceptance": {
        "bayes": accept_by_bayes,
        "powers": accept_by_powers,
        "one-by-one": accept_one_by_one,
        "float32": accept_in_float32,
    },
    "ex-03-overshoot": {
        "drawn": overshoot_by_drawing(),
        "runge-kutta": overshoot_by_runge_kutta(),
        "float32": torch.tensor([RIGHT_OVERSHOOT], dtype=torch.float32),
        "rounded": round(RIGHT_OVERSHOOT, 2),
    },
    "ex-03-class-gradient": {
        "scores": gradient_by_scores,
        "loop": gradient_in_a_loop,
        "backward": gradient_backward,
        "float32": gradient_in_float32,
    },
    "ex-03-guide": {
        "through-x0": guide_through_x0,
        "score": guide_the_score,
        "float32": guide_in_float32,
        "one-by-one": guide_one_by_one,
    },
}

MUTANTS = {
    "ex-03-tilted-step": TILTED_STEP,
    "ex-03-shift-ratio": SHIFT_RATIO,
    "ex-03-acceptance": ACCEPTANCE,
    "ex-03-overshoot": OVERSHOOT,
    "ex-03-class-gradient": CLASS_GRADIENT,
    "ex-03-guide": GUIDE,
}
