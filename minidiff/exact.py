"""Closed-form denoisers: worlds in which every quantity of the course is known exactly.

All compute in float64 and answer in the dtype of x. Labels: -1 or None means "no condition", so the same object is a
denoiser ``(x, level)`` and a conditional model ``(x, level, label)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments import Natural, NonNegative, Randomness, checked, floats, integers, numbers
from .prediction import Prediction, require_finite
from .process import as_known
from .random import rand, randn
from .schedule import DATA, NoiseLevel, broadcast

Label = int | integers() | None
MOST_CLASSES = 1_000_000  # each takes a pass over the components


def _require_world(x: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"this world has samples of shape {shape}, got x of shape {tuple(x.shape)}")
    require_finite(x, "x")


def _split(image: Tensor, mask: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(D,) which entries are known, and their values in float64."""
    known = as_known(mask).flatten()
    if tuple(mask.shape) != shape or tuple(image.shape) != shape:
        raise ValueError(
            f"image and mask must have the shape {shape}, got {tuple(image.shape)} and {tuple(mask.shape)}"
        )
    if bool(known.all()):
        raise ValueError("every entry is known; there is nothing left to know")
    return known, image.flatten()[known].double()


@checked
class GaussianDenoiser:
    """The ideal denoiser of N(mean, covariance) data (``eq-gaussian-denoiser``).

    Args:
        mean: (*shape) mean.
        covariance: A number (times the identity), (D,) a diagonal, or (D, D), D the number of entries of the mean.

    Raises:
        ValueError: when the covariance has another shape, is not symmetric or has a negative eigenvalue, or numbers are
            not finite.
    """

    def __init__(self, mean: Tensor, covariance: float | Tensor):
        self.mean = torch.as_tensor(mean, dtype=torch.float64)
        require_finite(self.mean, "mean")
        self.shape, dim = tuple(self.mean.shape), self.mean.numel()
        if not dim:
            raise ValueError(f"a mean of at least one number is accepted, got shape {self.shape}")
        self.covariance = torch.as_tensor(covariance, dtype=torch.float64)
        require_finite(self.covariance, "covariance")
        if self.covariance.ndim < 2 and self.covariance.numel() in (1, dim):
            self.eigenvalues, self.basis = (
                self.covariance.reshape(-1).expand(dim),
                torch.eye(dim, dtype=torch.float64),
            )
        elif self.covariance.shape == (dim, dim):
            if not torch.allclose(self.covariance, self.covariance.T):
                raise ValueError("a covariance is symmetric, this one is not")
            self.eigenvalues, self.basis = torch.linalg.eigh(self.covariance)
        else:
            raise ValueError(f"covariance of {dim} numbers must be scalar, ({dim},) or ({dim}, {dim})")
        if bool((self.eigenvalues < 0).any()):
            raise ValueError("the covariance has a negative eigenvalue")

    def _rotated(self, x: Tensor, level: NoiseLevel):
        """x_t minus its mean in the eigenbasis, alpha, and the variances of x_t along it."""
        _require_world(x, self.shape)
        flat = x.double().flatten(1)
        alpha, sigma = level.like(flat)
        return (
            (flat - alpha * self.mean.flatten()) @ self.basis,
            alpha,
            alpha**2 * self.eigenvalues + sigma**2,
        )

    def __call__(self, x: floats("B *S"), level: NoiseLevel) -> Prediction:
        """E[x_0 | x_t] = m + alpha C (alpha^2 C + sigma^2 I)^-1 (x_t - alpha m), for x (B, *shape)."""
        centred, alpha, variance = self._rotated(x, level)
        x0 = self.mean.flatten() + (centred * alpha * self.eigenvalues / variance) @ self.basis.T
        return Prediction(x, level, x0.reshape(x.shape).to(x.dtype), "x0")

    def log_prob(self, x: floats("B *S"), level: NoiseLevel) -> Tensor:
        """(B,) log q(x_t)."""
        centred, _, variance = self._rotated(x, level)
        return -0.5 * (centred**2 / variance + torch.log(2 * math.pi * variance)).sum(1)

    def posterior_variance(self, x: floats("B *S"), level: NoiseLevel) -> Tensor:
        """(B,) variance of x_0 given x_t, averaged over the dimensions; here the same for every x."""
        _, alpha, variance = self._rotated(x, level)
        return (self.eigenvalues - alpha**2 * self.eigenvalues**2 / variance).mean(-1).expand(len(x))

    def given(self, image: Tensor, mask: Tensor) -> GaussianDenoiser:
        """The world of the unknown entries, in order, when the others are known (``eq-gaussian-conditional``).

        Args:
            image: (*shape); its values where the mask is 0 do not matter.
            mask: (*shape), 1 where an entry is known, 0 elsewhere.

        Raises:
            ValueError: when the shapes differ, nothing is left to know, or the mask holds anything but 0 and 1.
        """
        known, value = _split(image, mask, self.shape)
        covariance = self.basis * self.eigenvalues @ self.basis.T
        mean = self.mean.flatten()
        gain = covariance[~known][:, known] @ torch.linalg.pinv(covariance[known][:, known], hermitian=True)
        rest = covariance[~known][:, ~known] - gain @ covariance[known][:, ~known]
        return GaussianDenoiser(mean[~known] + gain @ (value - mean[known]), rest)

    def sample(self, n: Natural, generator: Randomness = None) -> Tensor:
        """(n, *shape) exact draws, float64."""
        z = randn((n, self.mean.numel()), generator, torch.float64)
        return (self.mean.flatten() + z * self.eigenvalues.sqrt() @ self.basis.T).reshape(n, *self.shape)


