"""The bound: KLs and the decoder by quadrature, its sum by brute force on a grid, and its gradient."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from scipy.stats import norm

from minidiff.exact import GaussianDenoiser, GaussianMixtureDenoiser
from minidiff.likelihood import (
    decoder_nll,
    discretized_gaussian_log_likelihood,
    gaussian_kl,
    hybrid_vlb,
    prior_kl,
    step_kl,
    vlb_terms,
)
from minidiff.prediction import Prediction
from minidiff.process import beta, beta_tilde, beta_tilde_floor, diffuse, posterior_mean, reverse_log_variance
from minidiff.schedule import DATA, clipped_cosine_schedule, cosine_schedule, edm_schedule, linear_schedule

KINDS = ["beta", "beta_tilde", "learned"]


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=3):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def double(value):
    return torch.as_tensor(value, dtype=torch.float64)


@pytest.fixture
def grey():
    """A discrete world on the line: 17 grey values from -1 to 1 with unequal probabilities."""
    probability = torch.rand(17, generator=seeded(), dtype=torch.float64) + 0.05
    return GaussianMixtureDenoiser(torch.linspace(-1, 1, 17, dtype=torch.float64)[:, None], 0.0, probability)


def with_fraction(denoiser, fraction=0.4):
    return lambda x, level: denoiser(x, level).replace(fraction=torch.full_like(x, fraction))


# --- Gaussians ------------------------------------------------------------------------------------------------------


def test_gaussian_kl_against_torch_distributions():
    m1, v1, m2, v2 = noise(4, 20)
    first, second = (torch.distributions.Normal(m, (0.5 * v).exp()) for m, v in ((m1, v1), (m2, v2)))
    torch.testing.assert_close(gaussian_kl(m1, v1, m2, v2), torch.distributions.kl_divergence(first, second))
    assert gaussian_kl(0.3, -1.0, 0.3, -1.0) == 0


def test_gaussian_kl_by_quadrature():
    x = torch.linspace(-15, 15, 100_001, dtype=torch.float64)
    m1, v1, m2, v2 = double([0.4, -0.7, -1.0, 0.9])
    log_p, log_q = (torch.distributions.Normal(m, (0.5 * v).exp()).log_prob(x) for m, v in ((m1, v1), (m2, v2)))
    expected = torch.trapezoid(log_p.exp() * (log_p - log_q), x)
    torch.testing.assert_close(gaussian_kl(m1, v1, m2, v2), expected)


# --- decoder --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [2, 17, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masses_of_the_bins_sum_to_one(bins, dtype):
    x = torch.linspace(-1, 1, bins, dtype=dtype)
    for mean in (-3.0, -0.97, 0.013, 1.0):
        for log_variance in (-14.0, -9.0, -3.0, 0.0, 4.0):
            log_mass = discretized_gaussian_log_likelihood(x, torch.full_like(x, mean), log_variance, bins)
            assert log_mass.exp().sum().item() == pytest.approx(1, abs=1e-4 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("bins", [17, 256])
@pytest.mark.parametrize("log_variance", [-9.8, -4.0, 1.0])
def test_decoder_against_scipy(bins, log_variance):
    """log of a difference of distribution functions, where that difference has digits left."""
    x, std, half = torch.linspace(-1, 1, bins, dtype=torch.float64), math.exp(0.5 * log_variance), 1 / (bins - 1)
    mean = x + 1.5 * std * torch.sin(torch.arange(bins))
    upper, lower = (x + half - mean) / std, (x - half - mean) / std
    upper[-1], lower[0] = math.inf, -math.inf
    expected = torch.from_numpy(norm.cdf(upper.numpy()) - norm.cdf(lower.numpy())).log()
    got = discretized_gaussian_log_likelihood(x, mean, log_variance, bins)
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("distance", [0.5, 1.0, 1.9])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("edge", [False, True])
def test_decoder_in_the_far_tails_against_many_digits(distance, sign, edge):
    """Up to 260 standard deviations away, where the distribution function itself is 0 or 1 in double precision."""
    mpmath.mp.dps = 60
    std, half = math.exp(-4.91), 1 / 255
    value = sign * (1.0 if edge else 127 / 255)
    mean = value - sign * distance
    lower, upper = mpmath.mpf(value - half - mean) / std, mpmath.mpf(value + half - mean) / std
    if sign < 0:
        lower, upper = -upper, -lower
    tail = lambda z: mpmath.erfc(z / mpmath.sqrt(2)) / 2  # mass above z
    expected = float(mpmath.log(tail(lower) if edge else tail(lower) - tail(upper)))
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        x, m = torch.tensor([value], dtype=dtype), torch.tensor([mean], dtype=dtype)
        got = discretized_gaussian_log_likelihood(x, m, -9.82).item()
        assert got == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decoder_and_its_gradient_are_finite_everywhere(dtype):
    values = torch.linspace(-1, 1, 256, dtype=dtype)
    x, mean = torch.meshgrid(values[[0, 1, 100, 254, 255]], torch.linspace(-30, 30, 41, dtype=dtype), indexing="ij")
    for log_variance in (-12.0, -9.82, 0.0, 6.0):
        m = mean.clone().requires_grad_()
        v = torch.full_like(m, log_variance).requires_grad_()
        out = discretized_gaussian_log_likelihood(x, m, v)
        assert bool(torch.isfinite(out).all()) and bool((out <= 1e-6).all())
        out.sum().backward()
        assert bool(torch.isfinite(m.grad).all()) and bool(torch.isfinite(v.grad).all())


# --- terms ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [linear_schedule, cosine_schedule, edm_schedule])
def test_prior_term(make):
    """KL(N(alpha x_0, sigma^2) || N(0, alpha^2 + sigma^2)), which is N(0, I) for VP; bits, mean over dimensions."""
    level, x0 = make().levels(3)[0], torch.rand(4, 2, 3, dtype=torch.float64) * 2 - 1
    q = torch.distributions.Normal(level.alpha * x0, level.sigma)
    p = torch.distributions.Normal(0.0, double(math.hypot(level.alpha, level.sigma)))
    expected = torch.distributions.kl_divergence(q, p).mean((1, 2)) / math.log(2)
    torch.testing.assert_close(prior_kl(x0, level), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("variance", KINDS)
def test_step_term_by_quadrature(line, variance):
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) from the two densities on a grid of x_s."""
    levels = linear_schedule().levels(20)
    t, s = levels[12:14]
    x0, x_t = double([[0.3]]), double([[0.1]])
    prediction = with_fraction(line)(x_t, t)
    q = torch.distributions.Normal(posterior_mean(x_t, x0, t, s), beta_tilde(t, s) ** 0.5)
    log_variance = double(reverse_log_variance(prediction, t, s, variance, 1e-9))
    p = torch.distributions.Normal(posterior_mean(x_t, prediction.x0, t, s), (0.5 * log_variance).exp())
    x_s = (q.mean + q.stddev * torch.linspace(-12, 12, 40_001, dtype=torch.float64))[0]
    log_q, log_p = q.log_prob(x_s)[0], p.log_prob(x_s)[0]
    kl = torch.trapezoid(log_q.exp() * (log_q - log_p), x_s)
    got = step_kl(prediction, x0, t, s, variance, 1e-9)
    torch.testing.assert_close(got, kl[None] / math.log(2), rtol=1e-7, atol=1e-9)


