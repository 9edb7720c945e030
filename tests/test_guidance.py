"""Guidance: the identities that a sign error, w for s, or swapped halves cannot satisfy, and both classifier rules."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from minidiff.condition import Condition
from minidiff.denoiser import as_denoiser, conditioned
from minidiff.exact import GaussianMixtureDenoiser
from minidiff.guidance import (
    adm,
    auto,
    autoguidance,
    cfg,
    classifier,
    classifier_free,
    classifier_guidance,
    dynamic_threshold,
    ends_with,
    grad_log_prob,
    guidance_interval,
    interval,
    mean_shift_guidance,
    quantile,
    rescaled,
    scale_from_w,
    static_threshold,
    w_from_scale,
)
from minidiff.prediction import Prediction
from minidiff.process import beta, beta_tilde, diffuse, posterior_mean, transition
from minidiff.random import randn
from minidiff.sampler import ancestral, ddim, sample
from minidiff.schedule import NoiseLevel, cosine_schedule, linear_schedule

MIDDLE = linear_schedule().level(400)
SCALES = [-1.0, 0.0, 0.5, 1.0, 2.0, 7.5]
LABELS, NULL = torch.tensor([0, 2, 1, 0]), torch.full((4,), -1)


def batch(world, level, n=4, seed=5):
    generator = torch.Generator().manual_seed(seed)
    x0 = world.sample(n, generator)
    return diffuse(x0, level, torch.randn(x0.shape, generator=generator, dtype=torch.float64))


def smeared(mixture, extra=0.3):
    """A weak version of a mixture: every component wider."""
    return GaussianMixtureDenoiser(mixture.means, mixture.variance + extra, mixture.weights, mixture.labels)


class Marked:
    """A denoiser that answers with one number."""

    def __init__(self, value):
        self.value = value

    def __call__(self, x, level):
        return Prediction(x, level, torch.full_like(x, self.value), "eps")


def autograd_score(log_prob, x, level):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(log_prob(x, level).sum(), x)[0]


# --- classifier-free ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_classifier_free_is_the_formula(mixture, level, scale):
    """eps_u + s (eps_c - eps_u), from two separate calls."""
    x = batch(mixture, level)
    cond, uncond = mixture(x, level, LABELS).eps, mixture(x, level).eps
    guided = classifier_free(mixture, LABELS, NULL, scale)(x, level)
    torch.testing.assert_close(guided.eps, uncond + scale * (cond - uncond), rtol=1e-8, atol=1e-8)
    assert torch.equal(guided.x, x)
    assert guided.level is level


def test_classifier_free_at_one_is_conditional_bit_for_bit(mixture, level):
    x = batch(mixture, level)
    guided, plain = classifier_free(mixture, LABELS, NULL, 1.0)(x, level), mixture(x, level, LABELS)
    for kind in ("x0", "eps", "v", "score"):
        assert torch.equal(getattr(guided, kind), getattr(plain, kind))


def test_a_trajectory_at_scale_one_is_conditional_bit_for_bit(mixture, generator):
    levels, x_T = linear_schedule().levels(10), randn((4, 2), generator)
    guided = sample(ddim(), classifier_free(mixture, LABELS, NULL, 1), levels, x_T)
    assert torch.equal(guided, sample(ddim(), conditioned(mixture, LABELS), levels, x_T))


def test_classifier_free_at_zero_is_unconditional(mixture, level):
    x = batch(mixture, level)
    guided = classifier_free(mixture, LABELS, NULL, 0.0)(x, level)
    torch.testing.assert_close(guided.eps, mixture(x, level).eps, rtol=1e-12, atol=1e-12)


def test_classifier_free_is_affine_in_the_scale(mixture):
    """Second differences vanish, and the weights of the two halves sum to one: equal halves change nothing."""
    x = batch(mixture, MIDDLE)
    low, mid, high = (classifier_free(mixture, LABELS, NULL, s)(x, MIDDLE).eps for s in (2.0, 3.5, 5.0))
    torch.testing.assert_close(mid, (low + high) / 2)
    same = classifier_free(mixture, LABELS, LABELS, 9.0)(x, MIDDLE)
    torch.testing.assert_close(same.eps, mixture(x, MIDDLE, LABELS).eps)


@pytest.mark.parametrize("w", [0.0, 0.5, 3.0])
def test_published_spellings_are_one_rule(mixture, w):
    """(1 + w) eps_c - w eps_u (Ho and Salimans 2022) is s = 1 + w here."""
    x = batch(mixture, MIDDLE)
    cond, uncond = mixture(x, MIDDLE, LABELS).eps, mixture(x, MIDDLE).eps
    guided = classifier_free(mixture, LABELS, NULL, scale_from_w(w))(x, MIDDLE)
    torch.testing.assert_close(guided.eps, (1 + w) * cond - w * uncond, rtol=1e-8, atol=1e-8)
    assert w_from_scale(scale_from_w(w)) == w


@pytest.mark.parametrize("scale", SCALES)
def test_classifier_free_is_classifier_guidance_with_the_exact_classifier(mixture, level, scale):
    x = batch(mixture, level)
    free = classifier_free(mixture, LABELS, NULL, scale)(x, level)
    classified = classifier_guidance(mixture, mixture.classifier(LABELS), scale)(x, level)
    torch.testing.assert_close(free.score, classified.score, rtol=1e-6, atol=1e-6)


def test_linear_in_every_spelling(mixture, level):
    """Before any threshold, guiding eps is guiding x_0, v and the score."""
    x = batch(mixture, level)
    guided, cond, uncond = (
        classifier_free(mixture, LABELS, NULL, 3.0)(x, level),
        mixture(x, level, LABELS),
        mixture(x, level),
    )
    for kind in ("x0", "v", "score"):
        c, u = getattr(cond, kind), getattr(uncond, kind)
        torch.testing.assert_close(getattr(guided, kind), u + 3.0 * (c - u), rtol=1e-6, atol=1e-6)


def test_null_conditions_are_per_sample(mixture):
    """Rows whose condition is the null are unconditional at every scale, the others guided as if alone."""
    x, labels = batch(mixture, MIDDLE), torch.tensor([2, -1, 0, -1])
    guided = classifier_free(mixture, labels, NULL, 4.0)(x, MIDDLE).eps
    torch.testing.assert_close(guided[[1, 3]], mixture(x, MIDDLE).eps[[1, 3]])
    for i in (0, 2):
        alone = classifier_free(mixture, labels[i : i + 1], NULL[:1], 4.0)(x[i : i + 1], MIDDLE).eps
        torch.testing.assert_close(guided[i : i + 1], alone)


def network(x, time, condition):
    """Four channels in; noise 1 x + door, variance channels 0.1 door, so every output row shows its condition."""
    door = condition.vector[:, :1, None, None] + 0 * x
    return torch.cat([x + door + time[:, None, None, None] / 1000, 0.1 * door], dim=1)


def test_all_channels_are_guided_and_the_variance_is_conditional():
    """Four channels, as in latent diffusion: none is left unguided; one pass for both halves."""
    calls = []

    def counted(x, time, condition):
        calls.append(len(x))
        return network(x, time, condition)

    model = as_denoiser(counted, variance="learned")
    x = torch.randn(3, 4, 2, 2)
    level = linear_schedule().level(torch.tensor([10, 500, 900]))
    condition, null = Condition(vector=torch.full((3, 8), 2.0)), Condition(vector=torch.full((3, 8), -1.0))
    guided = classifier_free(model, condition, null, 3.0)(x, level)
    cond, uncond = model(x, level, condition), model(x, level, null)
    torch.testing.assert_close(guided.eps, uncond.eps + 3.0 * (cond.eps - uncond.eps))
    torch.testing.assert_close(guided.eps, x + level.time[:, None, None, None] / 1000 + (-1 + 3 * 3))
    torch.testing.assert_close(guided.fraction, cond.fraction)
    torch.testing.assert_close(guided.fraction, torch.full_like(x, 0.6))
    assert calls == [6, 3, 3]


# --- classifier guidance --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_classifier_guidance_shifts_the_score(mixture, level, scale):
    x, classifier = batch(mixture, level), mixture.classifier(LABELS)
    guided = classifier_guidance(mixture, classifier, scale)(x, level)
    expected = mixture(x, level).score + scale * autograd_score(classifier, x, level)
    torch.testing.assert_close(guided.score, expected, rtol=1e-6, atol=1e-6)


def test_scale_one_is_bayes_rule(mixture, level):
    x = batch(mixture, level)
    guided = classifier_guidance(mixture, mixture.classifier(LABELS), 1.0)(x, level)
    torch.testing.assert_close(guided.score, mixture(x, level, LABELS).score, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(guided.x0, mixture(x, level, LABELS).x0, rtol=1e-6, atol=1e-6)


def test_gradient_is_of_each_sample_alone(mixture, level):
    """A sum over the batch, not a mean: the gradient of a sample does not know how many others there are."""
    x = batch(mixture, level, 4)
    classifier = mixture.classifier(1)
    together = grad_log_prob(classifier, x, level)
    for i in range(4):
        row, alone = slice(i, i + 1), level
        if isinstance(level.alpha, torch.Tensor):
            alone = NoiseLevel(level.alpha[row], level.sigma[row], level.time[row])
        torch.testing.assert_close(together[row], grad_log_prob(classifier, x[row], alone), rtol=1e-7, atol=1e-9)


def test_gradient_against_finite_differences(mixture):
    x, classifier, h = batch(mixture, MIDDLE), mixture.classifier(LABELS), 1e-5
    for i, axis in enumerate(torch.eye(2, dtype=torch.float64)):
        slope = (classifier(x + h * axis, MIDDLE) - classifier(x - h * axis, MIDDLE)) / (2 * h)
        torch.testing.assert_close(grad_log_prob(classifier, x, MIDDLE)[:, i], slope, rtol=1e-6, atol=1e-8)


def test_classifier_is_asked_at_x_t_and_its_own_level(mixture):
    """The same x_t and the same level as the denoiser, original network times included."""
    asked = []

    def log_prob(x, level):
        asked.append((x.detach().clone(), level))
        return mixture.classifier(1)(x, level)

    levels = linear_schedule().levels(4)
    states = list(ddim()(classifier_guidance(mixture, log_prob, 2.0), levels, torch.randn(3, 2).double()))
    assert [level.time for _, level in asked] == [999, 666, 333, 0]
    for (x, _), state in zip(asked, states, strict=True):
        assert torch.equal(x, state.prediction.x)


def test_nested_guidance_adds(mixture, level):
    x = batch(mixture, level)
    first, second = mixture.classifier(1), lambda x, level: -x.square().sum(1)
    nested = classifier_guidance(classifier_guidance(mixture, first, 2.0), second, 0.5)(x, level)
    expected = mixture(x, level).score + 2.0 * autograd_score(first, x, level) - 0.5 * 2 * x
    torch.testing.assert_close(nested.score, expected, rtol=1e-6, atol=1e-6)


def test_guided_and_free_nest(mixture):
    x, classifier = batch(mixture, MIDDLE), mixture.classifier(LABELS)
    both = classifier_guidance(classifier_free(mixture, LABELS, NULL, 2.0), classifier, 1.5)(x, MIDDLE)
    one = classifier_free(mixture, LABELS, NULL, 3.5)(x, MIDDLE)
    torch.testing.assert_close(both.score, one.score)


def test_guidance_works_where_no_gradient_is_recorded(mixture):
    x = batch(mixture, MIDDLE)
    with torch.no_grad():
        guided = classifier_guidance(mixture, mixture.classifier(1), 2.0)(x, MIDDLE)
    assert not guided.eps.requires_grad
    torch.testing.assert_close(guided.eps, classifier_guidance(mixture, mixture.classifier(1), 2.0)(x, MIDDLE).eps)


def test_half_precision_classifiers_are_summed_in_single():
    """The sum of 4 values of -30000 overflows in half precision; the gradient does not."""
    x = torch.ones(4, 1)
    gradient = grad_log_prob(lambda x, level: (-30000 * x[:, 0]).half(), x, MIDDLE)
    torch.testing.assert_close(gradient, torch.full((4, 1), -30000.0))


def test_guided_sampling_at_scale_one_draws_the_class(line, generator):
    """Unconditional denoiser and exact classifier together draw p(x | c): Kolmogorov-Smirnov; scale 3 does not."""
    n, levels = 2000, cosine_schedule().levels(150)
    x_T = randn((n, 1), generator, torch.float64)
    parts = line.conditional(0)
    normal = torch.distributions.Normal(parts.means[:, 0], parts.variance.sqrt())

    def gap(scale):
        x = sample(ddim(), classifier_guidance(line, line.classifier(0), scale), levels, x_T)[:, 0].sort().values
        exact = normal.cdf(x[:, None]) @ parts.weights
        return (exact - (torch.arange(n) + 0.5) / n).abs().max()

    bound = 2.2 / n**0.5
    assert gap(1.0) < bound < gap(3.0)


# --- mean shift -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", ["beta", "beta_tilde", "learned"])
def test_mean_shift_is_sigma_times_scaled_gradient(mixture, variance):
    """One ancestral step with the same noise, guided and not: the difference is Sigma s grad, by hand."""
    levels = linear_schedule().levels(25)
    t, s = levels[10:12]
    x, fraction = batch(mixture, t), torch.rand(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    base = lambda x, level: mixture(x, level).replace(fraction=fraction)
    classifier = mixture.classifier(LABELS)
    step = lambda denoiser: next(ancestral(variance)(denoiser, [t, s], x, torch.Generator().manual_seed(2))).x
    high, low = beta(t, s), beta_tilde(t, s)
    covariance = {"beta": high, "beta_tilde": low, "learned": high**fraction * low ** (1 - fraction)}[variance]
    expected = covariance * 3.0 * autograd_score(classifier, x, t)
    torch.testing.assert_close(step(mean_shift_guidance(base, classifier, 3.0)) - step(base), expected)


def test_mean_shift_leaves_the_prediction_alone(mixture):
    x = batch(mixture, MIDDLE)
    guided, plain = mean_shift_guidance(mixture, mixture.classifier(1), 2.0)(x, MIDDLE), mixture(x, MIDDLE)
    assert torch.equal(guided.eps, plain.eps) and torch.equal(guided.x0, plain.x0)


def test_nested_mean_shifts_add(mixture):
    x, first, second = batch(mixture, MIDDLE), mixture.classifier(1), mixture.classifier(LABELS)
    nested = mean_shift_guidance(mean_shift_guidance(mixture, first, 2.0), second, 0.5)(x, MIDDLE)
    expected = 2.0 * autograd_score(first, x, MIDDLE) + 0.5 * autograd_score(second, x, MIDDLE)
    torch.testing.assert_close(nested.tilt, expected)


@pytest.mark.parametrize(("n", "low", "high"), [(1000, 1.0, 1.02), (25, 1.4, 1.6)])
def test_score_shift_and_mean_shift_are_not_the_same_update(mixture, n, low, high):
    """Through x_0 the score shift moves the mean by (beta / scale) s grad, ADM by Sigma s grad with Sigma <= beta."""
    levels = linear_schedule().levels(n)
    classifier, ratios = mixture.classifier(1), []
    for t, s in pairwise(levels[:32]):
        x = batch(mixture, t, 1)
        gradient = autograd_score(classifier, x, t)
        shifted = classifier_guidance(mixture, classifier, 1.0)(x, t)
        moved = posterior_mean(x, shifted.x0, t, s) - posterior_mean(x, mixture(x, t).x0, t, s)
        torch.testing.assert_close(moved, beta(t, s) / transition(s, t)[0] * gradient, rtol=1e-5, atol=1e-9)
        ratios.append(1 / transition(s, t)[0])
    assert low < max(ratios) < high and min(ratios) > 1


def test_mean_shift_and_score_shift_agree_in_the_limit(line, generator):
    """Mean of guided ancestral samples of a Gaussian class posterior, both rules, at few and at many steps."""
    world = GaussianMixtureDenoiser(torch.tensor([[-0.5], [0.5]]), 0.25)
    classifier = world.classifier(1)
    gaps = []
    for n in (10, 160):
        levels, x_T = cosine_schedule().levels(n), randn((500, 1), torch.Generator().manual_seed(n), torch.float64)
        draws = [
            sample(ancestral("beta_tilde"), rule(world, classifier, 2.0), levels, x_T, torch.Generator().manual_seed(3))
            for rule in (mean_shift_guidance, classifier_guidance)
        ]
        gaps.append((draws[0] - draws[1]).abs().mean().item())
    assert gaps[1] < gaps[0] / 6


# --- threshold ------------------------------------------------------------------------------------------------------


def test_static_threshold_clamps_x0_and_rederives_eps(mixture, level):
    x = batch(mixture, level)
    wild = lambda x, level: mixture(x, level).with_x0(mixture(x, level).x0 * 9)
    guided, alpha_sigma = static_threshold(wild)(x, level), level.like(x)
    expected = (mixture(x, level).x0 * 9).clamp(-1, 1)
    torch.testing.assert_close(guided.x0, expected)
    torch.testing.assert_close(guided.eps, (x - alpha_sigma[0] * expected) / alpha_sigma[1])
    torch.testing.assert_close(diffuse(guided.x0, level, guided.eps), x)
    assert guided.x0.abs().max() == 1  # something was clamped


def test_static_threshold_inside_its_range_changes_nothing(mixture):
    x = batch(mixture, MIDDLE)
    torch.testing.assert_close(static_threshold(mixture, -9.0, 9.0)(x, MIDDLE).eps, mixture(x, MIDDLE).eps)


def test_static_threshold_keeps_variance_and_tilt():
    x = torch.randn(2, 3)
    full = Prediction(x, MIDDLE, 9 * x, "x0", fraction=x.sigmoid(), tilt=2 * x)
    out = static_threshold(lambda x, level: full)(x, MIDDLE)
    assert out.fraction is full.fraction and out.tilt is full.tilt


# --- two denoisers: autoguidance, interval, rescaling ---------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_autoguidance_is_the_formula(mixture, level, scale):
    x, weak = batch(mixture, level), smeared(mixture)
    guided = autoguidance(mixture, weak, scale)(x, level)
    strong, poor = mixture(x, level).eps, weak(x, level).eps
    torch.testing.assert_close(guided.eps, poor + scale * (strong - poor), rtol=1e-8, atol=1e-8)


def test_autoguidance_at_one_is_the_model_and_asks_nobody_else(mixture):
    assert autoguidance(mixture, lambda x, level: pytest.fail("asked"), 1) is mixture


def test_autoguidance_by_the_unconditional_model_is_classifier_free(mixture, level):
    x = batch(mixture, level)
    auto = autoguidance(conditioned(mixture, LABELS), conditioned(mixture, NULL), 3.0)(x, level)
    free = classifier_free(mixture, LABELS, NULL, 3.0)(x, level)
    torch.testing.assert_close(auto.eps, free.eps, rtol=1e-8, atol=1e-8)


def test_autoguidance_cancels_errors_that_are_aligned():
    """A weak model that errs k times as far in the same direction: s = k / (k - 1) leaves the truth."""
    x, error = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    truth = lambda x, level: Prediction(x, level, 2 * x, "eps")
    wrong = lambda k: lambda x, level: Prediction(x, level, 2 * x + k * error, "eps")
    for k in (2.0, 3.0, 5.0):
        guided = autoguidance(wrong(1.0), wrong(k), k / (k - 1))(x, MIDDLE)
        torch.testing.assert_close(guided.eps, truth(x, MIDDLE).eps)


def test_autoguidance_keeps_the_models_variance_and_reads_any_parametrisation():
    x = torch.randn(2, 3)
    strong = Prediction(x, MIDDLE, x.cos(), "v", fraction=x.sigmoid())
    weak = Prediction(x, MIDDLE, x.sin(), "x0", fraction=x.tanh())
    guided = autoguidance(lambda x, level: strong, lambda x, level: weak, 2.0)(x, MIDDLE)
    assert guided.fraction is strong.fraction
    torch.testing.assert_close(guided.eps, 2 * strong.eps - weak.eps)


def test_interval_is_open_below_and_closed_above(mixture):
    """low < sigma / alpha <= high, so that neighbouring intervals share no level."""
    marked = lambda name: lambda x, level: name
    limited = guidance_interval(marked("guided"), marked("plain"), 0.5, 2.0)
    x = torch.zeros(1, 2)
    at = {s: limited(x, NoiseLevel(1.0, s, 0)) for s in (0.1, 0.5, 0.51, 1.0, 2.0, 2.01, 80.0)}
    assert [s for s, name in at.items() if name == "guided"] == [0.51, 1.0, 2.0]


def test_interval_is_the_ratio_not_sigma():
    """The published bounds are for alpha = 1; a variance-preserving level has the same ratio, another sigma."""
    limited = guidance_interval(lambda x, level: "guided", lambda x, level: "plain", 0.19, 1.61)
    x = torch.zeros(1, 2)
    names = [limited(x, NoiseLevel(1 / math.hypot(1, r), r / math.hypot(1, r), 0)) for r in (0.18, 0.2, 1.6, 1.7)]
    assert names == ["plain", "guided", "guided", "plain"]


def test_interval_of_everything_guides_everywhere(mixture, level):
    x, guided = batch(mixture, level), classifier_free(mixture, LABELS, NULL, 3.0)
    everywhere = guidance_interval(guided, conditioned(mixture, LABELS), 0.0, math.inf)(x, level)
    torch.testing.assert_close(everywhere.eps, guided(x, level).eps, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("per_sample", [False, True])
def test_an_interval_without_an_upper_end_guides_from_pure_noise(mixture, per_sample):
    """Where alpha is 0 the ratio is infinite: neither infinity times zero nor a division decides."""
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    alpha, sigma = torch.tensor([0.0, 0.0, 1.0, 0.6]).double(), torch.tensor([1.0, 80.0, 0.0, 0.8]).double()
    everywhere = guidance_interval(Marked(1.0), Marked(0.0), 0.0, math.inf)
    bounded = guidance_interval(Marked(1.0), Marked(0.0), 0.0, 1e9)
    for limited, expected in ((everywhere, [1, 1, 0, 1]), (bounded, [0, 0, 0, 1])):
        if per_sample:
            found = limited(x, NoiseLevel(alpha, sigma, torch.arange(4))).eps[:, 0]
        else:
            levels = [NoiseLevel(a, s, 0) for a, s in zip(alpha.tolist(), sigma.tolist(), strict=True)]
            found = torch.stack([limited(x[:1], level).eps[0, 0] for level in levels])
        assert found.tolist() == expected


def test_interval_asks_only_who_is_needed(mixture):
    """No second pass outside: that is half of the point."""
    never = lambda x, level: pytest.fail("asked")
    x = batch(mixture, MIDDLE)
    ratio = MIDDLE.sigma / MIDDLE.alpha
    guidance_interval(never, mixture, ratio * 1.01, math.inf)(x, MIDDLE)
    guidance_interval(mixture, never, 0.0, ratio)(x, MIDDLE)


def test_interval_of_a_batch_with_many_levels(mixture):
    level = linear_schedule().level(torch.tensor([10, 200, 500, 990]))
    x = batch(mixture, level)
    guided, plain = classifier_free(mixture, LABELS, NULL, 3.0), conditioned(mixture, LABELS)
    ratio = level.sigma / level.alpha
    limited = guidance_interval(guided, plain, ratio[0].item(), ratio[2].item())(x, level)
    expected = [plain, guided, guided, plain]
    for i, denoiser in enumerate(expected):
        torch.testing.assert_close(limited.eps[i], denoiser(x, level).eps[i])


@pytest.mark.parametrize("kind", ["v", "eps", "x0", "score"])
def test_rescaling_matches_the_deviation_of_each_sample(mixture, kind):
    x, plain = batch(mixture, MIDDLE), conditioned(mixture, LABELS)
    guided = classifier_free(mixture, LABELS, NULL, 6.0)
    read = lambda denoiser: getattr(denoiser(x, MIDDLE), kind)
    half = read(rescaled(guided, plain, 0.5, kind))
    torch.testing.assert_close(read(rescaled(guided, plain, 0.0, kind)), read(guided))
    torch.testing.assert_close(read(rescaled(guided, plain, 1.0, kind)).std(1), read(plain).std(1))
    torch.testing.assert_close(half.std(1), (read(guided).std(1) + read(plain).std(1)) / 2)
    torch.testing.assert_close(half / half.norm(dim=1, keepdim=True), read(guided) / read(guided).norm(dim=1)[:, None])


def test_rescaling_is_over_all_numbers_of_a_sample_and_no_others():
    x = torch.randn(3, 2, 4, 4)
    guided, plain = (Prediction(x, MIDDLE, torch.randn(3, 2, 4, 4) * s + 1, "v") for s in (5.0, 1.0))
    out = rescaled(lambda x, level: guided, lambda x, level: plain, 0.7)(x, MIDDLE).v
    for i in range(3):
        g, c = guided.v[i], plain.v[i]
        torch.testing.assert_close(out[i], 0.7 * g * c.std() / g.std() + 0.3 * g)


def test_rescaling_depends_on_the_parametrisation(mixture):
    x, plain, guided = (
        batch(mixture, MIDDLE),
        conditioned(mixture, LABELS),
        classifier_free(mixture, LABELS, NULL, 6.0),
    )
    v, eps = (rescaled(guided, plain, 1.0, kind)(x, MIDDLE).x0 for kind in ("v", "eps"))
    assert (v - eps).abs().max() > 0.01


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (-0.1, 1.0, "low must be a finite number >= 0, got -0.1"),
        (1.0, 1.0, "0 <= low < high, as sigma / alpha; got 1.0 and 1.0"),
        (2.0, 1.0, "0 <= low < high, as sigma / alpha; got 2.0 and 1.0"),
        (math.nan, 1.0, "low must be a finite number >= 0, got nan"),
        (0.0, math.nan, "high must be a number > 0, infinity for no upper end, got nan"),
    ],
)
def test_intervals_that_are_none(mixture, low, high, message):
    with pytest.raises(ValueError, match=message):
        guidance_interval(mixture, mixture, low, high)


def test_rescaling_of_bad_input(line, mixture):
    for phi in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"phi must be a number from 0 to 1, got {phi}"):
            rescaled(mixture, mixture, phi)
    with pytest.raises(ValueError, match="kind must be one of x0, eps, v, score; got 'mean'"):
        rescaled(mixture, mixture, 0.7, "mean")
    with pytest.raises(ValueError, match="a sample of one number"):
        rescaled(line, line)(torch.zeros(2, 1), MIDDLE)


# --- guides ---------------------------------------------------------------------------------------------------------


def as_guides(mixture):
    """From a guide to the denoiser that it is to make of a mixture, its labels and no labels."""
    log_prob, told, free = mixture.classifier(LABELS), conditioned(mixture, LABELS), conditioned(mixture, NULL)
    weak = conditioned(smeared(mixture), LABELS)
    within = lambda guided: guidance_interval(guided, told, 0.3, 5.0)
    return {
        cfg(3.0): classifier_free(mixture, LABELS, NULL, 3.0),
        classifier(log_prob, 2.0): classifier_guidance(free, log_prob, 2.0),
        adm(log_prob, 2.0): mean_shift_guidance(static_threshold(told), log_prob, 2.0),
        adm(log_prob, 2.0, ode=True): classifier_guidance(static_threshold(told), log_prob, 2.0),
        auto(weak, 2.0): autoguidance(told, weak, 2.0),
        interval(cfg(3.0), 0.3, 5.0): within(classifier_free(mixture, LABELS, NULL, 3.0)),
        interval(classifier(log_prob, 2.0), 0.3, 5.0): within(classifier_guidance(free, log_prob, 2.0)),
    }


def test_a_guide_makes_the_denoiser_of_its_name(mixture, level):
    x = batch(mixture, level)
    for guide, denoiser in as_guides(mixture).items():
        found, expected = guide(mixture, LABELS, NULL)(x, level), denoiser(x, level)
        assert torch.equal(found.eps, expected.eps)
        assert (found.tilt is None) == (expected.tilt is None)
        assert found.tilt is None or torch.equal(found.tilt, expected.tilt)


def test_bayes_rule_makes_two_guides_one(mixture, level):
    """The classifier of the world itself: s = 1 is the conditional model, and classifier-free at any scale."""
    x, log_prob = batch(mixture, level), mixture.classifier(LABELS)
    for scale in (1.0, 2.5):
        free, by = (guide(mixture, LABELS, NULL)(x, level).eps for guide in (cfg(scale), classifier(log_prob, scale)))
        torch.testing.assert_close(free, by, rtol=1e-6, atol=1e-6)


def test_only_scale_one_is_left_without_a_null(mixture):
    x = batch(mixture, MIDDLE)
    assert torch.equal(cfg(1.0)(mixture, LABELS, LABELS)(x, MIDDLE).eps, mixture(x, MIDDLE, LABELS).eps)
    for scale in (0.0, 3.0):
        with pytest.raises(ValueError, match=f"knows no null condition to guide at scale {scale:g}; only scale 1"):
            cfg(scale)(mixture, LABELS, LABELS)


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_scales_that_are_not_finite(mixture, scale):
    for make in (
        lambda: cfg(scale),
        lambda: classifier(mixture.classifier(1), scale),
        lambda: adm(mixture.classifier(1), scale),
        lambda: auto(mixture, scale),
        lambda: classifier_free(mixture, LABELS, NULL, scale),
        lambda: classifier_guidance(mixture, mixture.classifier(1), scale),
        lambda: mean_shift_guidance(mixture, mixture.classifier(1), scale),
        lambda: autoguidance(mixture, mixture, scale),
    ):
        with pytest.raises(ValueError, match=f"scale must be a finite number, got {scale}"):
            make()


def test_classifier_that_returns_a_table(mixture):
    with pytest.raises(ValueError, match=r"must return shape \(4,\), one number per sample, not \(4, 3\)"):
        classifier_guidance(mixture, mixture.log_prob_label, 1.0)(batch(mixture, MIDDLE), MIDDLE)


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (1.0, -1.0, "low < high, got 1.0 and -1.0"),
        (0.0, 0.0, "low < high, got 0.0 and 0.0"),
        (math.nan, 1.0, "low must be a finite number, got nan"),
    ],
)
def test_threshold_without_a_range(mixture, low, high, message):
    with pytest.raises(ValueError, match=message):
        static_threshold(mixture, low, high)


def test_labels_out_of_range_reach_the_user(mixture):
    with pytest.raises(ValueError, match=r"-1 \(none\) or 0 ... 2"):
        classifier_free(mixture, torch.tensor([0, 1, 3, 0]), NULL, 2.0)(batch(mixture, MIDDLE), MIDDLE)


def test_another_model_ends_the_chain(mixture):
    """Asked at the levels up to sigma and at no other, with the guide of the first."""
    levels, x, asked = linear_schedule().levels(7), torch.zeros(2, 2, dtype=torch.float64), []

    def named(name):
        def model(x, level, label):
            asked.append((name, level.time))
            return mixture(x, level, label)

        return model

    label, none = torch.ones(2, dtype=torch.long), torch.full((2,), -1)
    guide = ends_with(named("last"), levels[-2].sigma)
    sample(ddim(), guide(named("first"), label, none), levels, x)
    assert [name for name, _ in asked] == ["first"] * 6 + ["last"] and asked[-1][1] == 0
    both = ends_with(mixture, 0.5, cfg(2.0))(mixture, label, none)
    expected = classifier_free(mixture, label, none, 2.0)
    for level in (levels[0], levels[-2]):
        torch.testing.assert_close(both(x, level).x0, expected(x, level).x0)
    with pytest.raises(ValueError, match=r"lies in \[0, 1\], got 2"):
        ends_with(mixture, 2)


# --- dynamic thresholding -------------------------------------------------------------------------------------------


def answers(x0):
    """A denoiser that believes in one x_0."""
    return lambda x, level: Prediction(x, level, x0, "x0")


@pytest.mark.parametrize("share", [0.3, 0.9, 0.995, 1.0])
def test_the_percentile_rule_by_brute_force(share):
    """NumPy sorts each picture by itself, and divides."""
    x0 = torch.randn(6, 3, 5, 7, generator=torch.Generator().manual_seed(0)) * torch.arange(6)[:, None, None, None]
    got = dynamic_threshold(share)(answers(x0))(torch.zeros_like(x0), MIDDLE).x0.numpy()
    for picture, mine in zip(x0.numpy(), got, strict=True):
        s = max(1.0, np.quantile(np.abs(picture), share))
        np.testing.assert_allclose(mine, np.clip(picture, -s, s) / s, rtol=1e-5, atol=1e-6)


def test_where_the_percentile_is_at_most_one_the_threshold_is_static():
    x0 = torch.cat([torch.full((995,), 0.9), torch.full((5,), 7.0)]).reshape(1, 1, 40, 25)
    x = torch.randn(1, 1, 40, 25, generator=torch.Generator().manual_seed(1))
    dynamic, static = (f(answers(x0))(x, MIDDLE) for f in (dynamic_threshold(0.99), static_threshold))
    assert torch.equal(dynamic.x0, static.x0) and torch.equal(dynamic.eps, static.eps)
    assert float(dynamic_threshold(1.0)(answers(x0))(x, MIDDLE).x0.min()) == pytest.approx(0.9 / 7)


def test_quantiles_of_more_numbers_than_older_torch_takes():
    n = 2**24 + 3
    values = torch.arange(n, dtype=torch.float64)[None]
    shuffled = values[:, torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(quantile(shuffled, 0.995), torch.tensor([0.995 * (n - 1)], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_thresholded_by_the_quantile_of_their_numbers(dtype):
    x0 = (4 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))).to(dtype)
    got = dynamic_threshold(0.9)(answers(x0))(torch.zeros_like(x0), MIDDLE).x0
    expected = dynamic_threshold(0.9)(answers(x0.double()))(torch.zeros_like(x0.double()), MIDDLE).x0
    assert got.dtype is dtype and torch.equal(got, expected.to(dtype))


@pytest.mark.parametrize("share", [0, 1.5, math.nan, "much"])
def test_percentiles_that_are_none(share):
    with pytest.raises(ValueError, match="percentile must be"):
        dynamic_threshold(share)