@checked
class GaussianMixtureDenoiser:
    """The ideal denoiser of a mixture of isotropic Gaussians, with a class label on each component.

    Args:
        means: (K, *shape) component means.
        variance: One variance for all components, or (K,).
        weights: (K,) positive component weights, normalised here; equal when left out.
        labels: (K,) class of each component, 0 ... n_classes-1; the component's own index when left out.

    Raises:
        ValueError: for no means, shapes that do not agree, negative variances or labels, weights that are not positive,
            or numbers that are not finite.
    """

    def __init__(
        self,
        means: numbers("K *S"),
        variance: float | Tensor,
        weights: Tensor | Sequence[float] | None = None,
        labels: integers() | Sequence[int] | None = None,
    ):
        self.means = torch.as_tensor(means, dtype=torch.float64)
        require_finite(self.means, "means")
        K = len(self.means)
        if not self.means.numel():
            raise ValueError(f"a mixture needs at least one mean of at least one number, got {tuple(self.means.shape)}")
        self.shape, self.dim = tuple(self.means.shape[1:]), self.means[0].numel()
        self.variance = torch.as_tensor(variance, dtype=torch.float64).reshape(-1)
        weights = torch.ones(K) if weights is None else torch.as_tensor(weights)
        self.labels = torch.arange(K) if labels is None else torch.as_tensor(labels).long()
        if self.variance.numel() not in (1, K) or weights.shape != (K,) or self.labels.shape != (K,):
            raise ValueError(f"{K} means need a scalar or ({K},) variance, ({K},) weights and ({K},) labels")
        for value, name in ((self.variance, "variance"), (weights, "weights")):
            require_finite(value, name)
        if bool((self.variance < 0).any()) or bool((weights <= 0).any()) or bool((self.labels < 0).any()):
            raise ValueError("variances and labels must not be negative, weights must be positive")
        require_finite(weights.double().sum(), "sum of the weights")
        self.weights = weights.double() / weights.double().sum()
        self.n_classes = int(self.labels.max()) + 1
        if self.n_classes > MOST_CLASSES:
            raise ValueError(f"labels number classes from 0; {self.n_classes - 1} would make more than {MOST_CLASSES}")
        self._flat = self.means.reshape(K, self.dim)
        self._norms = self._flat.square().sum(1)

    def _label_mask(self, label: Label, batch: int) -> Tensor | None:
        """(B or 1, K) True where a component belongs to the label; None when nothing is conditioned on."""
        if label is None:
            return None
        label = torch.as_tensor(label).long().reshape(-1)  # in unsigned types -1 would be the largest number
        if bool(((label < -1) | (label >= self.n_classes)).any()) or len(label) not in (1, batch):
            raise ValueError(
                f"labels must be -1 (none) or 0 ... {self.n_classes - 1}, one or {batch} of them; got {label}"
            )
        mask = (label[:, None] == self.labels) | (label[:, None] == -1)
        if not bool(mask.any(1).all()):
            raise ValueError(f"labels here are {sorted(set(self.labels.tolist()))} (or -1, none), got {label}")
        return mask

    def _log_joint(self, x: Tensor, level: NoiseLevel, label: Label):
        """(B, K) log of weight times component density at x_t, with the flat x, alpha, sigma and component variance."""
        _require_world(x, self.shape)
        flat = x.double().flatten(1)
        alpha, sigma = level.like(flat)
        total = alpha**2 * self.variance + sigma**2
        if bool((torch.as_tensor(total) <= 0).any()):
            raise ValueError("points without variance have no density at sigma = 0")
        square = flat.square().sum(1, keepdim=True) - 2 * alpha * flat @ self._flat.T + alpha**2 * self._norms
        log_joint = self.weights.log() - 0.5 * (square / total + self.dim * torch.log(2 * math.pi * total))
        mask = self._label_mask(label, len(x))
        if mask is not None:
            prior = torch.where(mask, self.weights, 0.0).sum(1, keepdim=True)
            log_joint = torch.where(mask, log_joint, -math.inf) - prior.log()
        return log_joint, flat, alpha, sigma, total

    def _posterior(self, x: Tensor, level: NoiseLevel, label: Label):
        """Responsibilities (B, K) and, for each component, E[x_0 | x_t, k] = shrink_k x_t + keep_k mean_k."""
        log_joint, flat, alpha, sigma, total = self._log_joint(x, level, label)
        return log_joint.softmax(1), flat, alpha * self.variance / total, sigma**2 / total

    def __call__(self, x: floats("B *S"), level: NoiseLevel, label: Label = None) -> Prediction:
        """E[x_0 | x_t] (``eq-mixture-denoiser``), or E[x_0 | x_t, c] with a label, for x (B, *shape)."""
        responsibility, flat, shrink, keep = self._posterior(x, level, label)
        x0 = (responsibility * shrink).sum(1, keepdim=True) * flat + (responsibility * keep) @ self._flat
        return Prediction(x, level, x0.reshape(x.shape).to(x.dtype), "x0")

    def log_prob(self, x: floats("B *S"), level: NoiseLevel, label: Label = None) -> Tensor:
        """(B,) log q(x_t), or log q(x_t | c)."""
        return self._log_joint(x, level, label)[0].logsumexp(1)

    def log_prob_label(self, x: floats("B *S"), level: NoiseLevel) -> Tensor:
        """(B, n_classes) log p(c | x_t): the exact noise-aware classifier (``eq-bayes-level``)."""
        log_joint = self._log_joint(x, level, None)[0]
        classes = [log_joint[:, self.labels == c].logsumexp(1) for c in range(self.n_classes)]
        return torch.stack(classes, 1) - log_joint.logsumexp(1, keepdim=True)

    def classifier(self, label: int | integers("B") | integers("")):
        """``(x, level) -> (B,)`` log p(label | x_t), in the form that guidance takes.

        Raises:
            ValueError: when a label is not one of 0 ... n_classes-1.
        """
        given = torch.as_tensor(label).long()
        if bool(((given < 0) | (given >= self.n_classes)).any()):
            raise ValueError(f"a classifier needs labels 0 ... {self.n_classes - 1}, got {label}")

        def log_prob(x: Tensor, level: NoiseLevel) -> Tensor:
            if given.numel() not in (1, len(x)):
                raise ValueError(f"{given.numel()} labels for a batch of {len(x)}: give one, or one per sample")
            chosen = given.expand(len(x))
            return self.log_prob_label(x, level).gather(1, chosen[:, None])[:, 0]

        return log_prob

    def posterior_variance(self, x: floats("B *S"), level: NoiseLevel, label: Label = None) -> Tensor:
        """(B,) variance of x_0 given x_t, averaged over the dimensions."""
        r, flat, shrink, keep = self._posterior(x, level, label)
        within = (r * keep * self.variance).sum(1)
        cross = 2 * shrink * keep * (flat @ self._flat.T)
        squares = shrink**2 * flat.square().sum(1, keepdim=True) + cross + keep**2 * self._norms
        mean = (r * shrink).sum(1, keepdim=True) * flat + (r * keep) @ self._flat
        between = ((r * squares).sum(1) - mean.square().sum(1)).clamp(min=0) / self.dim
        return within + between

    def conditional(self, label: int) -> GaussianMixtureDenoiser:
        """The mixture of one class alone, its label kept."""
        keep = self._label_mask(label, 1)[0]
        variance = self.variance if self.variance.numel() == 1 else self.variance[keep]
        return GaussianMixtureDenoiser(self.means[keep], variance, self.weights[keep], self.labels[keep])

    def given(self, image: Tensor, mask: Tensor) -> GaussianMixtureDenoiser:
        """The world of the unknown entries, in order, when the others are known: the same components, reweighted by how
        well they explain the known (``eq-posterior-weights``).

        Args:
            image: (*shape); its values where the mask is 0 do not matter.
            mask: (*shape), 1 where an entry is known, 0 elsewhere.

        Raises:
            ValueError: when the shapes differ, nothing is left to know, the mask holds anything but 0 and 1, or a
                component has no variance.
        """
        known, value = _split(image, mask, self.shape)
        if bool((self.variance == 0).any()):
            raise ValueError("components without variance explain nothing but themselves; give them a bandwidth")
        square = (value - self._flat[:, known]).square().sum(1) / self.variance
        log_weight = self.weights.log() - 0.5 * (square + len(value) * self.variance.log())
        weights = log_weight.softmax(0).clamp(min=1e-300)
        return GaussianMixtureDenoiser(self._flat[:, ~known], self.variance, weights, self.labels)

    def sample(self, n: Natural, generator: Randomness = None, label: Label = None) -> Tensor:
        """(n, *shape) exact draws of x_0, float64."""
        weights = self.weights.expand(n, -1)
        mask = self._label_mask(label, n)
        if mask is not None:
            weights = torch.where(mask, weights, 0.0)
        cumulative = weights.cumsum(1)
        u = rand((n,), generator, torch.float64) * cumulative[:, -1]
        k = torch.searchsorted(cumulative, u[:, None], right=True)[:, 0].clamp(max=len(self.means) - 1)
        std = self.variance.expand(len(self.means))[k].sqrt()
        return self.means[k] + broadcast(std, self.means[k]) * randn((n, *self.shape), generator, torch.float64)