def test_step_term_is_the_weighted_squared_error():
    """With beta-tilde the KL is |mean error|^2 / (2 beta-tilde): the weight that L_simple leaves out."""
    t, s = linear_schedule().levels(50)[20:22]
    x0, eps, wrong = noise(3, 4, 5, seed=1)
    x_t = diffuse(x0, t, eps)
    error = posterior_mean(x_t, x0, t, s) - posterior_mean(x_t, Prediction(x_t, t, wrong, "eps").x0, t, s)
    expected = (error**2 / (2 * beta_tilde(t, s))).mean(1) / math.log(2)
    torch.testing.assert_close(step_kl(Prediction(x_t, t, wrong, "eps"), x0, t, s, "beta_tilde", 1e-9), expected)


def test_decoder_term_is_the_mean_negative_log_mass_in_bits():
    levels = linear_schedule().levels()
    t, x0 = levels[-2], torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(2, 6)
    predicted = x0 + 0.01 * noise(2, 6)
    prediction, floor = Prediction(x0, t, predicted, "x0"), beta_tilde_floor(levels)
    mass = discretized_gaussian_log_likelihood(x0, predicted, math.log(floor), 12)
    torch.testing.assert_close(
        decoder_nll(prediction, x0, t, DATA, "beta_tilde", floor, 12), -mass.mean(1) / math.log(2)
    )


