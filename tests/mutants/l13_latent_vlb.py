"""Planted answers of lesson 13: MUTANTS, name -> (answer, a case that it must fail, words of the diagnosis); RIGHT."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import distributions as dist
from torch.nn import functional as F

from minidiff.course.checks.l13_latent_vlb import BINS, moments
from minidiff.models.vae import DiagonalGaussian

LOG_2PI = math.log(2 * math.pi)

# -- ex-13-terms ------------------------------------------------------------------------------------------------------


def _terms(
    spread=1.0, constant=1.0, sign=1.0, entropy_of=lambda v: v, scale=lambda noise: noise, swap=False, extra=0.0
):
    """The three terms, or what a slip makes of them."""

    def three_terms(x, W, noise, mean, variance):
        far = ((x - mean @ W.T) ** 2).sum(1) + spread * variance @ (W**2).sum(0)
        reconstruction = far / (2 * scale(noise)) + x.shape[1] / 2 * constant * math.log(2 * math.pi * scale(noise))
        negative = -sign * (entropy_of(variance).log() + LOG_2PI + 1 - extra).sum(1) / 2
        cross = (mean**2 + spread * variance + constant * LOG_2PI).sum(1) / 2
        return (reconstruction, cross, negative) if swap else (reconstruction, negative, cross)

    return three_terms


def terms_by_distributions(x, W, noise, mean, variance):
    """Entropies of torch, and the decoder's log probability at the mean, less what the spread adds."""
    q = dist.Independent(dist.Normal(mean, variance.sqrt()), 1)
    at_mean = dist.Normal(mean @ W.T, noise**0.5).log_prob(x).sum(1)
    spread = torch.einsum("nd,bd,nd->b", W, variance, W)
    prior = dist.Independent(dist.Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    return -at_mean + spread / (2 * noise), -q.entropy(), dist.kl_divergence(q, prior) + q.entropy()


def terms_in_float32(x, W, noise, mean, variance):
    return _terms()(x.float(), W.float(), noise, mean.float(), variance.float())


def terms_by_minidiff(x, W, noise, mean, variance):
    law = DiagonalGaussian(mean, variance.log())
    far = (x - mean @ W.T).square().sum(1) + torch.stack([torch.trace(W @ v.diag() @ W.T) for v in variance])
    return far / (2 * noise) + x.shape[1] / 2 * math.log(2 * math.pi * noise), -law.entropy(), law.kl() + law.entropy()


def terms_by_draws(x, W, noise, mean, variance):
    """One draw in place of the expectation."""
    z = mean + variance.sqrt() * torch.randn(mean.shape, dtype=mean.dtype)
    return _terms(spread=0.0)(x, W, noise, z, variance)


def divergence_for_cross_entropy(x, W, noise, mean, variance):
    reconstruction, negative, cross = _terms()(x, W, noise, mean, variance)
    return reconstruction, negative, negative + cross


TERMS = {
    "form-forgot-return": (lambda x, W, noise, mean, variance: None, "form"),
    "form-one-sum": (lambda x, W, noise, mean, variance: sum(_terms()(x, W, noise, mean, variance)), "form"),
    "sign-of-the-entropy": (_terms(sign=-1.0), "negative-entropy", "its negative"),
    "variance-squared": (_terms(entropy_of=lambda v: v**2), "negative-entropy", "is a variance"),
    "deviation": (_terms(entropy_of=torch.sqrt), "negative-entropy", "root of the variance"),
    "no-e": (_terms(extra=1.0), "negative-entropy", "2 pi e"),
    "mean-alone": (_terms(spread=0.0), "reconstruction", "spread of z is missing"),
    "noise-a-deviation": (_terms(scale=lambda noise: noise**2), "reconstruction", "not its deviation"),
    "no-constant": (_terms(constant=0.0), "reconstruction", "2 pi is missing"),
    "divergence": (divergence_for_cross_entropy, "cross-entropy", "divergence"),
    "swapped": (_terms(swap=True), "negative-entropy"),
    "one-draw": (terms_by_draws, "reconstruction"),
}

# -- ex-13-cross ------------------------------------------------------------------------------------------------------


def _cross(
    alpha=lambda v: (1 - v).sqrt(),
    reduce=lambda square: square.sum(1),
    weights=lambda v, span: span / (1 - v) / 2,
    entropy=lambda low, high: math.log(2 * math.pi * math.e * low) / 2,
):
    """The estimate, or what a slip makes of it."""

    def cross_terms(predict, z_0, eps, variance, low, high):
        v = variance[:, None]
        gap = reduce((eps - predict(alpha(v) * z_0 + v.sqrt() * eps, variance)) ** 2)
        return weights(variance, math.log(high / low)) * gap + z_0.shape[1] * entropy(low, high)

    return cross_terms


def cross_one_by_one(predict, z_0, eps, variance, low, high):
    rows = []
    for z, e, v in zip(z_0, eps, variance, strict=True):
        z_t = torch.sqrt(1 - v) * z + torch.sqrt(v) * e
        gap = torch.linalg.vector_norm(predict(z_t[None], v[None])[0] - e) ** 2
        rows.append((math.log(high) - math.log(low)) * gap / (2 - 2 * v) + len(z) * (1 + LOG_2PI + math.log(low)) / 2)
    return torch.stack(rows)


def cross_in_float32(predict, z_0, eps, variance, low, high):
    return _cross()(predict, z_0.float(), eps.float(), variance.float(), low, high)


def cross_by_keywords(predict, z_0, eps, variance, low, high):
    """In log SNR: its density is that of log variance times 1 - variance."""
    level = lambda v: (torch.sqrt(1 - v)[:, None], torch.sqrt(v)[:, None])
    alpha, sigma = level(variance)
    answer = predict(z_t=alpha * z_0 + sigma * eps, variance=variance)
    density = (1 - variance) / math.log(high / low)
    noise = dist.Normal(0.0, math.sqrt(low)).entropy().item()
    return F.mse_loss(answer, eps, reduction="none").sum(1) / density / 2 + z_0.shape[1] * noise


CROSS = {
    "form-forgot-return": (lambda predict, z_0, eps, variance, low, high: None, "form"),
    "form-a-mean": (lambda *given, **named: _cross()(*given, **named).mean(), "form"),
    "no-square": (
        _cross(entropy=lambda low, high: math.log(2 * math.pi * math.e * low**0.5) / 2),
        "one-level-a-sample",
        "square is missing",
    ),
    "no-constant": (_cross(entropy=lambda low, high: 0.0), "one-level-a-sample", "constant is missing"),
    "constant-at-the-end": (
        _cross(entropy=lambda low, high: math.log(2 * math.pi * math.e * high) / 2),
        "one-level-a-sample",
        "not to high",
    ),
    "mean-over-numbers": (_cross(reduce=lambda square: square.mean(1)), "one-level-a-sample", "is a sum"),
    "no-alpha-in-the-weight": (
        _cross(weights=lambda v, span: span / 2 + 0 * v),
        "one-level-a-sample",
        "is missing: log variance",
    ),
    "alpha-upside-down": (_cross(weights=lambda v, span: span * (1 - v) / 2), "one-level-a-sample", "denominator"),
    "no-half": (_cross(weights=lambda v, span: span / (1 - v)), "one-level-a-sample", "half is missing"),
    "alpha-squared": (_cross(alpha=lambda v: 1 - v), "one-level-a-sample", "the root"),
    "one-minus-sigma": (_cross(alpha=lambda v: 1 - v.sqrt()), "one-level-a-sample", "not 1 - sigma"),
    "no-density": (_cross(weights=lambda v, span: 1 / (1 - v) / 2), "one-level-a-sample", "length of the interval"),
    "unweighted": (_cross(weights=lambda v, span: 1 + 0 * v), "one-level-a-sample"),
}

# -- ex-13-mixed ------------------------------------------------------------------------------------------------------


def _mixed(share=torch.sigmoid, simple=lambda z, s: s * z):
    return lambda z_t, sigma, network, logit: torch.lerp(
        simple(z_t, sigma[:, None]), network, share(logit).expand_as(z_t)
    )


def mixed_by_hand(z_t, sigma, network, logit):
    a = 1 / (1 + torch.exp(-logit))
    return (1 - a) * z_t * sigma.reshape(-1, 1) + a * network


def mixed_in_float32(z_t, sigma, network, logit):
    return _mixed()(z_t.float(), sigma.float(), network.float(), logit.float())


def mixed_by_softmax(z_t, sigma, network, logit):
    shares = torch.stack([torch.zeros_like(logit), logit]).softmax(0)
    return torch.einsum("kd,kbd->bd", shares, torch.stack([z_t * sigma[:, None], network]))


MIXED = {
    "form-forgot-return": (lambda z_t, sigma, network, logit: None, "form"),
    "sigma-of-the-wrong-axis": (
        lambda z_t, sigma, network, logit: torch.lerp(sigma[: z_t.shape[1]] * z_t, network, logit.sigmoid()),
        "each-number-its-share",
    ),
    "exchanged": (_mixed(share=lambda logit: (-logit).sigmoid()), "each-number-its-share", "exchanged"),
    "no-sigmoid": (_mixed(share=lambda logit: logit), "each-number-its-share", "no share yet"),
    "no-sigma": (_mixed(simple=lambda z, s: z), "each-number-its-share", "not z_t"),
    "divided": (_mixed(simple=lambda z, s: z / s), "each-number-its-share", "not divided"),
    "alpha": (_mixed(simple=lambda z, s: (1 - s**2).sqrt() * z), "each-number-its-share", "alpha is not asked for"),
    "exp-over-exp": (
        lambda z_t, sigma, network, logit: _mixed(share=lambda l: l.exp() / (1 + l.exp()))(z_t, sigma, network, logit),
        "extreme-logits",
    ),
    "network-alone": (lambda z_t, sigma, network, logit: network, "each-number-its-share"),
}

# -- ex-13-scatter ----------------------------------------------------------------------------------------------------


def _scatter(normalise=True, chi=lambda dims: 1 + 2 / dims, less=1.0, inverse=False):
    def scatter(gain, density, dims):
        r = density / density.mean() if normalise else density
        second = (gain**2 * r if inverse else gain**2 / r).mean() / gain.mean() ** 2
        return (chi(dims) * second - less).item()

    return scatter


def scatter_in_numpy(gain, density, dims):
    gain, density = (np.asarray(part, dtype=np.float64) for part in (gain, density))
    mass = density / density.sum()
    values = gain / mass / len(gain)
    mean = dims * (mass * values).sum()
    return ((dims**2 + 2 * dims) * (mass * values**2).sum() - mean**2) / mean**2


def scatter_by_a_loop(gain, density, dims):
    total = sum(density) / len(density)
    second = sum(g * g * total / r for g, r in zip(gain, density, strict=True)) * len(gain) / sum(gain) ** 2
    return second * (dims + 2) / dims - 1


def scatter_by_two_variances(gain, density, dims):
    """Over t, and of the chi-square: (1 + a)(1 + b) - 1."""
    r = density / density.mean()
    over_t = (r * (gain / r - gain.mean()).square()).mean() / gain.mean() ** 2
    return over_t + 2 / dims + over_t * 2 / dims


SCATTER = {
    "form-forgot-return": (lambda gain, density, dims: None, "form"),
    "form-a-vector": (lambda gain, density, dims: gain / density, "form"),
    "not-normalised": (_scatter(normalise=False), "any-proposal", "integrate to one"),
    "no-chi-square": (_scatter(chi=lambda dims: 1.0), "any-proposal", "chi-square is missing"),
    "second-moment": (_scatter(less=0.0), "any-proposal", "has one less"),
    "multiplied": (_scatter(inverse=True), "any-proposal", "not multiplied"),
    "two-not-two-over-d": (_scatter(chi=lambda dims: 3.0), "any-proposal", "not 2"),
    "added": (
        lambda gain, density, dims: _scatter(chi=lambda d: 1.0)(gain, density, dims) + 2 / dims,
        "any-proposal",
        "it multiplies",
    ),
    "the-bound": (lambda gain, density, dims: 2 / dims, "any-proposal"),
}

# -- ex-13-route ------------------------------------------------------------------------------------------------------


def _routed(chain=True, mean=True, half=1.0, sign=1.0, exchanged=False, detached=False):
    def routed_gradients(theta, z_0, eps, alpha, sigma, w_q, w_p):
        w_q, w_p = (w_p, w_q) if exchanged else (w_q, w_p)
        z_t = alpha[:, None] * z_0 + sigma[:, None] * eps
        error, count = sign * half * (theta * z_t - eps), len(z_0) if mean else 1
        grad = w_q[:, None] * (alpha[:, None] if chain else 1) * theta * error / count
        return grad * (0 if detached else 1), (w_p[:, None] * error * z_t).sum(0) / count

    return routed_gradients


def routed_by_two_passes(theta, z_0, eps, alpha, sigma, w_q, w_p):
    with torch.enable_grad():
        z, own = z_0.detach().clone().requires_grad_(), theta.detach().clone().requires_grad_()
        error = (eps - own * (alpha[:, None] * z + sigma[:, None] * eps)).square().sum(1) / 2
        grad = torch.autograd.grad((w_q * error).mean(), z, retain_graph=True)[0]
        return grad, torch.autograd.grad((w_p * error).mean(), own)[0]


def _in_one_pass(safe):
    def routed_gradients(theta, z_0, eps, alpha, sigma, w_q, w_p):
        with torch.enable_grad():
            z, own = z_0.detach().clone().requires_grad_(), theta.detach().clone().requires_grad_()
            z_t = alpha[:, None] * z + sigma[:, None] * eps
            if safe:  # the prior's gradient is scaled instead: its parameters' copy for each sample
                shown = own.detach() + (w_p / w_q)[:, None] * (own - own.detach())
                loss = (w_q / 2 * (eps - shown * z_t).square().sum(1)).mean()
            else:
                shown = z_t.detach() + (w_q / w_p)[:, None] * (z_t - z_t.detach())
                loss = (w_p / 2 * (eps - own * shown).square().sum(1)).mean()
            return torch.autograd.grad(loss, [z, own])

    return routed_gradients


def routed_one_by_one(theta, z_0, eps, alpha, sigma, w_q, w_p):
    rows, total = [], torch.zeros_like(theta)
    for z, e, a, s, q, p in zip(z_0, eps, alpha, sigma, w_q, w_p, strict=True):
        z_t = a * z + s * e
        rows.append(q * a * theta * (theta * z_t - e) / len(z_0))
        total = total + p * (theta * z_t - e) * z_t / len(z_0)
    return torch.stack(rows), total


ROUTE = {
    "form-forgot-return": (lambda theta, z_0, eps, alpha, sigma, w_q, w_p: None, "form"),
    "form-theta-first": (lambda *given, **named: _routed()(*given, **named)[::-1], "form"),
    "no-chain-rule": (_routed(chain=False), "encoder", "alpha"),
    "sum": (_routed(mean=False), "encoder", "mean of its samples"),
    "no-half": (_routed(half=2.0), "encoder", "half"),
    "exchanged": (_routed(exchanged=True), "encoder", "other's weight"),
    "ascent": (_routed(sign=-1.0), "encoder", "sign"),
    "detached": (_routed(detached=True), "encoder", "detached"),
    "one-weight": (
        lambda theta, z_0, eps, alpha, sigma, w_q, w_p: _routed()(theta, z_0, eps, alpha, sigma, w_q, w_q),
        "prior",
        "other's weight",
    ),
    "ratio-of-zero": (_in_one_pass(safe=False), "a-weight-of-zero", "not finite"),
}

# -- ex-13-where ------------------------------------------------------------------------------------------------------

ROOTS = moments()[1].sqrt()
CLEAN_FIRST = torch.linspace(3, 1, BINS)

WHERE = {
    "form-too-few": (torch.ones(BINS - 1), "form"),
    "all-alike": (torch.ones(BINS), "scatters-little", "none"),
    "mean-square": (moments()[1], "scatters-little", "root of the mean square"),
    "clean-first": (CLEAN_FIRST, "scatters-little"),
    "one-bin-never": (torch.cat([torch.zeros(1, dtype=torch.float64), ROOTS[1:]]), "masses", "positive"),
}

RIGHT = {
    "ex-13-terms": {
        "distributions": terms_by_distributions,
        "float32": terms_in_float32,
        "minidiff": terms_by_minidiff,
    },
    "ex-13-cross": {"one-by-one": cross_one_by_one, "float32": cross_in_float32, "log-snr": cross_by_keywords},
    "ex-13-mixed": {"by-hand": mixed_by_hand, "float32": mixed_in_float32, "softmax": mixed_by_softmax},
    "ex-13-scatter": {"numpy": scatter_in_numpy, "loop": scatter_by_a_loop, "two-variances": scatter_by_two_variances},
    "ex-13-route": {
        "two-passes": routed_by_two_passes,
        "one-pass": _in_one_pass(safe=True),
        "one-by-one": routed_one_by_one,
    },
    "ex-13-where": {"roots": ROOTS, "list": ROOTS.tolist(), "percent": (100 * ROOTS / ROOTS.sum()).round() + 1},
}

MUTANTS = {
    "ex-13-terms": TERMS,
    "ex-13-cross": CROSS,
    "ex-13-mixed": MIXED,
    "ex-13-scatter": SCATTER,
    "ex-13-route": ROUTE,
    "ex-13-where": WHERE,
}