@checked
class EmpiricalDenoiser(GaussianMixtureDenoiser):
    """The ideal denoiser of a finite set of images: a mixture with one component each (``eq-empirical``).

    Args:
        images: (N, *shape).
        labels: (N,) classes, or None for a single class.
        bandwidth: Standard deviation of the Gaussian around each image; 0 is the training set itself.
    """

    def __init__(self, images: numbers("N *S"), labels: integers("N") | None = None, bandwidth: NonNegative = 0.0):
        self.bandwidth = bandwidth
        labels = torch.zeros(len(images), dtype=torch.long) if labels is None else labels
        super().__init__(images, bandwidth**2, labels=labels)


@checked
class EncodedMixture:
    """A mixture of which an encoder keeps some numbers: prior and decoder in closed form (``eq-exact-parts``).

    The embedding is z = f(x), the kept numbers. Where components are isotropic every linear f with orthonormal rows is
    this one in other coordinates.

    Args:
        world: The mixture, flat: samples are (D,). Components must have a variance.
        keep: (D,) 1 for the numbers that the encoder keeps, 0 for the others; some of both.

    Raises:
        ValueError: for another shape, a mask that keeps all or nothing, or components without variance.
    """

    def __init__(self, world: GaussianMixtureDenoiser, keep: numbers("D")):
        self.keep = as_known(keep)
        if len(world.shape) != 1 or self.keep.shape != world.shape or not 0 < int(self.keep.sum()) < world.dim:
            raise ValueError(
                f"an encoder keeps some of the numbers of a flat world, not all; got {self.keep.tolist()} for samples "
                f"of shape {world.shape}"
            )
        if bool((world.variance == 0).any()):
            raise ValueError("components without variance cannot be told apart by some of their numbers")
        part = lambda mask: GaussianMixtureDenoiser(world.means[:, mask], world.variance, world.weights, world.labels)
        self.world, self.seen, self.rest = world, part(self.keep), part(~self.keep)

    def encode(self, x: floats("B D")) -> Tensor:
        """f: (B, D) -> (B, d)."""
        _require_world(x, self.world.shape)
        return x[:, self.keep]

    def prior(self, label: Natural) -> GaussianMixtureDenoiser:
        """p(z | c), a mixture."""
        return self.seen.conditional(label)

    def _log_weights(self, z: Tensor, label: Label) -> Tensor:
        """(B, K) log p(component | z, c)."""
        return self.seen._log_joint(z, DATA, label)[0].log_softmax(1)

    def log_prob(self, x: floats("B D"), label: Label = None) -> Tensor:
        """(B,) log p(x | f(x), c), a density of the numbers that f forgets."""
        log_joint = self.rest._log_joint(x[:, ~self.keep], DATA, None)[0] - self.world.weights.log()
        return (self._log_weights(self.encode(x), label) + log_joint).logsumexp(1)

    def decoder(self, z: floats("B d"), label: Label = None):
        """The denoiser of p(x | z, c): ``(x, level) -> Prediction`` for x (B, D).

        Args:
            z: (B, d), one embedding for each sample.
            label: Captions; None or -1 for a decoder that is not told any.
        """
        log_weights = self._log_weights(z, label)

        def denoiser(x: Tensor, level: NoiseLevel) -> Prediction:
            _require_world(x, self.world.shape)
            own, flat, alpha, sigma, total = self.rest._log_joint(x[:, ~self.keep], level, None)
            weights = (log_weights + own - self.world.weights.log()).softmax(1)
            x0 = torch.empty(x.shape, dtype=torch.float64)
            x0[:, self.keep] = z.double()
            shrink, stay = alpha * self.world.variance / total, sigma**2 / total
            x0[:, ~self.keep] = (weights * shrink).sum(1, keepdim=True) * flat + (weights * stay) @ self.rest._flat
            return Prediction(x, level, x0.to(x.dtype), "x0")

        return denoiser
