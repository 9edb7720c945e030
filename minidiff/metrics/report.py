"""All measures of one set of images beside a reference, with intervals, and the table they are read in."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..arguments import Count, Inside, Natural, checked
from .intervals import Interval, around, bootstrap, halves, proportion, subset
from .quality import frechet_distance, hits, inception_score, kernel_distance, precision, recall

COLUMNS = {
    "fid": "FID",
    "fid_debiased": "FID - bias",
    "kid": "KID",
    "inception_score": "IS",
    "precision": "precision",
    "recall": "recall",
    "class_accuracy": "accuracy",
}


class Described(NamedTuple):
    """A set of images as its feature network sees it.

    Attributes:
        features: (N, d).
        log_prob: (N, classes).
        labels: (N,) classes that were asked for, -1 where none was.
    """

    features: Tensor
    log_prob: Tensor
    labels: Tensor


@checked
def check_counts(images: Natural, reference: Natural, width: Count) -> None:
    """Refuse sets too small for the covariance of half of them.

    Raises:
        ValueError: naming the sizes and the least that is accepted.
    """
    least = 2 * (width + 1)
    for what, count in (("images", images), ("reference images", reference)):
        if count < least:
            raise ValueError(f"{count} {what} are too few for {width} features: intervals halve them, so >= {least}")


@checked
def measure(
    images: Described,
    reference: Described,
    seed: int = 0,
    draws: Count = 200,
    level: Inside = 0.95,
    k: Count = 3,
    accuracy: bool = True,
) -> dict[str, Interval]:
    """Every measure that applies, by name, with its interval; the keys are those of ``COLUMNS``.

    The Frechet distance uses the whole reference. KID, precision and recall use as many reference images as there are
    images, at most all: the balls of precision and recall shrink with the number of images, so the sets must be alike.
    Labels are taken for the classes that a set was drawn by, see ``bootstrap``: the shares of the classes count as
    part of what is compared, not as chance.
    Class accuracy is left out unless every image has a label.

    Args:
        images: What is judged.
        reference: What it is held against.
        seed: For the halves that intervals come from, and for the choice of reference images.
        draws: Number of halves.
        level: Probability that an interval covers.
        k: Neighbours, for precision and recall.
        accuracy: Whether labels are the classes of ``log_prob``.

    Raises:
        ValueError: for sets too small, see ``check_counts``.
    """
    check_counts(len(images.features), len(reference.features), images.features.shape[1])
    fresh = lambda: torch.Generator().manual_seed(seed)
    mine, theirs = images.features, reference.features
    strata = [_strata(images.labels), _strata(reference.labels)]
    alike = subset(strata[1], min(len(mine), len(theirs)), fresh())
    theirs_alike, strata_alike = theirs[alike.to(theirs.device)], [strata[0], _strata(strata[1][alike])]

    def interval(statistic, *samples: Tensor, strata=strata_alike) -> Interval:
        return bootstrap(statistic, *samples, strata=strata, generator=fresh(), draws=draws, level=level)

    def within_one(found: Interval) -> Interval:
        return Interval(found.value, max(0.0, found.low), min(1.0, found.high))

    def kid(i: Tensor, j: Tensor) -> float:
        return kernel_distance(mine[i], theirs_alike[j], strata_alike[0][i], strata_alike[1][j])

    fid = frechet_distance(mine, theirs)
    scattered = halves(frechet_distance, mine, theirs, strata=strata, generator=fresh(), draws=draws)
    out = {
        "fid": around(fid, scattered, level),
        "fid_debiased": around(2 * fid - float(scattered.mean()), scattered, level),
        "kid": interval(kid, torch.arange(len(mine)), torch.arange(len(theirs_alike))),
        "inception_score": interval(inception_score, images.log_prob, strata=strata[:1]),
        "precision": within_one(interval(lambda a, b: precision(a, b, k), mine, theirs_alike)),
        "recall": within_one(interval(lambda a, b: recall(a, b, k), mine, theirs_alike)),
    }
    if accuracy and bool((images.labels >= 0).all()):
        out["class_accuracy"] = proportion(hits(images.log_prob, images.labels), level)
    return out


def _strata(labels: Tensor) -> Tensor:
    """The classes by which a set was drawn; one for all where some are too small to be halved."""
    return labels.cpu() if int(labels.unique(return_counts=True)[1].min()) >= 4 else torch.zeros(len(labels))


@checked
def table(rows: dict[str, dict[str, dict[str, float]]], columns: dict[str, str] = COLUMNS) -> str:
    """Rows of measures (value, low, high by name) as aligned text: values, and below each its interval.

    Args:
        rows: Measures by row.
        columns: Headings by measure.
    """
    cells = [["", *columns.values()]]
    for name, measures in rows.items():
        values, ends = [name], [""]
        for key in columns:
            found = measures.get(key)
            texts = [] if found is None else [f"{x:.3g}" for x in found.values()]
            values.append(texts[0] if texts else "-")
            ends.append(f"[{texts[1]}, {texts[2]}]" if texts else "")
        cells += [values, ends]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells)
    return "\n".join(line.rstrip() for line in lines)
