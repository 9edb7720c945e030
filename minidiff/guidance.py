"""Guidance: functions from denoisers to denoisers. They compose by nesting; guide first, threshold last."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .arguments import Finite, NonNegative, Share, Some, called, checked, floats, numbers
from .condition import concatenate
from .denoiser import ConditionalModel, Denoiser, conditioned
from .prediction import KINDS, Prediction
from .process import as_known
from .schedule import NoiseLevel


def _is_of_something(log_prob) -> bool:
    """Whether it is not the classifier or CLIP itself, which can guide towards anything that it knows."""
    return not any(hasattr(log_prob, name) for name in ("classifier", "critic"))


LogProb = called(
    "a function of (x, level) such as classifier(label) of a classifier or critic(captions) of a CLIP",
    Callable[[Tensor, NoiseLevel], Tensor],
    _is_of_something,
)
Guide = called(  # from a model, its condition and its null
    "a guide such as cfg(3.0) or adm(log_prob, 1.0), a function of (model, condition, null)",
    Callable[[ConditionalModel, object, object], Denoiser],
)
UpperEnd = called("a number > 0, infinity for no upper end", float, lambda v: v > 0)


def _require_interval(low: float, high: float) -> None:
    if not 0 <= low < high:
        raise ValueError(f"a guidance interval needs 0 <= low < high, as sigma / alpha; got {low} and {high}")


@checked
def scale_from_w(w: Finite) -> float:
    """s = 1 + w: from the paper's guidance strength (Ho and Salimans 2022) to the scale used here."""
    return 1 + w


@checked
def w_from_scale(s: Finite) -> float:
    """w = s - 1, the inverse of ``scale_from_w``."""
    return s - 1


