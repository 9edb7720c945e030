"""How the cases of the exercises draw their inputs and compare values; one tolerance for the whole course."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from minidiff.course.outcomes import Mistake
from minidiff.schedule import NoiseLevel, vp_schedule

PRESERVING = "sigma^2 = 1 - alpha^2 does not hold here: take sigma from the level"  # a diagnosis
Pair = tuple[NoiseLevel, NoiseLevel]
RTOL = 1e-4  # what an answer loses that computes in float32; a mistake must be farther from the truth than this


def normal(rng: Generator, *shape: int) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def uniform(rng: Generator, low: float, high: float, *shape: int) -> Any:
    """Uniform numbers, float64; one Python float without a shape."""
    value = low + (high - low) * torch.rand(shape, generator=rng, dtype=torch.float64)
    return value if shape else value.item()


def preserving_pair(rng: Generator) -> Pair:
    """Two variance-preserving levels, the noisier first; no alpha and no sigma is near 0 or 1."""
    return vp_schedule().level(uniform(rng, 0.4, 0.5)), vp_schedule().level(uniform(rng, 0.15, 0.25))


def general_pair(rng: Generator) -> Pair:
    """Two levels for which alpha^2 + sigma^2 is not 1, and alpha is not 1 either."""
    return NoiseLevel(uniform(rng, 0.6, 0.7), uniform(rng, 2, 3), 2), NoiseLevel(uniform(rng, 0.8, 0.9), 0.9, 1)


def exploding_pair(rng: Generator) -> Pair:
    """Two variance-exploding levels."""
    return NoiseLevel(1.0, uniform(rng, 2, 3), 2), NoiseLevel(1.0, uniform(rng, 0.6, 0.9), 1)


def preserved(level: NoiseLevel) -> NoiseLevel:
    """What the mistake sigma^2 = 1 - alpha^2 makes of a level."""
    return NoiseLevel(level.alpha, (1 - level.alpha**2) ** 0.5, level.time)


def close(a: Any, b: Any, rtol: float = RTOL, atol: float = 1e-9) -> bool:
    """Equal up to rounding: numbers, tensors of one shape, or tuples and lists of such.

    An entry may be off by ``rtol`` of itself, and by a tenth of that of the largest entry (what cancellation leaves),
    or ``atol``. Where the right value is exactly zero, ``atol`` alone decides. Infinities must be equal; nan equals
    nothing.
    """
    if isinstance(b, tuple | list):
        return (
            isinstance(a, tuple | list)
            and len(a) == len(b)
            and all(close(x, y, rtol, atol) for x, y in zip(a, b, strict=True))
        )
    a, b = torch.as_tensor(a, dtype=torch.float64), torch.as_tensor(b, dtype=torch.float64)
    if a.shape != b.shape:
        return False
    size = b[b.isfinite()].abs()
    least = max(rtol / 10 * size.max().item(), atol) if size.numel() else atol
    return bool(((a == b) | (b.isfinite() & ((a - b).abs() <= rtol * b.abs() + least))).all())


def expect(
    got: Any,
    right: Any,
    say: str,
    mistakes: Mapping[str, Any] | None = None,
    *,
    rtol: float = RTOL,
    atol: float = 1e-9,
) -> None:
    """Assert that a value is right; name a mistake only where the value is what that mistake gives here.

    Args:
        got: what the answer gave.
        right: what it should be; see :func:`close`.
        say: what should hold, for a learner. ``{got}`` and ``{right}`` stand for numbers, with as many digits as it
            takes to tell them apart.
        mistakes: diagnosis -> the value that this mistake gives on the same inputs, or a function that returns it.

    Raises:
        Mistake: the value equals that of a mistake, which is not the right one; names all, where it equals several.
        AssertionError: it equals neither.
    """
    if close(got, right, rtol, atol):
        return
    named = []
    for diagnosis, wrong in (mistakes or {}).items():
        wrong = wrong() if callable(wrong) else wrong
        if _same(got, wrong, rtol, atol) and not close(wrong, right, rtol, atol):
            named.append(diagnosis)
    if named:
        raise Mistake("; or ".join(named))
    if "{" in say:
        say = say.format(**dict(zip(("got", "right"), apart(got, right), strict=True)))
    raise AssertionError(say + _not_finite(got, right))


def _same(got: Any, wrong: Any, rtol: float, atol: float) -> bool:
    """As ``close``, but nan equals nan: some mistakes give nothing else."""
    if isinstance(wrong, tuple | list):
        paired = isinstance(got, tuple | list) and len(got) == len(wrong)
        return paired and all(_same(*pair, rtol, atol) for pair in zip(got, wrong, strict=True))
    got, wrong = torch.as_tensor(got, dtype=torch.float64), torch.as_tensor(wrong, dtype=torch.float64)
    if got.shape != wrong.shape or not torch.equal(got.isnan(), wrong.isnan()):
        return False
    return close(got.nan_to_num(0.0, math.inf, -math.inf), wrong.nan_to_num(0.0, math.inf, -math.inf), rtol, atol)


def apart(a: float, b: float) -> tuple[str, str]:
    """Two numbers in as few digits, at least three, as show that they differ."""
    for digits in range(3, 18):
        texts = f"{a:.{digits}g}", f"{b:.{digits}g}"
        if texts[0] != texts[1]:
            break
    return texts


def _not_finite(got: Any, right: Any) -> str:
    """A remark for values that are not even numbers where they should be."""
    values = lambda v: (
        torch.cat([values(p) for p in v]) if isinstance(v, tuple | list) else torch.as_tensor(v).reshape(-1)
    )
    got, right = values(got).double(), values(right).double()
    if not right.isfinite().all() or got.isfinite().all():
        return ""
    return f" ({'nan' if got.isnan().any() else 'infinity'} among what yours gives)"
