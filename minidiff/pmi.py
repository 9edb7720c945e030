"""Pointwise mutual information, the contrastive loss that estimates it, and what that loss leaves open.

A critic f(x, c) scores pictures against captions. Tables have one row per picture and one column per caption.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import checked, floats, integers, numbers
from .prediction import require_finite

DIRECTIONS = ("both", "image-to-text", "text-to-image")
FREE = ("nothing", "constant", "image", "text", "both")


def _require(value: str, known: tuple[str, ...], what: str) -> None:
    if value not in known:
        raise ValueError(f"{what} must be one of {', '.join(known)}, got {value!r}")


def _marginals(joint: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The joint in float64, normalised, with its marginals (n, 1) and (1, m)."""
    joint = torch.as_tensor(joint, dtype=torch.float64)
    if (
        joint.ndim != 2
        or not bool(joint.isfinite().all() & (joint >= 0).all())
        or not bool((joint.sum(0) > 0).all() & (joint.sum(1) > 0).all())
    ):
        raise ValueError(
            "a joint table is (n, m), finite and not negative, with no empty row or column; got shape "
            f"{tuple(joint.shape)}"
        )
    joint = joint / joint.sum()
    return joint, joint.sum(1, keepdim=True), joint.sum(0, keepdim=True)


@checked
def pointwise_mutual_information(joint: Tensor) -> Tensor:
    """log p(x, c) / (p(x) p(c)) in nats (``eq-pmi``).

    Args:
        joint: (n, m) probabilities of the pairs, or counts of them.

    Returns:
        (n, m) float64; -inf where a pair never occurs.

    Raises:
        ValueError: for negative numbers, or a row or column without any mass.
    """
    joint, p_x, p_c = _marginals(joint)
    return joint.log() - p_x.log() - p_c.log()


@checked
def mutual_information(joint: Tensor) -> float:
    """The mean of the pointwise mutual information over the pairs, in nats; arguments as there."""
    joint, p_x, p_c = _marginals(joint)
    return float((torch.xlogy(joint, joint) - torch.xlogy(joint, p_x * p_c)).sum())


@checked
def info_nce(critic: floats(), directions: str = "both", columns: floats() | None = None) -> Tensor:
    """The contrastive loss of each of B pairs, its negatives the rest of the batch (``eq-info-nce``).

    Van den Oord et al. 2018; both directions as in CLIP (Radford et al. 2021, figure 3). With both the minimiser is the
    pointwise mutual information up to a constant. From image to text alone a function a(x) stays open, whose gradient
    guidance would follow; from text to image a function b(c), which has none.

    Args:
        critic: (B, B) f(x_i, c_j), picture i belonging to caption j = i.
        directions: "both": half of each; "image-to-text": which caption belongs to the picture; "text-to-image": which
            picture belongs to the caption.
        columns: (N, B) f(x_i, c_j), when these are but the first B pairs of a batch of N; the critic then is (B, N).

    Returns:
        (B,).

    Raises:
        ValueError: for another shape, or unknown directions.
    """
    _require(directions, DIRECTIONS, "directions")
    if columns is None:
        columns = critic
    if critic.ndim != 2 or columns.shape != critic.T.shape or len(critic) > len(columns):
        shapes = f"{tuple(critic.shape)} and {tuple(columns.shape)}"
        raise ValueError(f"a critic of B pairs is (B, B), or (B, N) and (N, B) of N; got {shapes}")
    own = torch.arange(len(critic), device=critic.device)
    by_image = lambda: F.cross_entropy(critic, own, reduction="none")
    by_text = lambda: F.cross_entropy(columns.T, own, reduction="none")
    if directions == "both":
        return (by_image() + by_text()) / 2
    return by_image() if directions == "image-to-text" else by_text()


@checked
def info_nce_limit(critic: floats(), joint: numbers(), directions: str = "both") -> Tensor:
    """What ``info_nce`` minus log B tends to as the batch grows; at its minimum, minus the mutual information.

    From image to text: the mean over the pairs of log E_c'[exp f(x, c')] - f(x, c), captions drawn from p(c).

    Args:
        critic: (n, m) f(x, c).
        joint: (n, m) probabilities of the pairs, or counts of them.
        directions: As for ``info_nce``.

    Returns:
        A number, float64, differentiable in the critic.

    Raises:
        ValueError: for shapes that differ, a table that is no joint, or unknown directions.
    """
    _require(directions, DIRECTIONS, "directions")
    joint, p_x, p_c = _marginals(joint)
    if critic.shape != joint.shape:
        raise ValueError(f"the critic has shape {tuple(critic.shape)}, the joint {tuple(joint.shape)}")
    require_finite(critic, "critic")
    critic = critic.double()
    matched = (joint * critic).sum()
    by_image = (p_x[:, 0] * (critic + p_c.log()).logsumexp(1)).sum() - matched
    by_text = (p_c[0] * (critic + p_x.log()).logsumexp(0)).sum() - matched
    return {"both": (by_image + by_text) / 2, "image-to-text": by_image, "text-to-image": by_text}[directions]


@checked
def residual(
    table: floats(), free: str = "constant", rows: numbers() | None = None, columns: numbers() | None = None
) -> Tensor:
    """What is left of a table once the best constant, a(x), b(c) or a(x) + b(c) is taken away, by least squares.

    Of critic minus pointwise mutual information it says whether the critic is right up to what its loss leaves open.

    Args:
        table: (n, m), finite.
        free: "constant", "image" for a function a(x) of the row, "text" for b(c) of the column, "both" for their sum
            (double centring), or "nothing".
        rows: (n,) positive weights, p(x) say; equal when left out.
        columns: (m,) positive weights, p(c) say; a cell weighs the product.

    Returns:
        (n, m).

    Raises:
        ValueError: for a table that is not finite, weights that do not fit, or an unknown ``free``.
    """
    _require(free, FREE, "free")
    if table.ndim != 2 or not bool(table.isfinite().all()):
        raise ValueError(f"a residual is that of a finite (n, m) table, got shape {tuple(table.shape)}")
    shares = []
    for weights, count, what in ((rows, table.shape[0], "rows"), (columns, table.shape[1], "columns")):
        weights = torch.ones(count) if weights is None else torch.as_tensor(weights)
        if weights.shape != (count,) or not bool((weights > 0).all() & weights.isfinite().all()):
            raise ValueError(f"{what} must be ({count},) positive weights, finite; got shape {tuple(weights.shape)}")
        shares.append((weights.double() / weights.double().sum()).to(table))
    by_row = (table @ shares[1])[:, None]
    by_column = shares[0] @ table
    mean = shares[0] @ by_row
    fit = {"nothing": 0.0, "constant": mean, "image": by_row, "text": by_column, "both": by_row + by_column - mean}
    return table - fit[free]


@checked
def information_left(joint: numbers("N M"), codes: integers("N")) -> float:
    """What the caption says of a picture beyond its code z = f(x): I(x; c | z) in nats (``eq-caption-split``).

    Zero exactly where the code is sufficient for the caption, p(c|x) = p(c|z).

    Args:
        joint: (n, m) probabilities of the pairs, or counts of them.
        codes: (n,) integers, the code of each picture.

    Raises:
        ValueError: for what is no joint, or codes of another number.
    """
    joint, _, _ = _marginals(joint)
    places = torch.unique(codes, return_inverse=True)[1]
    coded = torch.zeros(int(places.max()) + 1, joint.shape[1], dtype=torch.float64).index_add(0, places, joint)
    return mutual_information(joint) - mutual_information(coded)
