"""Closed-form denoisers, each against an independent route: autograd, quadrature, torch.distributions, Monte-Carlo."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from minidiff.exact import EmpiricalDenoiser, EncodedMixture, GaussianDenoiser, GaussianMixtureDenoiser
from minidiff.process import diffuse
from minidiff.random import sample_generators
from minidiff.schedule import DATA, NoiseLevel, edm_schedule, linear_schedule

WORLDS = ["gaussian", "mixture", "pictures", "line"]
MIDDLE = linear_schedule().level(300)  # alpha about 0.63


@pytest.fixture(params=WORLDS)
def world(request):
    return request.getfixturevalue(request.param)


def noisy_batch(world, level, n=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x0 = world.sample(n, generator)
    return diffuse(x0, level, torch.randn(x0.shape, generator=generator, dtype=torch.float64))


def score_by_autograd(log_prob, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(log_prob(x).sum(), x)[0]


# --- densities and scores -------------------------------------------------------------------------------------------


def test_log_prob_of_a_mixture_against_torch_distributions(mixture, level):
    alpha, sigma = (torch.as_tensor(v, dtype=torch.float64).reshape(-1, 1, 1) for v in (level.alpha, level.sigma))
    std = (alpha**2 * mixture.variance[:, None] + sigma**2).sqrt().expand(-1, -1, 2)
    parts = Independent(Normal(alpha * mixture.means, std), 1)
    expected = MixtureSameFamily(Categorical(mixture.weights.expand(len(alpha), -1)), parts)
    x = noisy_batch(mixture, level)
    torch.testing.assert_close(mixture.log_prob(x, level), expected.log_prob(x), rtol=1e-9, atol=1e-9)


def test_log_prob_of_a_gaussian_against_torch_distributions(gaussian):
    for level in (MIDDLE, edm_schedule().level(0.5), DATA):
        covariance = level.alpha**2 * gaussian.covariance + level.sigma**2 * torch.eye(3)
        expected = MultivariateNormal(level.alpha * gaussian.mean, covariance)
        x = noisy_batch(gaussian, level)
        torch.testing.assert_close(gaussian.log_prob(x, level), expected.log_prob(x))


def test_score_is_the_gradient_of_log_prob(world, level):
    x = noisy_batch(world, level)
    expected = score_by_autograd(lambda x: world.log_prob(x, level), x)
    torch.testing.assert_close(world(x, level).score, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["mixture", "pictures", "line"])
@pytest.mark.parametrize("label", [0, 1])
def test_conditional_score_is_the_gradient_of_conditional_log_prob(request, name, label, level):
    world = request.getfixturevalue(name)
    x = noisy_batch(world, level)
    expected = score_by_autograd(lambda x: world.log_prob(x, level, label), x)
    torch.testing.assert_close(world(x, level, label).score, expected, rtol=1e-6, atol=1e-7)


def test_densities_integrate_to_one(line):
    for level in (MIDDLE, edm_schedule().level(0.3)):
        x = torch.linspace(-12, 12, 20_001, dtype=torch.float64)[:, None]
        for label in (None, 0, 1):
            assert torch.trapezoid(line.log_prob(x, level, label).exp(), x[:, 0]).item() == pytest.approx(1)


# --- posterior mean and variance ------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [None, 0, 1])
@pytest.mark.parametrize("time", [0, 100, 400, 900])
def test_posterior_by_quadrature(line, time, label):
    """Mean and variance of x_0 given x_t from p(x_0) N(x_t; alpha x_0, sigma^2) on a grid of x_0."""
    level = linear_schedule().level(time)
    x0 = torch.linspace(-6, 6, 60_001, dtype=torch.float64)[:, None]
    x_t = torch.tensor([[-0.7], [0.1], [0.9]], dtype=torch.float64)
    log_joint = line.log_prob(x0, DATA, label)[None] - 0.5 * ((x_t - level.alpha * x0.T) / level.sigma) ** 2
    weight = log_joint.softmax(1)
    mean = weight @ x0
    variance = (weight * (x0.T - mean) ** 2).sum(1)
    torch.testing.assert_close(line(x_t, level, label).x0, mean, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(line.posterior_variance(x_t, level, label), variance, rtol=1e-6, atol=1e-11)


def test_posterior_variance_is_the_second_order_tweedie_formula(world, level):
    """Cov[x_0 | x_t] = (sigma^2 / alpha) d E[x_0 | x_t] / d x_t; its trace over the number of dimensions."""
    x = noisy_batch(world, level).requires_grad_()
    alpha, sigma = level.like(x.flatten(1))
    flat = world(x, level).x0.flatten(1)
    slopes = [
        torch.autograd.grad(flat[:, i].sum(), x, retain_graph=True)[0].flatten(1)[:, i] for i in range(flat.shape[1])
    ]
    expected = (torch.stack(slopes, 1) * sigma**2 / alpha).mean(1)
    torch.testing.assert_close(world.posterior_variance(x.detach(), level), expected, rtol=1e-6, atol=1e-11)


def test_posterior_by_monte_carlo(world, generator):
    """Draws of x_0 weighted by N(x_t; alpha x_0, sigma^2 I): self-normalised, with its own standard error."""
    level = linear_schedule().level(500)
    x_t = noisy_batch(world, level, 1)
    x0 = world.sample(40_000, generator).flatten(1)
    weight = (-0.5 * ((x_t.flatten(1) - level.alpha * x0) / level.sigma).square().sum(1)).softmax(0)
    mean = weight @ x0
    error = (weight**2 @ (x0 - mean) ** 2).sqrt()
    assert bool(((world(x_t, level).x0.flatten() - mean).abs() < 4.5 * error).all())
    squares = ((x0 - mean) ** 2).mean(1)
    variance = weight @ squares
    error = (weight**2 @ (squares - variance) ** 2).sqrt()
    assert abs(world.posterior_variance(x_t, level) - variance) < 4.5 * error


def test_gaussian_denoiser_is_the_linear_regression_of_x0_on_x_t(gaussian):
    level = MIDDLE
    x = noisy_batch(gaussian, level)
    marginal = level.alpha**2 * gaussian.covariance + level.sigma**2 * torch.eye(3)
    gain = level.alpha * torch.linalg.solve(marginal, gaussian.covariance).T
    expected = gaussian.mean + (x - level.alpha * gaussian.mean) @ gain.T
    torch.testing.assert_close(gaussian(x, level).x0, expected)


@pytest.mark.parametrize("covariance", [0.4, [0.4], [0.4, 0.4, 0.4], [[0.4, 0, 0], [0, 0.4, 0], [0, 0, 0.4]]])
def test_a_mixture_of_one_is_a_gaussian_in_every_spelling(covariance, level):
    mean = torch.tensor([0.3, -0.2, 1.0])
    one, other = GaussianDenoiser(mean, torch.tensor(covariance)), GaussianMixtureDenoiser(mean[None], 0.4)
    x = noisy_batch(other, level)
    torch.testing.assert_close(one(x, level).x0, other(x, level).x0, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(one.log_prob(x, level), other.log_prob(x, level), rtol=1e-7, atol=1e-7)
    expected = other.posterior_variance(x, level)
    torch.testing.assert_close(one.posterior_variance(x, level), expected, rtol=1e-7, atol=1e-10)


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixture", "pictures", "line"])
def test_exact_classifier_is_bayes_rule(request, name, level):
    """log p(c | x_t) = log p(x_t | c) + log p(c) - log p(x_t), and the classes sum to one."""
    world = request.getfixturevalue(name)
    x = noisy_batch(world, level)
    log_p = world.log_prob_label(x, level)
    assert log_p.shape == (4, world.n_classes)
    torch.testing.assert_close(log_p.logsumexp(1), torch.zeros(4).double(), rtol=0, atol=1e-9)
    for c in range(world.n_classes):
        prior = world.weights[world.labels == c].sum().log()
        expected = world.log_prob(x, level, c) + prior - world.log_prob(x, level)
        torch.testing.assert_close(log_p[:, c], expected, rtol=1e-7, atol=1e-7)


def test_conditional_score_is_unconditional_plus_gradient_of_the_classifier(mixture, level):
    x = noisy_batch(mixture, level)
    labels = torch.tensor([0, 2, 1, 0])
    gradient = score_by_autograd(lambda x: mixture.classifier(labels)(x, level), x)
    expected = mixture(x, level).score + gradient
    torch.testing.assert_close(mixture(x, level, labels).score, expected, rtol=1e-6, atol=1e-7)


def test_labels_and_nulls_are_per_sample(mixture, level):
    x = noisy_batch(mixture, level)
    labels = torch.tensor([2, -1, 0, 1])
    together = {
        "x0": mixture(x, level, labels).x0,
        "log_prob": mixture.log_prob(x, level, labels),
        "variance": mixture.posterior_variance(x, level, labels),
    }
    for i, label in enumerate(labels.tolist()):
        alone = label if label >= 0 else None
        torch.testing.assert_close(together["x0"][i], mixture(x, level, alone).x0[i])
        torch.testing.assert_close(together["log_prob"][i], mixture.log_prob(x, level, alone)[i])
        torch.testing.assert_close(together["variance"][i], mixture.posterior_variance(x, level, alone)[i])


def test_conditional_world_is_the_labelled_call(mixture, pictures):
    for world in (mixture, pictures):
        x = noisy_batch(world, MIDDLE)
        for label in range(world.n_classes):
            alone = world.conditional(label)
            torch.testing.assert_close(alone(x, MIDDLE).x0, world(x, MIDDLE, label).x0)
            torch.testing.assert_close(alone(x, MIDDLE, label).x0, world(x, MIDDLE, label).x0)
            torch.testing.assert_close(alone.log_prob(x, MIDDLE), world.log_prob(x, MIDDLE, label))
            expected = world.posterior_variance(x, MIDDLE, label)
            torch.testing.assert_close(alone.posterior_variance(x, MIDDLE), expected)
    torch.testing.assert_close(mixture.conditional(-1).means, mixture.means)


def test_labels_default_to_the_components():
    world = GaussianMixtureDenoiser(torch.eye(3), 0.1)
    assert world.n_classes == 3 and world.labels.tolist() == [0, 1, 2]
    assert EmpiricalDenoiser(torch.eye(3)).n_classes == 1


# --- empirical worlds -----------------------------------------------------------------------------------------------


def test_empirical_denoiser_is_a_softmax_over_images(pictures):
    """Without bandwidth: weights softmax(-|x_t - alpha y|^2 / 2 sigma^2), written as loops."""
    world = EmpiricalDenoiser(pictures.means, pictures.labels)
    x = noisy_batch(world, MIDDLE, 3)
    for row, denoised in zip(x, world(x, MIDDLE).x0, strict=True):
        logits = torch.stack([-(row - MIDDLE.alpha * y).square().sum() / (2 * MIDDLE.sigma**2) for y in pictures.means])
        expected = sum(w * y for w, y in zip(logits.softmax(0), pictures.means, strict=True))
        torch.testing.assert_close(denoised, expected)


def test_empirical_limits(pictures):
    """Little noise: the nearest image. Much noise: the mean of all. Variance: none, and that of the set."""
    images = pictures.means
    world = EmpiricalDenoiser(images)
    clean, noise = NoiseLevel(1.0, 1e-3, 0), NoiseLevel(1.0, 1e6, 0)
    x = images + 0.003 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(world(x, clean).x0, images, rtol=0, atol=1e-9)
    torch.testing.assert_close(world.posterior_variance(x, clean), torch.zeros(12).double(), rtol=0, atol=1e-9)
    mean = images.mean(0)
    torch.testing.assert_close(world(x, noise).x0, mean.expand_as(x), rtol=0, atol=1e-9)
    spread = (images - mean).square().mean().expand(12)
    torch.testing.assert_close(world.posterior_variance(x, noise), spread, rtol=1e-6, atol=0)


def test_bandwidth_is_the_standard_deviation_of_each_component(pictures):
    same = GaussianMixtureDenoiser(pictures.means, 0.2**2, labels=pictures.labels)
    x = noisy_batch(pictures, MIDDLE)
    torch.testing.assert_close(pictures(x, MIDDLE, 1).x0, same(x, MIDDLE, 1).x0)
    torch.testing.assert_close(pictures.log_prob(x, MIDDLE), same.log_prob(x, MIDDLE))


# --- sampling -------------------------------------------------------------------------------------------------------


def test_gaussian_samples_have_its_mean_and_covariance(gaussian, generator):
    n = 40_000
    x = gaussian.sample(n, generator)
    standard = (x - gaussian.mean) @ torch.linalg.inv(torch.linalg.cholesky(gaussian.covariance)).T
    assert bool((standard.mean(0).abs() < 4.5 / n**0.5).all())
    assert bool(((standard.T @ standard / n - torch.eye(3)).abs() < 4.5 * (2 / n) ** 0.5).all())


def test_mixture_samples_have_its_distribution_function(line, generator):
    """Kolmogorov-Smirnov against the exact distribution function, for the whole and for one class."""
    n = 20_000
    for label in (None, 0, 1):
        world = line if label is None else line.conditional(label)
        x = line.sample(n, generator, label)[:, 0].sort().values
        parts = Normal(world.means[:, 0], world.variance.sqrt().expand(len(world.means)))
        exact = parts.cdf(x[:, None]) @ world.weights
        gap = (exact - (torch.arange(n) + 0.5) / n).abs().max()
        assert gap < 2.2 / n**0.5  # p about 1e-4


def test_sample_labels_are_per_sample(mixture, generator):
    labels = torch.tensor([0, 1, 2, -1] * 5000)
    x = mixture.sample(len(labels), generator, labels)
    assert x.shape == (20_000, 2) and x.dtype == torch.float64
    for label in range(3):
        part, world = x[labels == label], mixture.conditional(label)
        mean = world.weights @ world.means
        variance = world.weights @ (world.variance[:, None] + world.means**2) - mean**2
        assert bool(((part.mean(0) - mean).abs() < 4.5 * (variance / 5000).sqrt()).all())
    components = torch.cdist(x[labels == -1], mixture.means).argmin(1).bincount(minlength=5)
    assert bool((components > 300).all())


def test_a_sample_depends_on_its_own_generator_alone(world):
    five = world.sample(5, sample_generators(3, range(5)))
    two = world.sample(2, sample_generators(3, [1, 4]))
    torch.testing.assert_close(five[[1, 4]], two)


def test_samples_without_bandwidth_are_the_images(pictures, generator):
    world = EmpiricalDenoiser(pictures.means, pictures.labels)
    x = world.sample(500, generator, 1)
    distance = torch.cdist(x.flatten(1), world.means.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distance.min(1)
    assert nearest.values.max() == 0 and set(nearest.indices.tolist()) == {1, 4, 7, 10}


# --- form and bad input ---------------------------------------------------------------------------------------------


def test_answers_in_the_precision_of_the_question(world, level):
    x = noisy_batch(world, level)
    single = world(x.float(), level)
    assert single.x0.dtype == torch.float32 and world.log_prob(x.float(), level).dtype == torch.float64
    torch.testing.assert_close(single.x0, world(x.float().double(), level).x0.float())


def test_weights_are_normalised():
    a = GaussianMixtureDenoiser(torch.eye(2), 0.1, torch.tensor([1, 3]))
    torch.testing.assert_close(a.weights, torch.tensor([0.25, 0.75], dtype=torch.float64))


@pytest.mark.parametrize("label", [3, -2, torch.tensor([0, 1, 2, 7]), torch.tensor([0, 1])])
def test_labels_out_of_range(mixture, label):
    x = noisy_batch(mixture, MIDDLE)
    with pytest.raises(ValueError, match=r"-1 \(none\) or 0 ... 2, one or 4 of them; got"):
        mixture(x, MIDDLE, label)


@pytest.mark.parametrize("label", [3, -1, torch.tensor([0, 5])])
def test_classifier_labels_out_of_range(mixture, label):
    with pytest.raises(ValueError, match=r"labels 0 \.\.\. 2, got"):
        mixture.classifier(label)


def test_label_that_no_component_has(mixture):
    with pytest.raises(ValueError, match=r"labels here are \[2\] .*got"):
        mixture.conditional(2)(torch.zeros(1, 2), MIDDLE, 0)


@pytest.mark.parametrize("name", WORLDS)
def test_wrong_shape_and_not_finite_x(request, name):
    world = request.getfixturevalue(name)
    with pytest.raises(ValueError, match=r"samples of shape .*got x of shape \(4, 7\)"):
        world(torch.zeros(4, 7), MIDDLE)
    x = noisy_batch(world, MIDDLE)
    x.view(-1)[1] = math.nan
    for call in (world, world.log_prob, world.posterior_variance):
        with pytest.raises(ValueError, match="x holds 1 values that are not finite"):
            call(x, MIDDLE)


def test_points_have_no_density_at_sigma_zero(pictures):
    with pytest.raises(ValueError, match="no density at sigma = 0"):
        EmpiricalDenoiser(pictures.means).log_prob(pictures.means, DATA)


@pytest.mark.parametrize("covariance", [[1.0, 2.0], [[1.0, 0], [0, 1.0]], [[[1.0]]]])
def test_covariance_of_another_shape(covariance):
    with pytest.raises(ValueError, match=r"covariance of 3 numbers must be scalar, \(3,\) or \(3, 3\)"):
        GaussianDenoiser(torch.zeros(3), torch.tensor(covariance))


def test_covariance_that_is_not_one():
    with pytest.raises(ValueError, match="negative eigenvalue"):
        GaussianDenoiser(torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variance": torch.ones(2)}, r"3 means need a scalar or \(3,\) variance"),
        ({"variance": 1.0, "weights": torch.ones(4)}, r"\(3,\) weights"),
        ({"variance": 1.0, "labels": torch.ones(1, dtype=torch.long)}, r"\(3,\) labels"),
        ({"variance": -1.0}, "must not be negative"),
        ({"variance": 1.0, "weights": torch.tensor([1.0, 0, 1])}, "weights must be positive"),
        ({"variance": 1.0, "labels": [0, -1, 1]}, "labels must not be negative"),
    ],
)
def test_mixtures_that_are_not_one(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixtureDenoiser(torch.zeros(3, 2), **arguments)


# --- an encoder, its prior and its decoder --------------------------------------------------------------------------

KEEP = torch.tensor([1, 0, 0])


@pytest.fixture
def encoded():
    """Six components of different variance in three numbers, two captions; the first number is kept."""
    means = torch.tensor([[-1.0, 0.5, 0], [-1, -0.5, 1], [0, 0.5, -1], [1, -0.5, 0], [0, 0.3, 0.2], [1, 1, 1]])
    variance = torch.tensor([0.1, 0.2, 0.15, 0.3, 0.1, 0.2])
    weights = torch.tensor([1.0, 2, 3, 1, 2, 1])
    return EncodedMixture(GaussianMixtureDenoiser(means, variance, weights, [0, 0, 0, 1, 1, 1]), KEEP)


@pytest.mark.parametrize("label", [0, 1])
def test_prior_times_decoder_is_the_data(encoded, label):
    x = encoded.world.sample(20, torch.Generator().manual_seed(0))
    both = encoded.prior(label).log_prob(encoded.encode(x), DATA, label) + encoded.log_prob(x, label)
    torch.testing.assert_close(both, encoded.world.log_prob(x, DATA, label))


@pytest.mark.parametrize("label", [None, 1])
def test_the_decoder_is_the_world_given_the_embedding(encoded, label):
    """Sample by sample, as the mixture reweighted by what is known."""
    world = encoded.world if label is None else encoded.world.conditional(label)
    x, level = encoded.world.sample(5, torch.Generator().manual_seed(1)), MIDDLE
    z = encoded.encode(x) + 0.3
    prediction = encoded.decoder(z, label)(x, level)
    assert torch.equal(prediction.x0[:, :1], z)
    for i in range(5):
        alone = GaussianMixtureDenoiser(world.means[:, 1:], world.variance, _posterior(world, z[i]), world.labels)
        torch.testing.assert_close(prediction.x0[i, 1:], alone(x[i : i + 1, 1:], level).x0[0])


def _posterior(world, z):
    """Weights of the components given the first number, by torch.distributions."""
    own = Normal(world.means[:, 0], world.variance.sqrt().expand(len(world.means))).log_prob(z[0]).exp()
    return world.weights * own


def test_the_decoder_is_asked_about_many_levels_at_once(encoded):
    x = encoded.world.sample(3, torch.Generator().manual_seed(2))
    levels = [linear_schedule().level(t) for t in (10, 300, 900)]
    stacked = NoiseLevel(*(torch.tensor([getattr(v, k) for v in levels], dtype=torch.float64)
                           for k in ("alpha", "sigma", "time")))  # fmt: skip
    together = encoded.decoder(encoded.encode(x), 0)(x, stacked).x0
    for i, level in enumerate(levels):
        one = encoded.decoder(encoded.encode(x)[i : i + 1], 0)(x[i : i + 1], level).x0
        torch.testing.assert_close(together[i : i + 1], one)


@pytest.mark.parametrize("keep", [[1, 1, 1], [0, 0, 0], [1, 0]])
def test_an_encoder_keeps_some(encoded, keep):
    with pytest.raises(ValueError, match="keeps some of the numbers"):
        EncodedMixture(encoded.world, torch.tensor(keep))


def test_an_encoded_world_has_a_variance():
    with pytest.raises(ValueError, match="components without variance"):
        EncodedMixture(GaussianMixtureDenoiser(torch.zeros(2, 3), 0.0), KEEP)
