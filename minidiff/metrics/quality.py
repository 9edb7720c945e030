"""Distances between sets of images, scores of one set, and the bound of a system.

Features are (N, d), one row an image, of a network that is not being judged. Every function is a plug-in estimate; what
the number of images does to it is said where it matters. The distances are our own few lines because an interval needs
the same function of half the features hundreds of times, which the accumulating metrics of torchmetrics do not offer;
the tests hold them against torchmetrics.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..arguments import Count, Randomness, checked, floats, integers, numbers
from ..condition import each
from ..denoiser import conditioned
from ..likelihood import VLB, vlb_terms
from ..random import require_generators
from ..systems.diffusion import Diffusion


@checked
def frechet_distance(features: floats(), reference: floats()) -> float:
    """|mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)), means and covariances of both.

    Heusel et al. 2017, equation 6; in float64. The estimate is too large by a term in 1/N that depends on the model, so
    numbers compare only at equal N (Chong and Forsyth 2020); ``bootstrap(..., debias=True)`` takes that term off.

    Args:
        features: (N, d).
        reference: (M, d).

    Raises:
        ValueError: unless both are (more than d, d), finite.
    """
    features, reference = _checked(features, reference)
    d = features.shape[1]
    if min(len(features), len(reference)) <= d:
        counts = f"{len(features)} and {len(reference)}"
        raise ValueError(f"covariances of {d} features need more than {d} images in each set, got {counts}")
    mean1, mean2 = features.mean(0), reference.mean(0)
    covariance1, covariance2 = features.T.cov().reshape(d, d), reference.T.cov().reshape(d, d)
    values, vectors = torch.linalg.eigh(covariance1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    # S_1 S_2 has the eigenvalues of the symmetric S_1^(1/2) S_2 S_1^(1/2)
    cross = torch.linalg.eigvalsh(root @ covariance2 @ root).clamp(min=0).sqrt().sum()
    out = (mean1 - mean2).square().sum() + covariance1.trace() + covariance2.trace() - 2 * cross
    return max(0.0, float(out))  # rounding, where the sets are equal


@checked
def kernel_distance(
    features: floats(),
    reference: floats(),
    labels: numbers("labels") | None = None,
    reference_labels: numbers("others") | None = None,
    degree: Count = 3,
) -> float:
    """The squared maximum mean discrepancy under k(x, y) = (x . y / d + 1)^degree, unbiased.

    Binkowski et al. 2018, section 4 (KID); over all pairs. It can be negative: at equal distributions its mean is 0.

    That holds for independent images. Where a set has a fixed number of each class, two different images of it are of
    the same class too rarely, which makes the distance too small by as much as it often measures; with ``labels``,
    pairs within a class count as often as they should.

    Args:
        features: (N, d).
        reference: (M, d).
        labels: (N,) the classes that the images were drawn by.
        reference_labels: (M,) the same for the reference.
        degree: Degree of the polynomial.

    Raises:
        ValueError: unless both are (N, d), finite, with at least 2 images in each class.
    """
    features, reference = _checked(features, reference)

    def total(a: Tensor, b: Tensor) -> Tensor:
        return sum(((rows @ b.T / a.shape[1] + 1) ** degree).sum() for rows in a.split(1024))

    def among(a: Tensor, classes: Tensor | None) -> Tensor:
        classes = torch.zeros(len(a)) if classes is None else classes
        if len(classes) != len(a):
            raise ValueError(f"need one label an image, got {len(classes)} for {len(a)}")
        out = total(a, a)
        for c in classes.unique():
            own = a[(classes == c).to(a.device)]
            n, pairs = len(own), total(own, own)
            if n < 2:
                raise ValueError(f"pairs need at least 2 images in each class, got {n}")
            diagonal = ((own.square().sum(1) / a.shape[1] + 1) ** degree).sum()
            out = out - pairs + (pairs - diagonal) * n / (n - 1)
        return out / len(a) ** 2

    if min(len(features), len(reference)) < 2:
        raise ValueError(f"pairs need at least 2 images in each set, got {len(features)} and {len(reference)}")
    between = total(features, reference) / (len(features) * len(reference))
    return float(among(features, labels) + among(reference, reference_labels) - 2 * between)


@checked
def inception_score(log_prob: floats("N classes")) -> float:
    """exp E_x KL(p(c | x) || p(c)) with p(c) the mean of p(c | x) (Salimans et al. 2016).

    Between 1 and the number of classes. Over all images at once: the customary ten splits only add bias (Barratt and
    Sharma 2018).

    Args:
        log_prob: (N, classes) log p(c | x).

    Raises:
        ValueError: unless the rows are logarithms of distributions.
    """
    log_prob = _log_distribution(log_prob)
    marginal = torch.logsumexp(log_prob, 0) - math.log(len(log_prob))
    gap = torch.where(log_prob == -math.inf, 0.0, log_prob - marginal)
    return float((log_prob.exp() * gap).sum(1).mean().exp())


@checked
def class_accuracy(log_prob: floats(), labels: numbers()) -> float:
    """The fraction of images (N, classes) that a classifier puts into the class (N,) that was asked for.

    Raises:
        ValueError: unless there is one label a row, for a label that is no class, or for rows that are no logarithms of
            distributions.
    """
    return float(hits(log_prob, labels).double().mean())


@checked
def hits(log_prob: floats(), labels: numbers()) -> Tensor:
    """(N,) whether each image's likeliest class is its label; see ``class_accuracy``."""
    if labels.shape != log_prob.shape[:1]:
        raise ValueError(f"need one label a row, got {tuple(labels.shape)} labels for {tuple(log_prob.shape)}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < log_prob.shape[1]:
        given = f"{int(labels.min())} to {int(labels.max())}"
        raise ValueError(f"labels are classes from 0 to {log_prob.shape[1] - 1}, got {given}")
    return _log_distribution(log_prob).argmax(1) == labels.to(log_prob.device)


@checked
def precision(features: floats("N d"), reference: floats("M d"), k: Count = 3) -> float:
    """The fraction of the images that lie in the reference's support, estimated by balls.

    Kynkaanniemi et al. 2019, equation 2: each reference feature has a ball that reaches its k-th nearest other one.
    Depends on the sizes of both sets: fewer images have larger balls.

    Args:
        features: (N, d).
        reference: (M, d).
        k: Neighbours.

    Raises:
        ValueError: for sets of unequal width or without k neighbours.
    """
    features, reference = _checked(features, reference)
    if not 1 <= k < len(reference):
        raise ValueError(f"need 1 <= k < {len(reference)}, the number of images whose support is estimated; got {k}")
    # the nearest is the image itself
    radius = torch.cat([torch.cdist(rows, reference).kthvalue(k + 1).values for rows in reference.split(1024)])
    inside = [(torch.cdist(rows, reference) <= radius).any(1) for rows in features.split(1024)]
    return float(torch.cat(inside).double().mean())


@checked
def recall(features: floats("N d"), reference: floats("M d"), k: Count = 3) -> float:
    """The fraction of the reference that lies in the images' support: ``precision`` the other way round."""
    return precision(reference, features, k)


@checked
def precision_recall(features: floats("N d"), reference: floats("M d"), k: Count = 3) -> tuple[float, float]:
    """``precision`` (how many images look real) and ``recall`` (how much of what is real can be drawn)."""
    return precision(features, reference, k), recall(features, reference, k)


@checked
def class_scatter(images: numbers("N *S"), labels: integers("N")) -> Tensor:
    """(N,) squared distance of each image from the mean of its class, corrected for that mean's being estimated.

    Averaged over a class it is the trace of the class's covariance, without bias. 0 for the only image of its class.

    Args:
        images: (N, ...).
        labels: (N,) whole numbers >= 0.
    """
    x, member = images.flatten(1).double(), torch.nn.functional.one_hot(labels).double()
    count = member.sum(0)
    means = member.T @ x / count.clamp(min=1)[:, None]
    return (x - means[labels]).square().sum(1) * (count / (count - 1).clamp(min=1))[labels]


@checked
def bits_per_dim(
    system: Diffusion,
    images: floats("N C H W"),
    generator: Randomness = None,
    steps: Count | None = None,
    batch: Count = 64,
    **values,
) -> VLB:
    """The variational bound of each image under its values, in bits per dimension; ``.total`` is (N,).

    One draw of noise a step. The reverse variance is the one that the system learned, beta-tilde where it is fixed.

    Args:
        system: A ``systems.diffusion.Diffusion``.
        images: (N, C, H, W) in [-1, 1], on the system's grid of values.
        generator: One generator, or a list with one per image; with a list the result does not depend on the batch.
        steps: Number of steps of the chain; all of the schedule when left out.
        batch: Images at a time.
        values: Of the system's parts, by key.

    Raises:
        ValueError: for images outside [-1, 1], steps out of range (or none, in continuous time), or values
            that the system does not read.
    """
    require_generators(generator, len(images))
    if steps is None and not hasattr(system.schedule, "T"):
        raise ValueError("a schedule of continuous time has no number of levels: name the steps of the bound")
    levels = system.schedule.levels(steps or system.schedule.T)
    variance = "learned" if system.variance == "learned" else "beta_tilde"
    given, parts = system.read(values, len(images)), []
    for mine in torch.arange(len(images)).split(batch):
        random = [generator[i] for i in mine] if isinstance(generator, list) else generator
        told = {key: each(lambda tensor, mine=mine: tensor[mine], value) for key, value in given.items()}
        with torch.no_grad():
            denoiser = conditioned(system, system.encode(told))
        parts.append(vlb_terms(denoiser, images[mine], levels, random, variance, system.bins))
    return VLB(*(torch.cat([getattr(p, name) for p in parts], -1) for name in ("prior", "steps", "decoder")))


def _checked(features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        shapes = f"{tuple(features.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"features must be (N, d) and (M, d), got {shapes}")
    if not (len(features) and len(reference)):
        raise ValueError("need at least one image in each set")
    if not bool(features.isfinite().all() and reference.isfinite().all()):
        raise ValueError("features must be finite")
    return features.double(), reference.double().to(features.device)


def _log_distribution(log_prob: Tensor) -> Tensor:
    log_prob = log_prob.double()
    if log_prob.ndim != 2 or len(log_prob) == 0 or not bool((torch.logsumexp(log_prob, 1).abs() < 1e-3).all()):
        raise ValueError(f"rows must be logarithms of probabilities that sum to 1, got {tuple(log_prob.shape)}")
    return log_prob
