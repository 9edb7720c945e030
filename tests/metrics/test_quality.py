"""Each measure beside a closed form, brute force, and torchmetrics where that has it."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from helpers import tiny
from torch import nn

from minidiff.exact import GaussianDenoiser
from minidiff.likelihood import prior_kl, vlb_terms
from minidiff.metrics import (
    bits_per_dim,
    class_accuracy,
    class_scatter,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision,
    precision_recall,
    recall,
)
from minidiff.random import sample_generators
from minidiff.schedule import clipped_cosine_schedule
from minidiff.systems.diffusion import Diffusion


def normal(generator, n, d, dtype=torch.float64):
    return torch.randn(n, d, generator=generator, dtype=dtype)


def with_moments(x, mean, root):
    """The sample moved and mixed so that its mean and covariance are exactly ``mean`` and root root^T."""
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T @ root.T + mean


class Identity(nn.Module):
    """What torchmetrics calls a feature network, for features."""

    num_features = 6

    def forward(self, x):
        return x


def test_frechet_distance_of_two_gaussians(generator):
    one, two = torch.linspace(0.5, 2, 5).double(), torch.linspace(3, 0.1, 5).double()
    basis = torch.linalg.qr(normal(generator, 5, 5)).Q
    shift = torch.tensor([0.3, -1, 0, 2, 0.1], dtype=torch.float64)
    a = with_moments(normal(generator, 40, 5), shift, basis @ one.diag())
    b = with_moments(normal(generator, 30, 5), 0 * shift, basis @ two.diag())
    # covariances with the same eigenvectors: the distance is that of the standard deviations
    assert frechet_distance(a, b) == pytest.approx(float((shift**2).sum() + ((one - two) ** 2).sum()), abs=1e-10)


def test_frechet_distance_with_covariances_that_do_not_commute(generator):
    roots = [normal(generator, 2, 2), normal(generator, 2, 2)]
    a, b = (with_moments(normal(generator, 20, 2), torch.zeros(2), root) for root in roots)
    first, second = (root @ root.T for root in roots)
    # in two dimensions tr (AB)^(1/2) = (tr AB + 2 det(AB)^(1/2))^(1/2)
    cross = ((first @ second).trace() + 2 * torch.linalg.det(first @ second).sqrt()).sqrt()
    assert frechet_distance(a, b) == pytest.approx(float(first.trace() + second.trace() - 2 * cross), abs=1e-10)


def test_frechet_distance_of_a_set_to_itself_and_of_a_dead_feature(generator):
    a = normal(generator, 50, 4)
    assert 0 <= frechet_distance(a, a.flip(0)) < 1e-6
    dead, moved = a.clone(), a.clone() + 1
    dead[:, 0] = moved[:, 0] = 0
    assert frechet_distance(dead, moved) == pytest.approx(3, abs=1e-6)


def test_distances_agree_with_torchmetrics(generator):
    image = pytest.importorskip("torchmetrics.image")
    a, b = normal(generator, 60, 6) * 1.3 + 0.2, normal(generator, 80, 6)
    fid = image.fid.FrechetInceptionDistance(Identity())
    with pytest.warns(UserWarning, match="buffer"):
        kid = image.kid.KernelInceptionDistance(Identity(), subsets=1, subset_size=60)
    for metric in (fid, kid):
        metric.update(b[:60] if metric is kid else b, real=True)
        metric.update(a, real=False)
    assert frechet_distance(a, b) == pytest.approx(float(fid.compute()), rel=1e-5)
    assert kernel_distance(a, b[:60]) == pytest.approx(float(kid.compute()[0]), rel=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")  # the buffer it announces, and the spread over a single split
def test_inception_score_agrees_with_torchmetrics(generator):
    image = pytest.importorskip("torchmetrics.image")
    logits = normal(generator, 50, 6) * 2
    metric = image.inception.InceptionScore(Identity(), splits=1)
    metric.update(logits)
    assert inception_score(logits.log_softmax(1)) == pytest.approx(float(metric.compute()[0]), rel=1e-5)


def brute_force_mmd(a, b):
    k = lambda x, y: float((x @ y / len(x) + 1) ** 3)
    among = lambda s: sum(k(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j) / len(s) / (len(s) - 1)
    return among(a) + among(b) - 2 * sum(k(x, y) for x in a for y in b) / len(a) / len(b)


def test_kernel_distance_by_brute_force(generator):
    a, b = normal(generator, 9, 3), normal(generator, 7, 3) + 0.5
    assert kernel_distance(a, b) == pytest.approx(brute_force_mmd(a, b), rel=1e-12)


def test_kernel_distance_of_gaussians_is_unbiased(generator):
    # with degree 1 the squared distance of the means over d, whatever the covariances
    shift, n = 0.7, 12
    found = torch.tensor(
        [kernel_distance(normal(generator, n, 2) + shift, 3 * normal(generator, n, 2), degree=1) for _ in range(2000)]
    )
    assert abs(float(found.mean()) - shift**2) < 4 * float(found.std()) / math.sqrt(len(found))
    # Var = (4 v_1 |m|^2 / n + 4 v_2 |m|^2 / m) / d^2 + degenerate terms 2 tr(S^2) / n(n-1) twice and 4 tr(S_1 S_2) / nm
    linear = 4 * (2 * shift**2) * (1 + 9) / n / 4
    degenerate = (2 * 2 * (1 + 81) / (n * (n - 1)) + 4 * 2 * 9 / n**2) / 4
    assert float(found.var()) == pytest.approx(linear + degenerate, rel=0.15)


def test_kernel_distance_of_images_drawn_by_class_needs_the_classes(generator):
    centres, classes = 3 * normal(generator, 4, 5), torch.arange(40) % 4
    draw = lambda: centres[classes] + normal(generator, 40, 5)
    pairs = [(draw(), draw()) for _ in range(200)]
    told = torch.tensor([kernel_distance(a, b, classes, classes) for a, b in pairs])
    untold = torch.tensor([kernel_distance(a, b) for a, b in pairs])
    error = float(told.std()) / math.sqrt(len(told))
    assert abs(float(told.mean())) < 4 * error
    assert float(untold.mean()) < -20 * error


def test_inception_score_of_known_distributions():
    certain = torch.eye(5).repeat(3, 1).log()
    assert inception_score(certain) == pytest.approx(5)
    assert inception_score(certain[:1].repeat(9, 1)) == pytest.approx(1)
    assert inception_score(torch.full((7, 4), 0.25).log()) == pytest.approx(1)
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    information = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert inception_score(p.log()) == pytest.approx(math.exp(information), rel=1e-6)


def test_precision_and_recall_by_brute_force(generator):
    a, b, k = normal(generator, 40, 2), 1.5 * normal(generator, 30, 2) + 1, 3

    def covered(points, support):
        radii = [sorted(float((x - y).norm()) for y in support)[k] for x in support]
        inside = [any(float((p - x).norm()) <= r for x, r in zip(support, radii, strict=True)) for p in points]
        return sum(inside) / len(inside)

    assert precision_recall(a, b, k) == (covered(a, b), covered(b, a))
    assert (precision(a, b, k), recall(a, b, k)) == precision_recall(a, b, k)


def test_precision_and_recall_of_constructed_sets(generator):
    square = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))
    assert precision_recall(square, square) == (1, 1)
    assert precision_recall(square + 1000, square) == (0, 0)
    # half of the modes, each well: all is real, not all is there
    left = square[square[:, 0] < 5]
    inside, found = precision_recall(left + 0.01, square)
    assert inside == 1 and 0.5 <= found < 0.8


def test_precision_does_not_depend_on_chunks(generator):
    a, b = normal(generator, 2100, 2), normal(generator, 1500, 2)
    everywhere = torch.cdist(a, b) <= torch.cdist(b, b).sort(1).values[:, 3]
    assert precision(a, b) == float(everywhere.any(1).double().mean())


def test_class_accuracy():
    log_prob = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.5, 0.4, 0.1]]).log()
    assert class_accuracy(log_prob, torch.tensor([0, 1, 2, 1])) == 0.75


class GaussianWorld(Diffusion):
    """The system whose network is the exact denoiser of N(mean, variance) in every pixel."""

    def __init__(self, mean, variance):
        config = SimpleNamespace(in_channels=1)
        network = nn.Linear(1, 1)
        network.config, network.out_shape = config, (1, 1, 1)
        super().__init__(network, clipped_cosine_schedule(1000))
        self.denoiser = GaussianDenoiser(torch.full((1, 1, 1), mean), variance * torch.eye(1))

    def forward(self, x, level, condition):
        return self.denoiser(x, level)


def test_class_scatter_averages_to_the_trace_of_the_covariance_of_a_class(generator):
    labels = torch.tensor([0] * 7 + [1] * 5 + [3])
    images = torch.randn(len(labels), 2, 3, generator=generator, dtype=torch.float64)
    found = class_scatter(images, labels)
    for label in (0, 1):
        expected = images[labels == label].flatten(1).T.cov().trace()
        assert torch.isclose(found[labels == label].mean(), expected)
    assert found[-1] == 0


def test_bits_per_dim_in_a_gaussian_world(generator):
    mean, variance, steps, n = 0.1, 0.02, 20, 4000
    system = GaussianWorld(mean, variance)
    images = mean + variance**0.5 * torch.randn(n, 1, 1, 1, generator=generator, dtype=torch.float64)
    found = bits_per_dim(system, images, generator, steps, batch=1000)
    levels, expected = system.schedule.levels(steps), 0.0
    for t, s in list(pairwise(levels))[:-1]:
        # equal variances: KL = (coefficient of x_0)^2 Var[x_0 | x_t] / (2 beta tilde)
        step = t.sigma**2 - (t.alpha / s.alpha) ** 2 * s.sigma**2
        coefficient, tilde = s.alpha * step / t.sigma**2, step * s.sigma**2 / t.sigma**2
        posterior = 1 / (1 / variance + t.alpha**2 / t.sigma**2)
        expected += coefficient**2 * posterior / (2 * tilde) / math.log(2)
    steps_kl = found.steps.sum(0)
    assert found.total.shape == (n,) and found.steps.shape == (steps - 1, n)
    assert float(steps_kl.mean()) == pytest.approx(expected, abs=4 * float(steps_kl.std()) / math.sqrt(n))
    assert torch.equal(found.prior, prior_kl(images, levels[0]))


def test_bits_per_dim_does_not_depend_on_the_batch():
    system, images = GaussianWorld(0.0, 0.04), torch.linspace(-0.5, 0.5, 7).double()[:, None, None, None]
    one, two = (bits_per_dim(system, images, sample_generators(1, range(7)), 5, batch).total for batch in (2, 7))
    assert torch.allclose(one, two, rtol=1e-12)


def test_bits_per_dim_given_a_label():
    """That of each image is the bound of a system that is told this label and no other."""
    system, images = tiny("digits"), torch.linspace(-1, 1, 3)[:, None, None, None].expand(3, 1, 8, 8)
    labels, how = torch.tensor([7, -1, 2]), {"steps": 4}
    found = bits_per_dim(system, images, sample_generators(1, range(3)), batch=2, label=labels, **how).total
    for i, label in enumerate(labels.tolist()):
        denoiser = lambda x, level, label=label: system(x, level, system.condition(label=label))
        one = vlb_terms(
            denoiser, images[i : i + 1], system.schedule.levels(4), sample_generators(1, [i]), "learned", 17
        )
        assert torch.allclose(found[i : i + 1], one.total, rtol=1e-4)
    other = bits_per_dim(system, images, sample_generators(1, range(3)), label=7, **how).total
    assert torch.allclose(other[:1], found[:1], rtol=1e-4) and (other[1:] - found[1:]).abs().min() > 1e-4
    with pytest.raises(ValueError, match="told no 'caption'"):
        bits_per_dim(system, images, caption="a ring", **how)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: frechet_distance(x[:6], x), "more than 6 images"),
        (lambda x: frechet_distance(x, x[:, :3]), r"\(N, d\) and \(M, d\)"),
        (lambda x: frechet_distance(x / 0, x), "finite"),
        (lambda x: kernel_distance(x[:1], x), "at least 2"),
        (lambda x: kernel_distance(x, x, torch.arange(20)), "in each class, got 1"),
        (lambda x: kernel_distance(x, x, torch.zeros(3)), "got 3 for 20"),
        (lambda x: precision(x, x[:3]), "1 <= k < 3"),
        (lambda x: inception_score(x.softmax(1)), "logarithms"),
        (lambda x: class_accuracy(x.log_softmax(1), torch.zeros(3)), "one label a row"),
    ],
)
def test_bad_input(call, message, generator):
    with pytest.raises(ValueError, match=message):
        call(normal(generator, 20, 6))
