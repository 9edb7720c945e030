"""Laws of what is kept of several draws: the best of n by some merit, or only what lies in its upper share.

Both reweight a law by a function of the rank of the merit alone, so how far they can lead away from it depends neither
on the law nor on the merit: unCLIP's priors do the one and the other (Ramesh et al. 2022, section 2.2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .arguments import Count, Some, checked, numbers


def _ranks(p: Tensor, merit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N,) p normalised, and the probabilities of a merit below, and of one not above, each item's own."""
    p, merit = p.double(), merit.double()
    if bool((p < 0).any()) or not 0 < float(p.sum()) < math.inf:
        raise ValueError("probabilities p are not negative, and some of them are not zero")
    if not bool(merit.isfinite().all()):
        raise ValueError("every merit must be finite")
    p = p / p.sum()
    place = torch.unique(merit, return_inverse=True)[1]
    mass = torch.zeros(int(place.max()) + 1, dtype=torch.float64).index_add(0, place, p)
    upto = mass.cumsum(0)
    return p, (upto - mass)[place], upto[place]


@checked
def best_of(p: numbers("N"), merit: numbers("N"), n: Count = 2) -> Tensor:
    """The law of the draw with the largest merit among n independent ones (``eq-best-of``).

    Args:
        p: (N,) law of a single draw; normalised here.
        merit: (N,) merit of each item; a tie is broken at random.
        n: Number of draws.

    Returns:
        (N,) float64, the sum of which is 1.

    Raises:
        ValueError: for shapes that differ, negative probabilities, merits that are not finite, or no draw.
    """
    p, below, upto = _ranks(p, merit)
    # the chance that all are at most this good and one is as good, shared among those as good
    tied = (upto - below).clamp(min=1e-300)
    return p * (upto**n - below**n) / tied


@checked
def top_share(p: numbers("N"), merit: numbers("N"), share: Some = 0.5) -> Tensor:
    """The law of a draw whose merit comes from the upper share of its distribution (``eq-top-share``).

    Args:
        p: (N,) law of a single draw; normalised here.
        merit: (N,) merit of each item; where the share ends within a tie, all of the tie count for a part.
        share: Of the probability, from above; 1 for all of it.

    Returns:
        (N,) float64, the sum of which is 1.

    Raises:
        ValueError: as ``best_of``, or for a share outside (0, 1].
    """
    p, below, upto = _ranks(p, merit)
    kept = (upto - below.clamp(min=1 - share)).clamp(min=0)
    return p * kept / ((upto - below).clamp(min=1e-300) * share)