def test_terms_are_per_dimension_in_bits():
    """Repeating every pixel leaves bits/dim where they are, given the same noise for both copies."""
    world, levels = GaussianDenoiser(torch.zeros(1), 0.3), linear_schedule().levels(5)
    floor, x0, eps = beta_tilde_floor(levels), torch.rand(3, 1, dtype=torch.float64), noise(3, 1)
    for t, s in ((levels[0], levels[1]), (levels[2], levels[3])):
        x_t = diffuse(x0, t, eps)
        one = step_kl(world(x_t, t), x0, t, s, "beta", floor)
        twice = Prediction(x_t.repeat(1, 2), t, world(x_t, t).x0.repeat(1, 2), "x0")
        torch.testing.assert_close(step_kl(twice, x0.repeat(1, 2), t, s, "beta", floor), one)
    torch.testing.assert_close(prior_kl(x0.repeat(1, 2), levels[0]), prior_kl(x0, levels[0]))


# --- the bound ------------------------------------------------------------------------------------------------------


def brute_force(denoiser, x0, t, s, bins, floor):
    """A two-step model x_t -> x_s -> x_0: its -log2 p(x_0) and its bound, both summed on a grid of x_t and x_s."""
    x_t = x_s = torch.linspace(-7, 7, 1401, dtype=torch.float64)
    width = x_t[1] - x_t[0]
    normal = lambda mean, std: torch.distributions.Normal(mean, std)
    log_prior = normal(0.0, double(math.hypot(t.alpha, t.sigma))).log_prob(x_t)
    step_mean = posterior_mean(x_t[:, None], denoiser(x_t[:, None], t).x0, t, s)
    log_step = normal(step_mean, beta_tilde(t, s) ** 0.5).log_prob(x_s)
    mean = denoiser(x_s[:, None], s).x0[:, 0]
    log_decoder = discretized_gaussian_log_likelihood(torch.full_like(mean, x0), mean, math.log(floor), bins)
    log_joint = log_prior[:, None] + log_step + log_decoder
    nll = -(log_joint.flatten().logsumexp(0) + 2 * width.log())
    true_mean = posterior_mean(x_t[:, None], double([[x0]]), t, s)
    log_q = normal(double(t.alpha * x0), t.sigma).log_prob(x_t)[:, None]
    log_q = log_q + normal(true_mean, beta_tilde(t, s) ** 0.5).log_prob(x_s)
    bound = (log_q.exp() * (log_q - log_joint)).sum() * width**2
    return nll.item() / math.log(2), bound.item() / math.log(2)


@pytest.mark.parametrize("x0", [-1.0, 0.25])
def test_the_terms_sum_to_the_brute_force_bound(grey, x0):
    """vlb_terms averaged over noise equals the integral of log q / p over the whole path, and exceeds -log2 p(x_0)."""
    schedule = cosine_schedule()
    levels = [schedule.level(0.85), schedule.level(0.3), DATA]
    nll, bound = brute_force(grey, x0, *levels[:2], 17, beta_tilde_floor(levels))
    n = 40_000
    terms = vlb_terms(grey, torch.full((n, 1), x0, dtype=torch.float64), levels, seeded(), bins=17)
    total = terms.total
    assert terms.steps.shape == (1, n) and terms.prior.shape == terms.decoder.shape == total.shape == (n,)
    assert abs(total.mean().item() - bound) < 4.5 * total.std().item() / n**0.5
    assert bound > nll + 0.01 and total.mean().item() > nll