@checked
def grad_log_prob(log_prob: LogProb, x: floats("B *S"), level: NoiseLevel) -> Tensor:
    """Gradient of log p(c | x_t) with respect to x_t, each sample its own; shaped as x.

    Raises:
        ValueError: when log_prob does not return one number per sample.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
        value = log_prob(x, level)
        if value.shape != x.shape[:1]:
            raise ValueError(f"log_prob must return shape ({len(x)},), one number per sample, not {tuple(value.shape)}")
        return torch.autograd.grad(value.float().sum() if value.dtype.itemsize < 4 else value.sum(), x)[0]


@checked
def classifier_guidance(denoiser: Denoiser, log_prob: LogProb, scale: Finite) -> Denoiser:
    """Shift the score: score + s grad log p(c | x_t) (``eq-classifier-guidance``; Song et al. 2021b, equation 48).

    Args:
        denoiser: The unconditional (or already conditional) denoiser.
        log_prob: ``(x_t, level) -> (B,)`` log p(c | x_t), for the level it is asked at.
        scale: s; 1 is Bayes' rule.

    Raises:
        ValueError: when the scale is not finite, or log_prob is no such function.
    """

    def guided(x: Tensor, level: NoiseLevel) -> Prediction:
        prediction = denoiser(x, level)
        sigma = level.like(x)[1]
        return prediction.with_eps(prediction.eps - sigma * scale * grad_log_prob(log_prob, x, level))

    return guided


@checked
def mean_shift_guidance(denoiser: Denoiser, log_prob: LogProb, scale: Finite) -> Denoiser:
    """ADM's rule: shift the reverse mean by Sigma s grad log p(c | x_t) (``eq-mean-shift``; Dhariwal and Nichol 2021,
    algorithm 1), the gradient taken at x_t as in their code. Only ancestral samplers have a Sigma to shift by:
    ``ancestral("learned")`` where the model predicts its variance.

    Raises:
        ValueError: when the scale is not finite, or log_prob is no function of x and the level.
    """

    def guided(x: Tensor, level: NoiseLevel) -> Prediction:
        prediction = denoiser(x, level)
        tilt = scale * grad_log_prob(log_prob, x, level)
        return prediction.replace(tilt=tilt if prediction.tilt is None else prediction.tilt + tilt)

    return guided


@checked
def clip_guidance(clip, captions, scale: Finite) -> Callable[[Denoiser], Denoiser]:
    """Guide by a CLIP: score + s grad f(x_t) . g(c) / tau (``eq-clip-guidance``; Nichol et al. 2021, section 2.4).

    A critic that estimates log p(x_t, c) / (p(x_t) p(c)) up to a constant has the gradient of log p(c | x_t), so this
    is classifier guidance, and s = 1 is Bayes' rule as far as the critic is right. The temperature tau belongs to the
    critic: to guide by bare cosines at scale s / tau is the same. GLIDE shifts the mean by Sigma times the gradient;
    that is ``mean_shift_guidance(denoiser, clip.critic(captions), scale)``.

    Args:
        clip: What has a ``critic``, see ``systems.clip.CLIP``. The texts are embedded here, once.
        captions: One caption for all samples, one for each, or their tokens.
        scale: s.

    Returns:
        From the unconditional (or already conditional) denoiser to the guided one.

    Raises:
        ValueError: when the scale is not finite, for what is no CLIP, or captions that it refuses.
    """
    critic = _critic(clip, captions)
    return lambda denoiser: classifier_guidance(denoiser, critic, scale)


def _critic(clip, captions) -> LogProb:
    if not hasattr(clip, "critic"):
        raise ValueError(
            f'a CLIP guides here, such as minidiff.load("scenes-clip-noisy"); a {type(clip).__name__} has no critic'
        )
    return clip.critic(captions)


@checked
def classifier_free(model: ConditionalModel, condition, null, scale: Finite) -> Denoiser:
    """eps_u + s (eps_c - eps_u), both halves in one pass (``eq-cfg``; Ho and Salimans 2022, with s = 1 + w).

    The learned variance, if any, is the conditional one. At s = 1 the unconditional pass is left out, so that the
    result is the conditional prediction bit for bit.

    Args:
        model: Conditional model.
        condition: What to draw, for the whole batch; of a closed-form denoiser one label, or (B,) of them.
        null: The null condition, same form; -1 there.
        scale: s; 1 is plain conditional, 0 unconditional.

    Raises:
        ValueError: when the scale is not finite.
    """
    if scale == 1:
        return lambda x, level: model(x, level, condition)

    def guided(x: Tensor, level: NoiseLevel) -> Prediction:
        told = (torch.full((len(x),), c, device=x.device) if isinstance(c, int) else c for c in (condition, null))
        both = model(torch.cat([x, x]), level.repeat(2), concatenate(*told))
        cond, uncond = both.chunk(2, level)
        return cond.with_eps(uncond.eps + scale * (cond.eps - uncond.eps))

    return guided


@checked
def static_threshold(denoiser: Denoiser, low: Finite = -1.0, high: Finite = 1.0) -> Denoiser:
    """Clamp x_0 to the range of the data; eps follows from the clamped x_0 (Ho et al. 2020; ADM).

    Raises:
        ValueError: unless low < high.
    """
    if not low < high:
        raise ValueError(f"a threshold needs low < high, got {low} and {high}")

    def thresholded(x: Tensor, level: NoiseLevel) -> Prediction:
        prediction = denoiser(x, level)
        return prediction.with_x0(prediction.x0.clamp(low, high))

    return thresholded


@checked
def dynamic_threshold(percentile: Some = 0.995) -> Callable[[Denoiser], Denoiser]:
    """Clamp x_0 to where most of it lies, and bring that to [-1, 1]; eps follows (Saharia et al. 2022, section 2.3).

    s is the quantile of |x_0| over all pixels and channels of a sample, and at least 1; x_0 becomes clamp(x_0, -s, s) /
    s. A sample whose s is 1 is clamped as by ``static_threshold``; one that guidance has blown up keeps its contrasts,
    where static clipping would saturate them.

    Args:
        percentile: Share of a sample's numbers that lie within s before it is raised to 1.

    Returns:
        From a denoiser to the one whose x_0 is thresholded: ``draw(..., threshold=dynamic_threshold(0.995))``.

    Raises:
        ValueError: for a share outside (0, 1].
    """

    def threshold(denoiser: Denoiser) -> Denoiser:
        def thresholded(x: Tensor, level: NoiseLevel) -> Prediction:
            prediction = denoiser(x, level)
            x0 = prediction.x0
            exact = x0.double() if x0.dtype is torch.float64 else x0.float()  # a quantile of halves is a coarse one
            s = quantile(exact.abs().flatten(1), percentile).clamp(min=1).reshape(-1, *[1] * (x0.ndim - 1))
            return prediction.with_x0((exact.clamp(-s, s) / s).to(x0.dtype))

        return thresholded

    return threshold


@checked
def quantile(values: floats("B N"), share: Share) -> Tensor:
    """(B, N) -> (B,) the quantile of each row, between two numbers by linear interpolation; of rows of any length.

    ``torch.quantile`` refuses halves and more than 2^24 numbers, which one picture of 4096 pixels a side has.

    Args:
        values: At least one number a row.
        share: 0 is the smallest, 1 the largest.
    """
    place = share * (values.shape[1] - 1)
    lower = math.floor(place)
    low = values.kthvalue(lower + 1, dim=1).values
    if lower == place:
        return low
    return torch.lerp(low, values.kthvalue(lower + 2, dim=1).values, place - lower)


@checked
def replace_known(denoiser: Denoiser, image: floats("B/1 *S"), mask: numbers("B/1 *S/1")) -> Denoiser:
    """Impose known pixels on x_0; eps follows (``eq-impose``; GLIDE's released code, ``denoised_fn``).

    The last step of a sampler then returns the known pixels as they are. The other pixels hear of them only through
    the noisy x_t, unless the denoiser reads them as well.

    Args:
        denoiser: Any denoiser.
        image: (B or 1, C, H, W); its values where the mask is 0 do not matter.
        mask: (B or 1, 1 or C, H, W), **1 where a pixel is known** and kept, 0 where it is to be painted.

    Raises:
        ValueError: when the mask holds anything but 0 and 1.
    """
    known = as_known(mask)

    def imposed(x: Tensor, level: NoiseLevel) -> Prediction:
        prediction = denoiser(x, level)
        return prediction.with_x0(torch.where(known, image.to(x), prediction.x0))

    return imposed


@checked
def autoguidance(model: Denoiser, weak: Denoiser, scale: Finite) -> Denoiser:
    """Extrapolate away from a weaker model: eps_w + s (eps_m - eps_w) (``eq-autoguidance``; Karras et al. 2024).

    With the same network asked without its condition as ``weak`` this is classifier-free guidance in two passes. The
    learned variance, if any, is the model's. At s = 1 the weak model is not asked.

    Args:
        model: The denoiser to improve.
        weak: A worse version of it, under the same condition.
        scale: s; 1 is the model alone.

    Raises:
        ValueError: when the scale is not finite.
    """
    if scale == 1:
        return model

    def guided(x: Tensor, level: NoiseLevel) -> Prediction:
        strong, eps = model(x, level), weak(x, level).eps
        return strong.with_eps(eps + scale * (strong.eps - eps))

    return guided


@checked
def guidance_interval(guided: Denoiser, plain: Denoiser, low: NonNegative, high: UpperEnd) -> Denoiser:
    """Guide only where low < sigma / alpha <= high (``eq-guidance-interval``; Kynkaanniemi et al. 2024).

    Levels of the whole batch ask one of the two denoisers, levels of one entry per sample ask both.

    Args:
        guided: Used inside the interval.
        plain: Used outside, usually the conditional denoiser.
        low: Cleaner end, as sigma / alpha; 0 guides down to the data.
        high: Noisier end; infinity guides from pure noise.

    Raises:
        ValueError: unless 0 <= low < high.
    """
    _require_interval(low, high)

    def limited(x: Tensor, level: NoiseLevel) -> Prediction:
        inside = low * level.alpha < level.sigma
        if math.isfinite(high):  # infinity times 0, at pure noise, is no number
            inside = inside & (level.sigma <= high * level.alpha)
        if not isinstance(inside, Tensor) or not inside.ndim:
            return (guided if inside else plain)(x, level)
        inside = inside.to(x.device).reshape(-1, *[1] * (x.ndim - 1))
        outside = plain(x, level)
        return outside.with_eps(torch.where(inside, guided(x, level).eps, outside.eps))

    return limited


@checked
def rescaled(guided: Denoiser, conditional: Denoiser, phi: Share = 0.7, kind: str = "v") -> Denoiser:
    """Give the guided prediction back the standard deviation of the conditional one (``eq-rescaled``; Lin et al. 2024).

    phi g std(c) / std(g) + (1 - phi) g, the deviations over all numbers of one sample. Unlike guidance itself the
    result depends on the parametrisation, so name it.

    Args:
        guided: The guided denoiser g.
        conditional: The conditional denoiser c; it is asked once more.
        phi: Share of the rescaled prediction; 0 changes nothing.
        kind: What is rescaled: "v" as in the paper, "eps", "x0" or "score".

    Raises:
        ValueError: when phi lies outside [0, 1], the kind is unknown, or a sample is a single number.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")

    def matched(x: Tensor, level: NoiseLevel) -> Prediction:
        if x[0].numel() < 2:
            raise ValueError("a sample of one number has no standard deviation to match")
        prediction = guided(x, level)
        g, c = getattr(prediction, kind), getattr(conditional(x, level), kind)
        factor = c.flatten(1).std(1) / g.flatten(1).std(1)
        factor = (phi * factor + 1 - phi).reshape(-1, *[1] * (x.ndim - 1))
        return prediction.replace(value=factor * g, kind=kind)

    return matched


# Guides: the same as values. Each takes (model, condition, null) and makes a denoiser of them; they nest.


@checked
def cfg(scale: Finite) -> Guide:
    """Classifier-free guidance, see ``classifier_free``.

    Args:
        scale: s; 1 is plain conditional.

    Raises:
        ValueError: when the scale is not finite; from the guide, for another scale than 1 and a model without a null.
    """

    def guide(model: ConditionalModel, condition, null) -> Denoiser:
        if scale != 1 and null is condition:
            raise ValueError(f"this model knows no null condition to guide at scale {scale:g}; only scale 1 is left")
        return classifier_free(model, condition, null, scale)

    return guide


@checked
def classifier(log_prob: LogProb, scale: Finite) -> Guide:
    """Classifier guidance of the model with its null, see ``classifier_guidance``; of one that has no null, as it is.

    Args:
        log_prob: ``(x_t, level) -> (B,)`` log p(c | x_t).
        scale: s; 1 is Bayes' rule.

    Raises:
        ValueError: when the scale is not finite, or log_prob is no function of x and the level.
    """
    return lambda model, condition, null: classifier_guidance(conditioned(model, null), log_prob, scale)


@checked
def clip(clip, captions, scale: Finite) -> Guide:
    """The same by the critic of a CLIP, see ``clip_guidance``.

    Args:
        clip: What has a ``critic``.
        captions: One caption for all samples, or one for each.
        scale: s.

    Raises:
        ValueError: when the scale is not finite, for what is no CLIP, or captions that it refuses.
    """
    return classifier(_critic(clip, captions), scale)


@checked
def adm(log_prob: LogProb, scale: Finite, ode: bool = False) -> Guide:
    """ADM's scripts: the model that knows the condition, x_0 clamped, then guided by a classifier as well.

    Dhariwal and Nichol 2021, algorithms 1 and 2. Draw with ``threshold=None``; by the mean shift with an ancestral
    sampler, ``ancestral("learned")`` where the variance is learned: that is what their numbers were made with.

    Args:
        log_prob: ``(x_t, level) -> (B,)`` log p(c | x_t).
        scale: s.
        ode: Shift the score (algorithm 2, for DDIM) in place of the mean.

    Raises:
        ValueError: when the scale is not finite, or log_prob is no function of x and the level.
    """
    rule = classifier_guidance if ode else mean_shift_guidance
    return lambda model, condition, null: rule(static_threshold(conditioned(model, condition)), log_prob, scale)


@checked
def interval(guide: Guide, low: NonNegative, high: UpperEnd) -> Guide:
    """Another guide where low < sigma / alpha <= high, the plain conditional model elsewhere; see
    ``guidance_interval``.

    Raises:
        ValueError: for what is no guide.
    """
    _require_interval(low, high)
    return lambda model, condition, null: guidance_interval(
        guide(model, condition, null), conditioned(model, condition), low, high
    )


@checked
def auto(weak: Denoiser, scale: Finite) -> Guide:
    """Away from a weaker denoiser of the same condition, see ``autoguidance``.

    Raises:
        ValueError: when the scale is not finite, or for what is no denoiser.
    """
    return lambda model, condition, null: autoguidance(conditioned(model, condition), weak, scale)


@checked
def ends_with(last: ConditionalModel, sigma: NonNegative, guide: Guide | None = None) -> Guide:
    """Another model at the clean end of a chain, told the same; Karlo's upsampler takes its last step by a second one.

    Args:
        last: Asked where the noise of the level is at most sigma.
        sigma: Of a scalar level.
        guide: Of both; plain conditional when left out.

    Raises:
        ValueError: when sigma is not in [0, 1].
    """
    if not 0 <= sigma <= 1:
        raise ValueError(f"the noise from which another model takes over lies in [0, 1], got {sigma}")
    guide = guide or cfg(1.0)

    def both(model: ConditionalModel, condition, null) -> Denoiser:
        early, late = guide(model, condition, null), guide(last, condition, null)
        return lambda x, level: (late if level.sigma <= sigma else early)(x, level)

    return both