def test_the_bound_is_above_the_entropy_and_comes_close(grey):
    """Over data, the bound cannot fall below the entropy of the world, and with many steps it nearly gets there."""
    entropy = -(grey.weights * grey.weights.log2()).sum().item()
    x0 = grey.sample(4000, seeded())
    means = []
    for n in (32, 128, 512):
        total = vlb_terms(grey, x0, clipped_cosine_schedule().levels(n), seeded(), bins=17).total
        error = total.std().item() / len(x0) ** 0.5
        means.append(total.mean().item())
        assert means[-1] > entropy - 4.5 * error
    assert means[0] > means[1] > means[2] and means[2] < entropy + 0.35


def test_the_bound_of_a_gaussian_world_is_above_its_negative_log_likelihood():
    """Data N(0, 0.1), rounded to 256 values: mean bound against the mean of -log2 of the exact bin mass."""
    std, n = 0.1**0.5, 4000
    x0 = (((noise(n, 1) * std).clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    exact = -discretized_gaussian_log_likelihood(x0, torch.zeros_like(x0), math.log(0.1))[:, 0] / math.log(2)
    world = GaussianDenoiser(torch.zeros(1), 0.1)
    gaps = [vlb_terms(world, x0, clipped_cosine_schedule().levels(k), seeded()).total - exact for k in (10, 100)]
    assert all(gap.mean() > -4.5 * gap.std() / n**0.5 for gap in gaps)
    assert gaps[0].mean() > gaps[1].mean() > 0


@pytest.mark.parametrize(("fraction", "fixed"), [(0.0, "beta_tilde"), (1.0, "beta")])
def test_learned_variance_at_its_ends_is_a_fixed_one(grey, fraction, fixed):
    levels, x0 = linear_schedule().levels(6), grey.sample(5, seeded())
    learned = vlb_terms(with_fraction(grey, fraction), x0, levels, seeded(), "learned", bins=17)
    other = vlb_terms(grey, x0, levels, seeded(), fixed, bins=17)
    for name in ("prior", "steps", "decoder", "total"):
        torch.testing.assert_close(getattr(learned, name), getattr(other, name))


def test_a_chain_of_one_step_has_no_middle(grey):
    terms = vlb_terms(grey, grey.sample(5, seeded()), cosine_schedule().levels(1), seeded(), bins=17)
    assert terms.steps.shape == (0, 5)
    torch.testing.assert_close(terms.total, terms.prior + terms.decoder)


def test_no_gradient_is_recorded_in_the_bound():
    scale = torch.tensor(0.5, requires_grad=True)
    denoiser = lambda x, level: Prediction(x, level, scale * x, "x0")
    assert not vlb_terms(denoiser, torch.zeros(2, 3), linear_schedule().levels(4)).total.requires_grad


# --- training the variance ------------------------------------------------------------------------------------------


def hybrid_batch(dtype=torch.float64):
    """Per-sample levels with a last step among them, data that touches -1 and 1, and leaves to differentiate."""
    schedule = linear_schedule()
    t = schedule.level(torch.tensor([0, 1, 400, 999]))
    x0 = (torch.rand((4, 1, 3, 3), generator=seeded(), dtype=dtype) * 16).round() / 8 - 1
    x0[:, 0, 0, :2] = torch.tensor([-1.0, 1.0], dtype=dtype)
    x_t = diffuse(x0, t, noise(4, 1, 3, 3).to(dtype))
    value = (noise(4, 1, 3, 3, seed=9)).to(dtype).requires_grad_()
    fraction = torch.rand((4, 1, 3, 3), generator=seeded(1), dtype=dtype).requires_grad_()
    return schedule, t, x0, x_t, value, fraction


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_variance_alone_is_trained(kind, dtype):
    schedule, t, x0, x_t, value, fraction = hybrid_batch(dtype)
    prediction = Prediction(x_t, t, value, kind, fraction)
    floor = beta_tilde_floor(schedule.levels())
    loss = hybrid_vlb(prediction, x0, t, schedule.previous(t), floor, bins=17)
    assert loss.shape == (4,) and loss.dtype == dtype and bool(torch.isfinite(loss).all())
    loss.sum().backward()
    assert value.grad is None
    assert bool(torch.isfinite(fraction.grad).all()) and bool((fraction.grad.flatten(1).abs().sum(1) > 0).all())


def test_each_sample_gets_the_term_of_its_own_step():
    """KL where s is noisy, decoder where s is clean data: the same numbers as one sample at a time."""
    schedule, t, x0, x_t, value, fraction = hybrid_batch()
    floor = beta_tilde_floor(schedule.levels())
    loss = hybrid_vlb(Prediction(x_t, t, value, "eps", fraction), x0, t, schedule.previous(t), floor, 17)
    for i, time in enumerate(t.time.tolist()):
        one, row = schedule.level(time), slice(i, i + 1)
        prediction = Prediction(x_t[row], one, value[row], "eps", fraction[row])
        if time == 0:
            expected = decoder_nll(prediction, x0[row], one, DATA, "learned", floor, 17)
        else:
            expected = step_kl(prediction, x0[row], one, schedule.level(time - 1), "learned", floor)
        torch.testing.assert_close(loss[row], expected)


def test_the_best_learned_variance_is_that_of_the_posterior(line):
    """Over one shared fraction the expected term is least at beta-tilde + c^2 E Var[x_0 | x_t]."""
    n = 40_000
    t, s = (linear_schedule().level(time) for time in (300, 200))
    x0 = line.sample(n, seeded())
    x_t = diffuse(x0, t, noise(n, 1, seed=8))
    prediction = line(x_t, t)
    low, high = beta_tilde(t, s), beta(t, s)
    c = posterior_mean(double([[0.0]]), double([[1.0]]), t, s).item()
    best = low + c**2 * line.posterior_variance(x_t, t).mean().item()

    def slope(fraction):
        shared = double(fraction).requires_grad_()
        learned = prediction.replace(fraction=shared.expand_as(x_t))
        return torch.autograd.grad(hybrid_vlb(learned, x0, t, s, 1e-9).mean(), shared)[0].item()

    share = math.log(best / low) / math.log(high / low)
    assert 0.1 < share < 0.97
    below, at, above = (slope(share + shift) for shift in (-0.1, 0.0, 0.1))
    assert below < 0 < above and abs(at) < 0.05 * min(-below, above)


# --- bad input ------------------------------------------------------------------------------------------------------


def test_data_outside_its_range(grey):
    levels = linear_schedule().levels(4)
    with pytest.raises(ValueError, match=r"x0 must lie in \[-1, 1\], got values from -1.5 to 0"):
        vlb_terms(grey, double([[-1.5], [0.0]]), levels)
    with pytest.raises(ValueError, match=r"x0 must lie in \[-1, 1\]"):
        vlb_terms(grey, double([[math.nan]]), levels)


def test_chains_without_a_bound(grey):
    levels = linear_schedule().levels(4)
    with pytest.raises(ValueError, match="at least two levels, got 1"):
        vlb_terms(grey, double([[0.0]]), levels[:1])
    with pytest.raises(ValueError, match="must end in clean data, this one ends at sigma"):
        vlb_terms(grey, double([[0.0]]), levels[:-1])


def test_unknown_variance(grey):
    with pytest.raises(ValueError, match="'beta', 'beta_tilde' or 'learned', got 'large'"):
        vlb_terms(grey, double([[0.0]]), linear_schedule().levels(4), variance="large")
    with pytest.raises(ValueError, match="that predicts its variance"):
        vlb_terms(grey, double([[0.0]]), linear_schedule().levels(4), variance="learned")
